"""Containers of a real containerd: made by `ctr`, and pods of its CRI plugin, as the kubelet makes them."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from nsbridge.supervisor.containers.bundles import TASKS
from nsbridge.supervisor.containers.identity import Found, NotRunning, read_stat
from nsbridge.supervisor.containers.listing import list_containers
from nsbridge.supervisor.containers.locate import locate
from tests.system.conftest import Factory
from tests.system.containerd_daemon import CRI_NAMESPACE, ContainerdDaemon, PodOfOne
from tests.system.engine_checks import check_removal
from tests.system.engines import EngineContainer, Program
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.room import stays, wait_until
from tests.system.test_arrivals import come, waiting
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool

SOON = 10.0  # seconds: more than any step takes on a busy machine
MESSAGES = 30


def names_of(pid: int) -> tuple[str, ...]:
    (row,) = [row for row in list_containers() if row.pid == pid]
    return row.names


def test_container_is_found_by_name_and_listed(ctr_container: Factory) -> None:
    web = ctr_container()
    assert locate(web.container) == Found(web.pid, read_stat(web.pid).start_time, "")
    assert names_of(web.pid) == (web.spec,)
    web.pause()
    assert locate(web.container).pid == web.pid, "a paused container is served, as one of Docker is"
    web.resume()
    web.stop()
    with pytest.raises(NotRunning, match="is not known to containerd"):
        locate(web.container)


def test_container_of_a_pod_is_found_once_it_runs(pod_container: Factory) -> None:
    web: PodOfOne = pod_container(start=False)
    web.create()
    with pytest.raises(NotRunning, match="no running container of a pod on this node matches"):
        locate(web.container)
    web.start()
    assert locate(web.container).pid == web.pid
    assert names_of(web.pid) == (web.spec, f"containerd:{CRI_NAMESPACE}/{web.id}")


def test_containers_are_seen_to_come(tmp_path: Path, ctr_container: Factory, pod_container: Factory) -> None:
    """Long before they would have been looked for: a container of `ctr`, one of a pod, by its name and by a pattern."""
    web, app, shop = ctr_container(start=False), pod_container(start=False), pod_container(start=False)
    pattern = f"k8s:default/{shop.pod.name[:-1]}[{shop.pod.name[-1]}]/app"
    with Nsbridged(tmp_path, waiting(web.spec, app.spec) + waiting(pattern, "containerd:no/one", "p")) as daemon:
        daemon.wait_for("WAITING")
        followed = Followed(daemon)
        come(daemon, followed, "w:one", web.start)
        app.create()
        come(daemon, followed, "w:other", app.start)
        come(daemon, followed, "p:one", shop.start)
        found = {name: agent["container_pid"] for name, agent in daemon.agents().items()}
        assert (found["w:one"], found["p:one"]) == (web.pid, shop.pid)
        assert daemon.agents()["p:one"]["serves"] == shop.spec


def test_status_names_the_pods_that_match(tmp_path: Path, containerd: ContainerdDaemon) -> None:
    """None, two, then one of them: the pattern is served once exactly one container matches."""
    pods = [PodOfOne(Program(), containerd, f"shop-{os.getpid()}-{letter}") for letter in "ab"]
    pattern = f"k8s:default/shop-{os.getpid()}-*/app"
    try:
        with Nsbridged(tmp_path, waiting(pattern, "containerd:no/one")) as daemon:
            daemon.wait_for("WAITING")
            assert "no running container of a pod on this node matches" in daemon.agents()["w:one"]["detail"]
            followed = Followed(daemon)
            os.kill(daemon.pid, signal.SIGSTOP)  # so that both are there when it looks
            for pod in pods:
                pod.start()
            os.kill(daemon.pid, signal.SIGCONT)
            said = f"2 running containers match, and exactly one must: {pods[0].spec}, {pods[1].spec}"
            wait_until(lambda: said in daemon.agents()["w:one"]["detail"], said, SOON)
            pods[0].delete()
            followed.until("w:one", "RUNNING", SOON)
            agent = daemon.agents()["w:one"]
            assert (agent["container"], agent["serves"]) == (pattern, pods[1].spec)
            assert agent["detail"] == f"serves {pods[1].spec}"
    finally:
        for pod in pods:
            pod.delete()


def test_old_pod_is_served_until_it_ends(
    tmp_path: Path, containerd: ContainerdDaemon, unshare_container: Factory
) -> None:
    """The new pod of a rolling update changes nothing; its spool waits. After the old pod's end it is served."""
    legacy = unshare_container()
    pods = [PodOfOne(Program(), containerd, f"roll-{os.getpid()}-{number}") for number in (1, 2)]
    old, new = pods
    try:
        old.start()
        with (
            Nsbridged(tmp_path, route(f"k8s:default/roll-{os.getpid()}-?/app", legacy.spec)) as daemon,
            Receiver(legacy, 0x51, 4) as receiver,
        ):
            daemon.wait_for("RUNNING")
            followed = Followed(daemon)
            put_into_spool(old.rootfs / "srv/out", [b"old 1"])
            new.start()
            (new.rootfs / "srv/out").mkdir()
            put_into_spool(new.rootfs / "srv/out", [b"new 1"])
            put_into_spool(old.rootfs / "srv/out", [b"old 2"])
            wait_until(lambda: daemon.flow("r:files")["delivered"] == 2, "the old pod's messages are delivered", SOON)
            stays(lambda: daemon.agents()["r:files"]["container_pid"] == old.pid, "the old pod is served", 0.3)
            old.delete()
            followed.until("r:files", "RUNNING", SOON)
            put_into_spool(new.rootfs / "srv/out", [b"new 2"])
            bodies = [sent.body for sent in receiver.messages()]
            assert daemon.agents()["r:files"]["container_pid"] == new.pid
            assert daemon.agents()["r:files"]["restarts"] == 0
    finally:
        for pod in pods:
            pod.delete()
    assert bodies == [b"old 1", b"old 2", b"new 1", b"new 2"]


