"""Bundles of containerd and CRI-O: what is in them, where they are, what damage they may have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import bundles, engines, identity, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.engines.containerd import Containerd
from nsbridge.supervisor.containers.engines.kubernetes import Kubernetes, PodContainer
from nsbridge.supervisor.containers.identity import ContainerRefused, Found, NotRunning
from tests.fake_node import CRI, CRIO, Node, state_of, write


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("NSBRIDGE_CONTAINERD_STATE", str(tmp_path / "containerd"))
    monkeypatch.setenv("NSBRIDGE_CRIO_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(tmp_path / "runc"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Node(tmp_path)


def containerd(name: str) -> Found:
    return containers.locate(Container(engines.containerd.KIND, name))


def k8s(name: str) -> Found:
    return containers.locate(Container(engines.kubernetes.KIND, name))


def fake_ctr(node: Node, script: str) -> None:
    write(node.root / "bin/ctr", f"#!/bin/sh\n{script}\n")
    (node.root / "bin/ctr").chmod(0o755)


# -- containerd


def test_container_of_containerd_is_found(node: Node) -> None:
    node.containerd("default", "web")
    found = containerd("default/web")
    assert (found.pid, found.start_time) == (os.getpid(), identity.read_stat(os.getpid()).start_time)


def test_runtime_may_be_crun(node: Node) -> None:
    node.containerd("default", "web")
    node.state("default", "web").unlink()
    start = identity.read_stat(os.getpid()).start_time
    write(
        node.state("default", "web").with_name("status"), json.dumps({"pid": os.getpid(), "process-start-time": start})
    )
    assert containerd("default/web").pid == os.getpid()


def test_unknown_container_names_where_it_was_looked_for(node: Node) -> None:
    with pytest.raises(NotRunning, match=f'container "default/web" is not known to containerd .looked in {node.root}'):
        containerd("default/web")


@pytest.mark.parametrize(
    "name", ["web", "a/b/c", "../x/web", "default/../web", "default/", "/web", "default/-web", "a" * 77 + "/b"]
)
def test_name_that_leads_elsewhere_is_refused(node: Node, name: str) -> None:
    with pytest.raises(ContainerRefused, match="write the namespace and the ID"):
        containerd(name)


def test_container_that_is_being_created_is_waited_for(node: Node) -> None:
    bundle = node.containerd("default", "web")
    (bundle / "init.pid").unlink()
    with pytest.raises(NotRunning, match="is being created or deleted"):
        containerd("default/web")


def test_created_container_is_not_running(node: Node) -> None:
    node.containerd("default", "web")
    os.mkfifo(node.state("default", "web").with_name("exec.fifo"))
    with pytest.raises(NotRunning, match="`runc start` has not been called"):
        containerd("default/web")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "huge": _huge,
    "binary": lambda path: path.write_bytes(os.urandom(64)),
    "lying pid": lambda path: path.write_text("1", encoding="ascii"),
    "no number": lambda path: path.write_text("-1\n2", encoding="ascii"),
    "link": _link,
    "fifo": _fifo,
    "everybody may write it": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_pid_file_is_refused_with_one_line(node: Node, damage: Callable[[Path], object]) -> None:
    bundle = node.containerd("default", "web")
    damage(bundle / "init.pid")
    with pytest.raises(ContainerRefused, match='container "default/web" of containerd: ') as refused:
        containerd("default/web")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(
    "text", ["[]", "\x00", "[" * 100_000, '{"id":"web","init_process_pid":true,"init_process_start":1}']
)
def test_damaged_state_of_the_runtime_is_refused(node: Node, text: str) -> None:
    node.containerd("default", "web")
    node.state("default", "web").write_text(text, encoding="utf-8")
    with pytest.raises(ContainerRefused, match=r"state\.json") as refused:
        containerd("default/web")
    assert str(refused.value).isprintable()


def test_state_of_another_container_is_refused(node: Node) -> None:
    node.containerd("default", "web")
    node.state("default", "web").write_text(state_of(os.getpid(), "bank"), encoding="utf-8")
    with pytest.raises(ContainerRefused, match='is the state of another container, "bank"'):
        containerd("default/web")


def test_bundle_that_is_a_link_is_refused(node: Node) -> None:
    node.containerd("default", "bank")
    (node.tasks / "default/web").symlink_to("bank")
    with pytest.raises(ContainerRefused, match="is a link, which containerd never makes"):
        containerd("default/web")


@pytest.mark.parametrize("options", ["", "x", "[]", '{"root": 7}', '{"root": "relative"}'])
def test_damaged_options_mean_the_usual_place(node: Node, options: str) -> None:
    bundle = node.containerd("default", "web")
    write(bundle / "options.json", options)
    with pytest.raises(NotRunning, match=f"no state of runc or crun in {bundles.runtime_roots()[0][:-7]}/default/web"):
        containerd("default/web")


# -- another runtime than runc and crun: `ctr` is asked


@pytest.fixture
def other_runtime(node: Node) -> Node:
    node.containerd("default", "web")
    node.state("default", "web").unlink()
    return node


def test_ctr_is_asked_about_another_runtime(other_runtime: Node) -> None:
    fake_ctr(other_runtime, f"echo 'TASK PID STATUS'; echo 'web    {os.getpid()}    RUNNING'")
    assert containerd("default/web").pid == os.getpid()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'TASK PID STATUS'", "has no task"),
        ("echo 'web 1 STOPPED'", "is stopped, not running"),
        ("echo 'web 99999999999 RUNNING'", "has no task"),
        ("head -c 100000 /dev/urandom", "has no task"),
        ("echo nothing listens >&2; exit 1", 'failed with status 1: "nothing listens"'),
        ("exec sleep 60", "does not answer"),
        ("exec cat /dev/zero", "says more than|does not answer"),  # the latter on a busy machine
    ],
)
def test_ctr_that_fails_is_waited_for(other_runtime: Node, script: str, said: str) -> None:
    fake_ctr(other_runtime, f"PATH=/bin:/usr/bin; {script}")
    with pytest.raises(NotRunning, match=said) as waits:
        containerd("default/web")
    assert str(waits.value).isprintable()


# -- pods


@pytest.mark.parametrize(
    "make", [lambda node: node.containerd("k8s.io", "c1", CRI), lambda node: node.crio("c1", CRIO)]
)
def test_container_of_a_pod_is_found(node: Node, make: Callable[[Node], Path]) -> None:
    make(node)
    assert (k8s("shop/web-1/app").pid, k8s("shop/web-1/app").serves) == (os.getpid(), "")
    assert k8s("shop/web-*/app").serves == "k8s:shop/web-1/app"


@pytest.mark.parametrize("name", ["shop/web-2/app", "bank/web-1/app", "shop/web-1/log", "shop/w?/app"])
def test_other_containers_do_not_match(node: Node, name: str) -> None:
    node.containerd("k8s.io", "c1", CRI)
    with pytest.raises(NotRunning, match="no running container of a pod on this node matches"):
        k8s(name)


def test_two_that_match_are_both_named(node: Node) -> None:
    node.containerd("k8s.io", "c1", CRI)
    node.crio("c2", CRIO | {"io.kubernetes.pod.name": "web-2"})
    with pytest.raises(
        NotRunning, match="2 running containers match, and exactly one must: k8s:shop/web-1/app, k8s:shop/web-2/app"
    ):
        k8s("shop/web-*/app")


def test_many_that_match_are_counted(node: Node) -> None:
    for number in range(9):
        node.containerd("k8s.io", f"c{number}", CRI | {"io.kubernetes.cri.sandbox-name": f"web-{number}"})
    with pytest.raises(NotRunning, match=r"9 running .*k8s:shop/web-4/app and 4 more"):
        k8s("shop/web-*/app")


def test_one_of_two_that_runs_is_found(node: Node) -> None:
    node.containerd("k8s.io", "c1", CRI)
    node.containerd("k8s.io", "c2", CRI | {"io.kubernetes.cri.sandbox-name": "web-2"})
    node.state("k8s.io", "c1").write_text(
        json.dumps({"id": "c1", "init_process_pid": os.getpid(), "init_process_start": 1}), encoding="ascii"
    )
    assert k8s("shop/web-*/app").serves == "k8s:shop/web-2/app"


def test_name_that_two_containers_claim_is_served_by_none(node: Node) -> None:
    """Another container says that it is web-1's app, too."""
    node.containerd("k8s.io", "c1", CRI)
    node.containerd("k8s.io", "c2", CRI)
    with pytest.raises(NotRunning, match="2 running containers match"):
        k8s("shop/web-1/app")


