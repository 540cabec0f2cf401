"""The delay between two attempts of an endpoint that waits: longer after each failure, shorter after each success."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from nsbridge.agents.endpoints.base import AgentApi, Waiter
from tests.agent_life import FakeLoop


class Attempts:
    """An endpoint whose attempts succeed or fail as the test says."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.reasons: list[str] = []
        host = SimpleNamespace(loop=self.loop, blocked=lambda _side, reason: self.reasons.append(reason))
        self.waiter = Waiter(cast(AgentApi, host), "in", lambda: None)

    def fails(self) -> float:
        """Wait, until the next attempt; return the seconds."""
        before = self.loop.now()
        self.waiter.wait("the disk is full")
        self.loop.fire()
        return round(self.loop.now() - before, 6)


def test_delay_doubles_up_to_a_second() -> None:
    attempts = Attempts()
    assert [attempts.fails() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_delay_shrinks_while_every_attempt_makes_progress() -> None:
    """A reader makes room on a full disk bit by bit."""
    attempts = Attempts()
    for _ in range(7):
        attempts.fails()
    delays = []
    for _ in range(6):
        attempts.waiter.done()
        delays.append(attempts.fails())
    assert delays == [0.25, 0.125, 0.0625, 0.05, 0.05, 0.05]


def test_delay_after_a_long_success_is_the_first_one() -> None:
    attempts = Attempts()
    for _ in range(7):
        attempts.fails()
    attempts.waiter.done()
    attempts.loop.time += 10.0
    assert attempts.fails() == 0.05


def test_reason_is_shown_until_it_ends() -> None:
    attempts = Attempts()
    attempts.fails()
    attempts.waiter.done()
    attempts.waiter.done()
    assert attempts.reasons == ["the disk is full", ""]
