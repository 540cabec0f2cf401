"""The restarts of many agents that die at once are spread (supervisor/lifecycle/startqueue.py)."""

from __future__ import annotations

import pytest

from nsbridge.supervisor.lifecycle.startqueue import BURST, RATE, StartQueue

NOW = 1000.0


def test_single_restarts_are_not_delayed() -> None:
    queue = StartQueue()
    assert [queue.delay(NOW + number / RATE) for number in range(1000)] == [0.0] * 1000


def test_mass_kill_is_answered_in_part_at_once() -> None:
    """400 agents: 200 restart now, the others in the order of their deaths within four seconds."""
    queue = StartQueue()
    delays = [queue.delay(NOW) for _ in range(400)]
    assert delays[: int(BURST)] == [0.0] * int(BURST)
    assert delays[int(BURST) :] == sorted(delays[int(BURST) :])
    assert delays[-1] == pytest.approx(4.0)


def test_budget_refills() -> None:
    queue = StartQueue()
    for _ in range(400):
        queue.delay(NOW)
    assert queue.delay(NOW + 4.0) == pytest.approx(1 / RATE)
    assert queue.delay(NOW + 100.0) == 0.0


def test_clock_never_steps_back() -> None:
    """A monotonic clock does not; a wrong caller must not make the queue endless."""
    queue = StartQueue()
    queue.delay(NOW)
    assert queue.delay(NOW - 500.0) == 0.0
