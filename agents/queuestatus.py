"""Status of a SysV queue, as msgctl(2) reports it."""

from __future__ import annotations

from typing import NamedTuple


class QueueStatus(NamedTuple):
    """Status of a SysV queue, from the kernel."""

    used: int  # bytes in it
    messages: int  # in it
    limit: int  # bytes that it takes

    def has_room(self, size: int) -> bool:
        """True if a message of `size` bytes fits in: a queue is full by bytes or by number. msgsnd(2)."""
        return self.used + size <= self.limit and self.messages < self.limit