def test_sandbox_is_no_container(node: Node) -> None:
    node.containerd("k8s.io", "c1", CRI | {"io.kubernetes.cri.container-type": "sandbox"})
    node.crio("c2", CRIO | {"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.container.name": "POD"})
    assert list(Kubernetes().listed()) == []


HOSTILE: dict[str, Callable[[Path], object]] = {
    "huge": _huge,
    "binary": lambda path: path.write_bytes(b"app" + os.urandom(64)),
    "deep": lambda path: path.write_text('{"app":' + "[" * 100_000, encoding="ascii"),
    "link": _link,
    "fifo": _fifo,
    "no object": lambda path: path.write_text('["app"]', encoding="ascii"),
    "annotations of another kind": lambda path: path.write_text(
        json.dumps({"annotations": {key: ["app"] for key in CRI}}), encoding="ascii"
    ),
    "a name with a slash": lambda path: path.write_text(
        json.dumps({"annotations": CRI | {"io.kubernetes.cri.sandbox-name": "../bank"}}), encoding="ascii"
    ),
    "a name that is a pattern": lambda path: path.write_text(
        json.dumps({"annotations": CRI | {"io.kubernetes.cri.sandbox-name": "*"}}), encoding="ascii"
    ),
    "a name with control characters": lambda path: path.write_text(
        json.dumps({"annotations": CRI | {"io.kubernetes.cri.sandbox-name": "\x1b[2J\n"}}), encoding="ascii"
    ),
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_damaged_bundle_hides_no_other(node: Node, damage: Callable[[Path], object]) -> None:
    """It comes before the others in order; a name that matches nothing says in one line what could not be read."""
    damage(node.containerd("k8s.io", "a0", CRI) / "config.json")
    node.containerd("k8s.io", "c1", CRI)
    assert k8s("shop/web-*/app").pid == os.getpid()
    with pytest.raises(NotRunning, match="no running container") as waits:
        k8s("shop/web-9/app")
    assert str(waits.value).isprintable()
    assert len(str(waits.value)) < 900
    assert [row.name for row in Kubernetes().listed()] == ["k8s:shop/web-1/app"]


def test_damaged_state_of_a_pod_is_waited_for_and_named(node: Node) -> None:
    """A controller replaces the pod; no person has to start the agent again."""
    bundle = node.containerd("k8s.io", "c1", CRI)
    (bundle / "init.pid").write_text("1", encoding="ascii")
    with pytest.raises(NotRunning, match="names process 1, and its runtime's state process"):
        k8s("shop/web-1/app")


@pytest.mark.parametrize(
    "name",
    [
        "shop/web-1",
        "shop/web-1/app/x",
        "Shop/web/app",
        "shop/we b/app",
        "shop/*/*",
        "*/web/app",
        "shop/../app",
        "shop//app",
    ],
)
def test_malformed_name_is_refused(node: Node, name: str) -> None:
    with pytest.raises(ContainerRefused, match="write namespace, pod and container"):
        k8s(name)


@pytest.mark.parametrize("pattern", ["*", "web-*", "web-?", "web-[0-9]", "web-[!a]"])
def test_pod_may_be_a_pattern(node: Node, pattern: str) -> None:
    node.containerd("k8s.io", "c1", CRI)
    assert k8s(f"shop/{pattern}/app").serves == "k8s:shop/web-1/app"


def test_parts_are_compared_as_a_whole() -> None:
    made = PodContainer("shop", "web-1", "app", bundles.containerd_bundle("/s", "k8s.io", "c1"))
    assert made.matches("shop", "web-*", "app")
    assert not made.matches("sho*", "web-1", "app")
    assert not made.matches("shop", "web", "app")


# -- what is listed, and what is installed


def test_every_name_of_a_pod_s_container_is_listed(node: Node) -> None:
    node.containerd("k8s.io", "c1", CRI)
    (row,) = [row for row in listing.list_containers() if row.pid == os.getpid()]
    assert row.names == ("k8s:shop/web-1/app", "containerd:k8s.io/c1")


def test_damaged_containers_are_listed_with_the_reason(node: Node) -> None:
    (node.containerd("default", "web") / "init.pid").write_text("x", encoding="ascii")
    (row,) = Containerd().listed()
    assert (row.name, row.pid, row.state) == ("containerd:default/web", 0, "unknown")
    assert 'holds "x", not a process number' in row.note


def test_state_shows_what_is_installed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Containerd().is_installed(), Kubernetes().is_installed()) == (True, True)
    monkeypatch.setenv("NSBRIDGE_CONTAINERD_STATE", str(node.root / "none"))
    assert (Containerd().is_installed(), Kubernetes().is_installed()) == (False, False)
    (node.root / "storage/overlay-containers").mkdir(parents=True)
    assert Kubernetes().is_installed()
