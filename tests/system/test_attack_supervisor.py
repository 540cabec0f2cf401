"""A compromised agent makes the supervisor's host store what it leaves at its death.

The kind of fault: something that happens once in an honest agent's life has no limit.
"""

from __future__ import annotations

from pathlib import Path

from nsbridge.agents.journal.journalfile import MOST_ASIDE
from tests.system.conftest import Factory
from tests.system.hostile import Variant
from tests.system.room import wait_until
from tests.system.test_rogue_agents import rogue_route

LIVES = 8


def test_damaged_journals_of_many_lives_are_few(tmp_path: Path, unshare_container: Factory) -> None:
    evil, peer = unshare_container(), unshare_container()
    routes = rogue_route("damages", evil.spec, peer.spec)
    with Variant(tmp_path, routes, "rogue,unfrozen") as daemon:
        wait_until(lambda: daemon.agents()["damages:rogue"]["restarts"] > LIVES, "it has died often")
        kept = [path.name for path in (tmp_path / "state/journal/damages").glob("rogue.*.damaged-*")]
        assert 0 < len(kept) <= 2 * (MOST_ASIDE + 1), "one of each side may just be moved aside"
