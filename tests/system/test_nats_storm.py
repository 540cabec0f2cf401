"""Two hosts and a cluster under kills: the short form of `make nats-storm`."""

from __future__ import annotations

from pathlib import Path

from tests.system.nats_storm import Storm

VICTIMS = ("agent", "agent", "supervisor", "agent", "server", "agent", "supervisor")


def test_nothing_is_lost_or_repeated_between_two_hosts(tmp_path: Path) -> None:
    done = Storm(tmp_path, VICTIMS, messages=1500, seed=3).run()
    assert "0 lost, 0 repeated, in order, 0 in doubt" in done
