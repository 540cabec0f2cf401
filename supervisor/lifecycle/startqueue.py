"""Spreads the restarts of many agents that died at once, so that the host is not busy with forks alone. No clock here.

A fork takes the supervisor some milliseconds, and an agent's start takes the host ten times that. If all agents are
killed at once, BURST of them start at once, and RATE a second follow. So the supervisor still answers, and the routes
that are back already relay. A single agent's death is answered at once, unless that many died just before.
"""

from __future__ import annotations

BURST = 200.0  # restarts
RATE = 50.0  # a second


class StartQueue:
    """The restarts of all agents of a daemon."""

    def __init__(self) -> None:
        self._left = BURST  # negative: so many wait
        self._at = 0.0  # when `_left` was that

    def delay(self, now: float) -> float:
        """Return the seconds until the next restart may happen; the caller keeps to it."""
        self._left = min(BURST, self._left + max(0.0, now - self._at) * RATE) - 1
        self._at = now
        return max(0.0, -self._left / RATE)
