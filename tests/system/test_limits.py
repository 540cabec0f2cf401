"""Small limits of the daemon's process: what fits works, what does not is one line: which limit, where, what to set.

The kind: an errno that says nothing of its limit (EMFILE, EFBIG, EAGAIN), in an agent, for its threads and senders, and
in the supervisor. agents/limits.py has them all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import tool, wait_until
from tests.system.test_daemon_faults import relays
from tests.system.test_relay import route

USER = 51000 + os.getpid() % 1000


@pytest.fixture
def pair(unshare_container: Factory) -> tuple[Any, Any]:
    """Return the container with files, and the one with queues."""
    return unshare_container(), unshare_container()


def limited(directory: Path, routes: str, limit: str) -> Nsbridged:
    """Return a daemon whose soft and hard limit is set before it starts: an option of prlimit(1)."""
    return Nsbridged(directory, routes, through=[tool("prlimit"), limit])


@pytest.mark.parametrize("limit", [512, 150, 64])
def test_few_descriptors_are_enough(tmp_path: Path, pair: tuple[Any, Any], limit: int) -> None:
    with limited(tmp_path, route(pair[0].spec, pair[1].spec), f"--nofile={limit}") as daemon:
        daemon.wait_for("RUNNING")
        relays(daemon, pair)
        assert {agent["restarts"] for agent in daemon.agents().values()} == {0}
        needs = f"RLIMIT_NOFILE is {limit}, and the supervisor of 1 routes may need"
        assert (needs in daemon.said()) == (limit < 330)


def test_small_file_limit_is_named(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    with limited(tmp_path, route(pair[0].spec, pair[1].spec), "--fsize=8192") as daemon:
        daemon.wait_for("BACKOFF", "r:queue")
        detail = daemon.agents()["r:queue"]["detail"]
        assert f"journal {tmp_path}/state/journal/r/queue.out of " in detail
        assert "File too large (RLIMIT_FSIZE is " in detail
        assert "LimitFSIZE= in the unit, ulimit -f)" in detail


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_small_process_limit_is_named(tmp_path: Path, pair: tuple[Any, Any], delivery: str) -> None:
    """For the threads that wait for a queue, and for the processes that send into one."""
    routes = route(pair[0].spec, pair[1].spec).replace("[route.r]\n", f'[route.r]\ndelivery = "{delivery}"\n')
    routes += f'user = "{USER}:{USER}"\n'
    with limited(tmp_path, routes, "--nproc=1") as daemon:
        advice = f"(RLIMIT_NPROC is 1 processes of uid {USER}: raise it, LimitNPROC= in the unit, ulimit -u)"
        wait_until(lambda: advice in daemon.agents()["r:queue"]["detail"], "the limit is named", 10)
        assert "internal error" not in daemon.said()
