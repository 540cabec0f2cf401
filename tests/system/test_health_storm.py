"""Supervision under full load: the short forms of health_storm.py, whose long one `make health` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.health_storm import Timed, summary
from tests.system.nsbridged import Nsbridged
from tests.system.outer_runner import UnderRunner

pytestmark = pytest.mark.alone  # it makes the load itself

SEED = 11
DEADLINE = 1.5  # seconds


def test_every_stopped_process_is_replaced_within_the_deadline() -> None:
    """Agents and senders, while messages flow both ways: none is lost, repeated or moved."""
    timed = Timed(DEADLINE, SEED)
    outcome = timed.run(timed.stop_agents(3))
    print(summary("dead after SIGSTOP", timed.noticed), "\n", summary("messages again", timed.recovered))
    assert outcome.problems() == []
    assert max(timed.noticed) <= DEADLINE


def under_runit(directory: Path, routes: str, more: str) -> UnderRunner:
    return UnderRunner(directory, routes, more, runit=True)


@pytest.mark.parametrize(("run_daemon", "kills"), [(UnderRunner, 4), (under_runit, 2)], ids=["sh", "runit"])
def test_a_killed_supervisor_leaves_no_orphan_double_or_loss(
    run_daemon: Callable[[Path, str, str], Nsbridged], kills: int
) -> None:
    """Under a runner that starts the next at once: everything of the one before is dead by then."""
    timed = Timed(15.0, SEED)
    outcome = timed.run(timed.kill_supervisor(kills), run_daemon)
    print(summary("its last process dead", timed.noticed), "\n", summary("the next one's running", timed.recovered))
    assert outcome.problems() == []


def test_no_agent_is_taken_for_wedged_at_full_load_on_busy_cores() -> None:
    """For a few seconds, with a deadline that is as much shorter."""
    timed = Timed(3.0, SEED)
    outcome = timed.run(timed.keep_calm(5.0))
    print(f"longest silence {max(timed.silent):.2f} s")
    assert outcome.problems() == []
