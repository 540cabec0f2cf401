"""Containers come and go: seen at once with each engine, whatever the engine does; and nothing hinders their going."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.conftest import Factory
from tests.system.engine_daemons import DockerDaemon
from tests.system.engines import BUSYBOX, EngineContainer, Program, RuncContainer
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.room import Room, crowd, run, tool, wait_dead, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool

FAR_OFF = 2.5  # seconds to the next look: who is back before that was seen to come
SOON = 10.0  # seconds: more than any step takes on a busy machine, and no more than one look
ENGINES = ("runc", "crun", "docker", "podman")


def waiting(one: str, other: str, name: str = "w") -> str:
    """Return a route between two containers, named after their engines' kinds."""
    agents = "".join(
        f'[route.{name}.agent.{side}]\ncontainer = "{spec}"\n'
        f"queue = {{ in = {{ key = 0x{number}1 }}, out = {{ key = 0x{number}2 }}, create = true }}\n"
        for number, (side, spec) in enumerate((("one", one), ("other", other)), 5)
    )
    return f"[route.{name}]\n{agents}"


def next_look(daemon: Nsbridged, name: str) -> float:
    """Return the seconds until it looks by itself; 0 if it is looking."""
    return float(daemon.agents()[name]["retry_in_s"] or 0)


def come(daemon: Nsbridged, followed: Followed, name: str, start: Callable[[], object]) -> None:
    """Start it while its agent is not about to look by itself; it must be attached before it would."""
    wait_until(lambda: next_look(daemon, name) > FAR_OFF, f"{name} looks seldom; log: {daemon.said()}")
    start()
    followed.until(name, "RUNNING", FAR_OFF)


