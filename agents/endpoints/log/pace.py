"""Limits the time that an agent spends on events without messages. Pure: no I/O.

A program can rename, truncate or create files as fast as it likes, and the agent must look each time. Looks without a
message may take a tenth of the time on average. A short burst is free, so an honest program never waits.
"""

from __future__ import annotations

_SHARE = 0.1
_BURST = 0.1  # seconds of work
_LONGEST = 1.0  # seconds


class Pace:
    """A bucket of seconds that is refilled with _SHARE of the time."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._at = 0.0

    def pause(self, begun: float, ended: float) -> float:
        """Return how many seconds to wait, after work from `begun` to `ended` that brought no message; 0 for none."""
        self._spent = max(0.0, self._spent - (begun - self._at) * _SHARE) + ended - begun
        self._at = begun
        excess = self._spent - _BURST
        return min(_LONGEST, excess / _SHARE) if excess > 0 else 0.0
