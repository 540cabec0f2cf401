"""A living agent as its supervisor holds it, and how much it may say."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from nsbridge.agents.fork import Child

_LOG_LINES = 50  # that an agent may log at once
_LOG_REFILL = 10.0  # seconds


@dataclass(slots=True)
class AgentProcess:
    """One process; times are of the loop's clock."""

    child: Child
    channel: socket.socket  # the supervisor's end of its control channel
    started: float
    ready_since: float | None = None
    last_words: str = ""
    drained: bool = False
    told_to_exit: bool = False


class LineBudget:
    """How many lines an agent may log: a bucket of _LOG_LINES that is refilled in _LOG_REFILL seconds."""

    def __init__(self) -> None:
        self._left = float(_LOG_LINES)
        self._at = 0.0

    def spend(self, now: float) -> bool:
        """Whether one more line may be logged now."""
        self._left = min(_LOG_LINES, self._left + (now - self._at) * _LOG_LINES / _LOG_REFILL)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
