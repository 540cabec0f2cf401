"""A compromised agent makes the supervisor work or store: by when it would be late, and by what it leaves at its death.

The kind of fault: something that happens once in an honest agent's life has no limit, or a deadline is the agent's to
choose.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.system import rogue
from tests.system.conftest import Factory
from tests.system.hostile import Variant
from tests.system.hostile_scene import Scene, healthy
from tests.system.room import wait_until
from tests.system.test_rogue_agents import rogue_route

FOR = 1.0  # seconds
LIVES = 8
KEPT = 4  # damaged journals of one side


def cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_an_agent_at_its_deadline_keeps_nobody_busy(tmp_path: Path, unshare_container: Factory) -> None:
    evil, peer = unshare_container(), unshare_container()
    (peer.rootfs / "srv/h").mkdir()
    routes = rogue_route("late", evil.spec, peer.spec) + healthy(peer.spec)
    with Variant(tmp_path, routes, "rogue", f'health = {{ deadline = "{rogue.DEADLINE}s" }}') as daemon:
        daemon.wait_for("RUNNING", "late:rogue", "h:one", "h:two")
        before = cpu(daemon.pid)
        time.sleep(FOR)
        used = cpu(daemon.pid) - before
        print(f"{used:.2f} s of a processor in {FOR} s")
        assert used < FOR / 10
        Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv").healthy_passes()


def test_damaged_journals_of_many_lives_are_few(tmp_path: Path, unshare_container: Factory) -> None:
    evil, peer = unshare_container(), unshare_container()
    routes = rogue_route("damages", evil.spec, peer.spec)
    with Variant(tmp_path, routes, "rogue,unfrozen") as daemon:
        wait_until(lambda: daemon.agents()["damages:rogue"]["restarts"] > LIVES, "it has died often")
        kept = [path.name for path in (tmp_path / "state/journal/damages").glob("rogue.*.damaged-*")]
        assert 0 < len(kept) <= 2 * KEPT, "one may just be moved aside"
