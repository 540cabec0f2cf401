"""Containers named by labels (`compose:`, `docker-label:`), with the real dockerd and podman."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import NotRunning
from tests.system.comings import Service, new_service, of_daemon
from tests.system.conftest import Factory
from tests.system.engine_checks import check_restarts
from tests.system.engine_daemons import IMAGE, Daemon, DaemonContainer, DockerDaemon
from tests.system.engines import Program
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.often_asking import OftenAsking
from tests.system.room import wait_until
from tests.system.test_arrivals import SOON, come, waiting
from tests.system.test_relay import route
from tests.system.traffic import put_into_spool


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_container_is_found_by_its_labels(request: pytest.FixtureRequest, engine: str) -> None:
    spec, options = new_service()
    role = f"role {spec}".replace(" ", "=")
    web = request.getfixturevalue(f"{engine}_container")(options=[*options, f"--label={role}"])
    for kind, name in ((engines.compose.KIND, spec.partition(":")[2]), (engines.docker_label.KIND, role)):
        found = containers.locate(Container(kind, name))
        assert (found.pid, found.serves) == (web.pid, web.spec)
    (row,) = [row for row in listing.list_containers() if row.pid == web.pid]
    assert {web.spec, spec, f"docker-label:{role}"} <= set(row.names)
    web.kill()
    with pytest.raises(NotRunning, match=f"{web.spec} does not run"):
        containers.locate(Container(engines.compose.KIND, spec.partition(":")[2]))


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_label_of_an_image_does_not_count(request: pytest.FixtureRequest, engine: str) -> None:
    daemon = request.getfixturevalue({"docker": "docker_daemon", "podman": "podman"}[engine])
    make = request.getfixturevalue(f"{engine}_container")
    role = f"role=image-{os.getpid()}"
    built = daemon.command("import", "--change", f"LABEL {role}", "-", "nsb-labelled:1", stdin=_exported(daemon))
    assert built.returncode == 0
    evil = DaemonContainer(Program(), daemon, image="nsb-labelled:1")
    try:
        evil.start()
        with pytest.raises(NotRunning, match=f"{evil.spec} has these labels from its image only"):
            containers.locate(Container(engines.docker_label.KIND, role))
        web = make(options=[f"--label={role}"])
        assert containers.locate(Container(engines.docker_label.KIND, role)).pid == web.pid
    finally:
        evil.delete()


def _exported(daemon: Daemon) -> bytes:
    made = daemon.command("create", IMAGE, "true").stdout.decode().split()[-1]
    try:
        return daemon.command("export", made).stdout
    finally:
        daemon.command("rm", made)


@pytest.mark.timeout(180)
def test_service_that_is_scaled_is_waited_for_with_the_count(
    tmp_path: Path, docker_container: Factory, unshare_container: Factory
) -> None:
    """Nothing goes to either of two; the one that is left is served."""
    spec, options = new_service()
    first, legacy = docker_container(start=False, options=options), unshare_container()
    first.create()
    with OftenAsking(tmp_path, route(spec, legacy.spec)) as daemon:
        daemon.wait_for("WAITING", "r:files")
        assert f"matches {spec} ({first.spec} does not run)" in daemon.agents()["r:files"]["detail"]
        followed = Followed(daemon)
        come(daemon, followed, "r:files", first.start)
        assert daemon.agents()["r:files"]["serves"] == first.spec
        second = docker_container(options=options)
        followed.until("r:files", "WAITING", SOON)
        wait_until(lambda: "2 running containers match" in daemon.agents()["r:files"]["detail"], "status has the count")
        (second.rootfs / "srv/out").mkdir()
        put_into_spool(second.rootfs / "srv/out", [b"of the second"])
        first.stop()
        followed.until("r:files", "RUNNING", SOON)
        agent = daemon.agents()["r:files"]
        assert (agent["container"], agent["serves"], agent["container_pid"]) == (spec, second.spec, second.pid)
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the message of the one that is left")


def test_service_that_is_made_again_is_followed(
    tmp_path: Path, docker_daemon: DockerDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load, also under another name: nothing is lost or repeated."""
    for variable, value in docker_daemon.env.items():
        monkeypatch.setenv(variable, value)
    with ExitStack() as cleanup:
        check_restarts("compose", tmp_path, of_daemon(docker_daemon, cleanup, Service))


def test_label_of_podman_is_seen_to_come(tmp_path: Path, podman_container: Factory) -> None:
    role = f"role=podman-{os.getpid()}"
    web = podman_container(start=False, options=[f"--label={role}"])
    web.create()
    with Nsbridged(tmp_path, waiting(f"docker-label:{role}", f"pidfile:{tmp_path}/none")) as daemon:
        daemon.wait_for("WAITING")
        come(daemon, Followed(daemon), "w:one", web.start)
        assert daemon.agents()["w:one"]["serves"] == web.spec