def test_a_container_of_each_engine_is_seen_to_come(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Long before it would have been looked for; so is a pid file."""
    made: dict[str, EngineContainer] = {
        kind: request.getfixturevalue(f"{kind}_container")(start=False) for kind in ENGINES
    }
    made["docker"].create()
    made["podman"].create()
    pidfile = tmp_path / "run" / "web.pid"
    routes = waiting(made["runc"].spec, made["crun"].spec, "oci") + waiting(
        made["docker"].spec, made["podman"].spec, "engine"
    )
    routes += waiting(f"pidfile:{pidfile}", f"pidfile:{tmp_path}/other.pid", "file")

    def write_pidfile() -> None:
        pidfile.parent.mkdir()
        pidfile.write_text(f"{made['runc'].pid}\n", encoding="ascii")

    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("WAITING")
        followed = Followed(daemon)
        come(daemon, followed, "oci:one", made["runc"].start)
        come(daemon, followed, "oci:other", made["crun"].start)
        come(daemon, followed, "engine:one", made["docker"].start)
        come(daemon, followed, "engine:other", made["podman"].start)
        come(daemon, followed, "file:one", write_pidfile)
        found = {name: agent["container_pid"] for name, agent in daemon.agents().items()}
    assert [found[name] for name in ("oci:one", "oci:other", "engine:one", "engine:other")] == [
        made[kind].pid for kind in ENGINES
    ]


def test_podman_s_service_reports_too(tmp_path: Path, podman_container: Factory, podman_service: Any) -> None:
    web = podman_container(start=False)
    web.create()
    with Nsbridged(tmp_path, waiting(web.spec, f"pidfile:{tmp_path}/none")) as daemon:
        followed = Followed(daemon)
        come(daemon, followed, "w:one", web.start)


def test_a_restarted_dockerd_is_watched_again(
    tmp_path: Path, docker_daemon: DockerDaemon, docker_container: Factory
) -> None:
    """The log has one line that it cannot be watched meanwhile."""
    web = docker_container()
    with Nsbridged(tmp_path, waiting(web.spec, "docker:nobody")) as daemon:
        followed = Followed(daemon)
        daemon.wait_for("RUNNING", "w:one")
        docker_daemon.end_service()
        followed.until("w:one", "WAITING")
        wait_until(lambda: "docker cannot be watched" in daemon.said(), "the log says that dockerd is not there")
        docker_daemon.start()
        wait_until(lambda: "docker is watched again" in daemon.said(), "dockerd is watched again")
        web.start()
        followed.until("w:one", "RUNNING", SOON)
        assert daemon.said().count("docker cannot be watched") == 1


def test_a_running_container_that_gets_the_name_is_attached(tmp_path: Path, docker_container: Factory) -> None:
    web = docker_container()
    with Nsbridged(tmp_path, waiting(f"docker:{web.name}-new", "docker:nobody")) as daemon:
        followed = Followed(daemon)
        come(daemon, followed, "w:one", lambda: web.engine.command("rename", web.name, f"{web.name}-new"))


def test_a_container_restarted_faster_than_polling_is_reattached(tmp_path: Path, docker_container: Factory) -> None:
    """The engine restarts it without a pause; a paused one is not away."""
    web = docker_container()
    with Nsbridged(tmp_path, waiting(web.spec, "docker:nobody")) as daemon:
        daemon.wait_for("RUNNING", "w:one")
        followed = Followed(daemon)
        for _ in range(3):
            web.engine.command("restart", "--time=0", web.name)
            followed.until("w:one", "WAITING", SOON)
            followed.until("w:one", "RUNNING", SOON)
            web.start()  # which only looks for its new init
            assert daemon.agents()["w:one"]["container_pid"] == web.pid
        before = daemon.agents()["w:one"]
        web.pause()
        web.resume()
        after = daemon.agents()["w:one"]
        assert (after["state"], after["pid"], after["restarts"]) == ("RUNNING", before["pid"], 0)


def test_a_container_whose_init_ends_at_once_costs_no_restart(tmp_path: Path, room: Room) -> None:
    """Also when it comes and goes again and again."""
    brief = RuncContainer(Program([BUSYBOX, "true"]), room, tmp_path)
    try:
        with Nsbridged(tmp_path, waiting(brief.spec, f"pidfile:{tmp_path}/none")) as daemon:
            daemon.wait_for("WAITING")
            for _ in range(5):
                brief.start()
                brief.stop()
            daemon.wait_for("WAITING")
            assert daemon.agents()["w:one"]["restarts"] == 0
            brief.program = Program()
            (brief.rootfs / "srv").mkdir(exist_ok=True)
            brief.start()
            daemon.wait_for("RUNNING", "w:one")
    finally:
        brief.delete()


def test_a_queue_that_died_with_its_container_is_awaited(tmp_path: Path, runc_container: Factory) -> None:
    """The messages wait; the container's program makes the queue. (Made by nsbridge: test_processes.py.)"""
    web, legacy = runc_container(), runc_container()
    routes = route(web.spec, legacy.spec).replace("create = true", "create = false")
    with Nsbridged(tmp_path, routes) as daemon:
        followed = Followed(daemon)
        daemon.wait_for("RUNNING")
        for number in range(2):
            put_into_spool(web.rootfs / "srv/out", [b"%d" % number])
            wait_until(lambda: "0x51" in daemon.agents()["r:queue"]["detail"], "the queue is awaited")
            with Receiver(legacy, 0x51, 1) as receiver:
                assert receiver.messages() == [Sent(7, b"%d" % number)]
            wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "it is confirmed")
            legacy.stop()
            followed.until("r:queue", "WAITING", SOON)
            legacy.start()
            followed.until("r:queue", "RUNNING", SOON)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_queue_removed_beneath_its_agent_is_logged_and_remade(
    tmp_path: Path, unshare_container: Factory, delivery: str
) -> None:
    """Any permitted program may remove it: both sides report it, and continue with the new one."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", f'[route.r]\ndelivery = "{delivery}"\n', 1)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        wait_until(lambda: "queue 0x52 was missing and is made" in daemon.said(), "both queues are made")
        for key in ("0x51", "0x52"):
            run(["nsenter", f"--target={legacy.pid}", "--ipc", "--", "ipcrm", "-Q", key])
        put_into_spool(web.rootfs / "srv/out", [b"into the new one"])
        with Receiver(legacy, 0x51, 1) as receiver:
            assert receiver.messages() == [Sent(7, b"into the new one")]
        for key in ("0x51", "0x52"):
            line = f"WARNING r:queue queue {key} was removed, with what was in it"
            wait_until(lambda line=line: line in daemon.said(), line)  # type: ignore[misc]
        made = "INFO r:queue queue 0x52 was missing and is made (create = true), mode 0660, owner 0:0"
        wait_until(lambda: daemon.said().count(made) == 2, "the one that it takes from is made again")


# -- removal


@contextmanager
def leaving(daemon: Nsbridged, *, are_kept: bool) -> Iterator[list[int]]:
    """Yield the pids of the agents, which end after this context. If they are kept, the supervisor is stopped in it."""
    daemon.wait_for("RUNNING")
    inside = [agent["pid"] for agent in daemon.agents().values()]
    if are_kept:
        os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield inside
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    for pid in inside:
        wait_dead(pid, 1.0)


@pytest.mark.parametrize("agent", ["leaves", "is kept inside"])
def test_runc_delete_does_not_wait_for_an_agent(tmp_path: Path, runc_container: Factory, agent: str) -> None:
    """After init has ended, and by force while it runs. A stopped supervisor cannot take its agent out."""
    web, legacy = runc_container(), runc_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        with leaving(daemon, are_kept=agent == "is kept inside") as inside:
            web.kill()
            began = time.monotonic()
            web._runtime("delete", web.name)
            ended = time.monotonic()
            legacy._runtime("delete", "--force", legacy.name)
            forced = time.monotonic()
            if agent == "is kept inside":
                assert all(psutil.pid_exists(pid) for pid in inside)
        print(f"runc delete {(ended - began) * 1e3:.0f} ms, by force {(forced - ended) * 1e3:.0f} ms")
        assert ended - began < crowd()
        assert forced - ended < crowd()


@pytest.mark.parametrize("agent", ["leaves", "is kept inside"])
def test_docker_rm_does_not_wait_for_an_agent(tmp_path: Path, docker_container: Factory, agent: str) -> None:
    """It is removed by force while it runs, and after a stop; the directories are gone as well."""
    web, legacy = docker_container(), docker_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        with leaving(daemon, are_kept=agent == "is kept inside"):
            began = time.monotonic()
            web.engine.command("rm", "--force", web.name)
            forced = time.monotonic()
            legacy.engine.command("stop", "--time=5", legacy.name)
            stopped = time.monotonic()
            legacy.engine.command("rm", legacy.name)
            removed = time.monotonic()
        print(f"docker rm -f {forced - began:.2f} s, stop {stopped - forced:.2f} s, rm {removed - stopped:.2f} s")
        assert max(forced - began, stopped - forced, removed - stopped) < 4.0


def test_podman_s_event_reader_dies_with_a_killed_supervisor(
    tmp_path: Path, podman: Any, podman_container: Factory
) -> None:
    """It is podman's own command, which nobody else would end."""
    with Nsbridged(tmp_path, waiting("podman:nobody", "podman:nobody-else")) as daemon:

        def listening() -> list[psutil.Process]:
            return [child for child in psutil.Process(daemon.pid).children() if "events" in child.cmdline()]

        wait_until(listening, "podman is listened to")
        assert listening()[0].exe() == tool("podman")
        for pid in daemon.kill():
            wait_dead(pid, 1.0)
