"""Containers that change while they are served: paused, or without init while others of the namespaces live.

Renamed: test_renamed_containers.py. A checkpoint ends the container's processes or pauses them, and a restore makes new
ones, so both are among these. (Neither is tried: the CRIU 3.17 of Debian 12 does not run on Linux 6.18.)
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Followed, Nsbridged, kill_and_wait
from tests.system.room import LIMIT, wait_dead, wait_until
from tests.system.test_arrivals import SOON
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

_INIT = "sleep 2000 & echo $$ $!; exec sleep 1000"


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_agent_of_a_paused_container_serves_on(
    tmp_path: Path, docker_container: Factory, unshare_container: Factory
) -> None:
    """Only the container's own programs stand still: what they left is taken, and what comes waits for them."""
    web, legacy = docker_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon, Receiver(legacy, 0x51, 1) as receiver:
        daemon.wait_for("RUNNING")
        before = daemon.agents()["r:files"]["pid"]
        put_into_spool(web.rootfs / "srv/out", [b"out"])
        web.pause()
        try:
            assert receiver.messages() == [Sent(7, b"out")]
            send_all(legacy, 0x52, [Sent(1, b"in")])
            (path,) = wait_for_files(web.rootfs / "srv/in", 1)
            assert path.read_bytes() == b"in"
        finally:
            web.resume()
        after = daemon.agents()["r:files"]
        assert (after["state"], after["pid"], after["restarts"]) == ("RUNNING", before, 0)


def test_namespace_that_outlives_init_is_left(tmp_path: Path, unshare_container: Factory, cleanup: ExitStack) -> None:
    """Init is the container. Once it has ended, no agent stays; a new init in the same namespaces is served again."""
    files = unshare_container()
    first, other = _init(cleanup, "unshare", "--ipc", "--mount", "--propagation", "unchanged")
    pidfile = tmp_path / "legacy.pid"
    pidfile.write_text(f"{first}\n", encoding="ascii")
    with Nsbridged(tmp_path, route(files.spec, f"pidfile:{pidfile}")) as daemon:
        daemon.wait_for("RUNNING")
        followed = Followed(daemon)
        (files.rootfs / "srv/in").mkdir(exist_ok=True)
        put_into_spool(files.rootfs / "srv/out", [b"before"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the message is in the queue")
        agent = daemon.agents()["r:queue"]["pid"]
        kill_and_wait(first)
        followed.until("r:queue", "WAITING", SOON)
        assert Path(f"/proc/{other}").exists(), "another process of its namespaces lives"
        wait_dead(agent)
        put_into_spool(files.rootfs / "srv/out", [b"meanwhile"])

        second, _ = _init(cleanup, "nsenter", f"--target={other}", "--ipc", "--mount", "--")
        pidfile.write_text(f"{second}\n", encoding="ascii")
        followed.until("r:queue", "RUNNING", SOON)
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 2, "what came meanwhile is in the same queue")
        assert daemon.agents()["r:queue"]["container_pid"] == second


def _init(cleanup: ExitStack, *enter: str) -> tuple[int, int]:
    """Start an init, without a pid namespace, and another process there; return both pids."""
    process = cleanup.enter_context(subprocess.Popen([*enter, "sh", "-c", _INIT], stdout=subprocess.PIPE))
    assert process.stdout is not None
    first, other = map(int, process.stdout.readline().split())
    cleanup.callback(process.kill)
    cleanup.callback(subprocess.run, ["kill", "-KILL", str(other)], check=False, timeout=LIMIT)
    return first, other
