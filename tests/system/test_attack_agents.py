"""An agent that was taken over, with all the kernel's defences on, against what the other routes need of the host.

The kind of fault: what an agent holds open of the host is bounded by what can be seen in a directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.hostile import Variant
from tests.system.room import run, wait_until

ROUTE = """
[route.hides.agent.rogue]
container = "{0}"
log = {{ in = "/srv/in.log" }}
[route.hides.agent.peer]
container = "{1}"
spool = {{ out = "/srv/out" }}
"""


def test_agent_that_fills_state_dir_with_what_no_directory_shows(tmp_path: Path, runc_container: Factory) -> None:
    """A file that was unlinked while it is open. An agent with a log may write one of any size, since its log may have
    any; another agent may hold a thousand. All of state_dir was full, and nobody was told who fills it.
    """
    evil, peer = runc_container(), runc_container()
    state = tmp_path / "state"
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", state])
    try:
        with Variant(tmp_path, ROUTE.format(evil.spec, peer.spec), "rogue") as daemon:
            wait_until(lambda: _free(state) < 1 << 20 or _is_stopped(daemon), "it has written", 30)
            wait_until(lambda: _is_stopped(daemon), f"the agent is stopped; {daemon.agents()['hides:rogue']}", 20)
            wait_until(lambda: _free(state) > 200 << 20, "there is room again", 20)
            assert daemon.agents()["hides:peer"]["state"] == "RUNNING"
    finally:
        run(["umount", "-l", str(state)])


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _is_stopped(daemon: Variant) -> bool:
    return bool(daemon.agents()["hides:rogue"]["state"] == "FATAL")
