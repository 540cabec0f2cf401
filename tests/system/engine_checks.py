"""Checks that every engine which names containers must pass, for the tests of single engines."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import ContainerProcess, Found, NotRunning, read_stat
from tests.system import comings
from tests.system.comings import restart_under_load
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.room import crowd, wait_dead
from tests.system.storm_outcome import EXACTLY_ONCE, Plan
from tests.system.test_arrivals import SOON, come, waiting
from tests.system.test_relay import route

REMOVED_WITHIN = 4.0  # seconds, for one container, on a busy machine
BACK_WITHIN = 0.5  # seconds, median of a test beside others; the long form (`make comings`) is held to 0.2


def check_life(web: EngineContainer) -> None:
    """Check a container that is made and has not been started: found while it runs, with its new init, listed."""
    kind = str(web.kind)
    with pytest.raises(NotRunning, match=f'container "nowhere" is not known to {kind}'):
        containers.locate(Container(web.kind, "nowhere"))
    with pytest.raises(NotRunning):
        containers.locate(web.container)
    web.start()
    found = containers.locate(web.container)
    assert found == Found(web.pid, read_stat(web.pid).start_time, "")
    (row,) = [row for row in listing.list_containers() if row.pid == web.pid]
    assert (row.name, row.state) == (web.spec, "running")
    assert row.ipc_inode == os.stat(f"/proc/{web.pid}/ns/ipc").st_ino
    assert not row.mnt_is_own
    web.kill()
    with pytest.raises(NotRunning):
        containers.locate(web.container)
    web.start()
    again = containers.locate(web.container)
    assert (again.pid, again.is_same(found)) == (web.pid, False)
    ContainerProcess.open(again).close()
    with pytest.raises(NotRunning):
        ContainerProcess.open(found)


def check_seen_to_come(directory: Path, web: EngineContainer) -> None:
    """Check that a container, made and not started, is attached long before it would have been looked for."""
    with Nsbridged(directory, waiting(web.spec, f"pidfile:{directory}/none")) as daemon:
        daemon.wait_for("WAITING")
        come(daemon, Followed(daemon), "w:one", web.start)
        assert daemon.agents()["w:one"]["container_pid"] == web.pid


def check_removal(directory: Path, web: EngineContainer, legacy: EngineContainer) -> None:
    """Check that two running containers can be removed at once. A stopped supervisor cannot take its agents out."""
    with Nsbridged(directory, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        inside = [agent["pid"] for agent in daemon.agents().values()]
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            web.delete()
            legacy.delete()
            took = time.monotonic() - began
            assert all(psutil.pid_exists(pid) for pid in inside)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        print(f"two containers removed in {took:.2f} s")
        assert took < 2 * REMOVED_WITHIN * crowd()
        for pid in inside:
            wait_dead(pid, SOON)


def check_restarts(
    engine: str,
    directory: Path,
    pair: Sequence[EngineContainer],
    strikes: int = 4,
    back_within: float = BACK_WITHIN,
) -> None:
    """Restart both containers of a route under load: nothing is lost or repeated, and they are attached again soon."""
    plan = Plan(comings.PAIR, EXACTLY_ONCE, strikes, seed=7, pause=1000)
    came = restart_under_load(engine, directory, pair, plan)
    print(engine, {name: [round(1000 * delay) for delay in delays] for name, delays in came.delays.items()}, "ms")
    assert came.outcome.problems() == []
    assert len(came.all_delays) == strikes
    assert statistics.median(came.all_delays) < back_within * crowd()