@pytest.mark.parametrize("engine", ["ctr", "pod"])
def test_removal_does_not_wait_for_an_agent(tmp_path: Path, request: pytest.FixtureRequest, engine: str) -> None:
    make = request.getfixturevalue(f"{engine}_container")
    check_removal(tmp_path, make(), make())


def test_frozen_containerd_delays_nothing(
    tmp_path: Path, containerd: ContainerdDaemon, ctr_container: Factory, pod_container: Factory
) -> None:
    """Its state is read, and it is not asked: routes start and carry messages while it answers nothing at all."""
    web, legacy = ctr_container(), pod_container()
    (web.rootfs / "srv/out").mkdir()
    containerd.freeze()
    try:
        with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon, _receiver(legacy) as receiver:
            daemon.wait_for("RUNNING")
            put_into_spool(web.rootfs / "srv/out", [b"%d" % number for number in range(MESSAGES)])
            assert [sent.body for sent in receiver.messages()] == [b"%d" % number for number in range(MESSAGES)]
    finally:
        containerd.thaw()


def _receiver(legacy: EngineContainer) -> Receiver:
    return Receiver(legacy, 0x51, MESSAGES)


@pytest.mark.parametrize("script", ["exec sleep 1000", "exec cat /dev/urandom", "kill -9 $$"])
def test_ctr_that_hangs_or_babbles_delays_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unshare_container: Factory, script: str
) -> None:
    """It is asked about a container of an unknown runtime, and damaged bundles of pods lie beside it."""
    web, legacy = unshare_container(), unshare_container()
    tasks = tmp_path / "state" / TASKS
    for bundle in ("default/ghost", "k8s.io/one", "k8s.io/two"):
        (tasks / bundle).mkdir(parents=True)
        (tasks / bundle / "init.pid").write_text("1", encoding="ascii")
        (tasks / bundle / "config.json").write_bytes(os.urandom(1 << 16) + b"app")
    ctr = tmp_path / "bin/ctr"
    ctr.parent.mkdir()
    ctr.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\n{script}\n", encoding="ascii")
    ctr.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ctr.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NSBRIDGE_CONTAINERD_STATE", str(tmp_path / "state"))
    routes = route(web.spec, legacy.spec) + waiting("containerd:default/ghost", "k8s:default/web-*/app")
    with Nsbridged(tmp_path, routes) as daemon, _receiver(legacy) as receiver:
        daemon.wait_for("RUNNING", "r:files", "r:queue")
        wait_until((tmp_path / "asked").exists, "ctr is asked", SOON)
        for number in range(MESSAGES):
            put_into_spool(web.rootfs / "srv/out", [b"%d" % number])
            wait_until(partial(_is_delivered, daemon, number + 1), "a message is delivered", 5.0)
        assert receiver.messages() == [Sent(7, b"%d" % number) for number in range(MESSAGES)]
        daemon.wait_for("WAITING", "w:one", "w:other")
        assert "config.json" in daemon.agents()["w:other"]["detail"]


def _is_delivered(daemon: Nsbridged, count: int) -> bool:
    return bool(daemon.flow("r:files")["delivered"] >= count)
