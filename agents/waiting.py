"""Reports to the supervisor that the agent has begun to wait, so that log and events have the reason within a second.

A reason may come and go with every message (a queue that is full again and again). So a reason is reported once it has
lasted for AFTER; a timer runs only while there is one to be reported. The supervisor reads the reason itself from the
scoreboard, and notices its end at one of its rounds (supervisor/health/check.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nsbridge.agents.loop import Timer

AFTER = 0.5  # seconds


class Timers(Protocol):
    """The part of the loop that is used here."""

    def now(self) -> float:
        """See Loop."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """See Loop."""
        ...


class WaitReport:
    """The reasons of both sides. `show` puts one where the supervisor can read it, `report` makes it look there."""

    def __init__(self, loop: Timers, show: Callable[[str, str], None], report: Callable[[], object]) -> None:
        self._loop = loop
        self._show = show
        self._report = report
        self._reasons = {"out": "", "in": ""}
        self._since = 0.0  # when the agent began to wait
        self._timer: Timer | None = None

    def set(self, side: str, reason: str) -> None:
        """Show why the `out` or `in` side waits; empty if it does not."""
        before = self._reasons[side]
        self._show(side, reason)
        if reason == before:
            return
        if not any(self._reasons.values()):
            self._since = self._loop.now()
        self._reasons[side] = reason
        if reason and self._timer is None:
            self._timer = self._loop.call_later(AFTER, self._due)

    def _due(self) -> None:
        self._timer = None
        if not any(self._reasons.values()):
            return
        left = self._since + AFTER - self._loop.now()
        if left > 0:
            self._timer = self._loop.call_later(left, self._due)
        else:
            self._report()
