"""The use of a SysV queue, for the report of queues that no program uses (agents/endpoints/unused.py).

The kernel keeps the time of a queue's last msgrcv and of its last msgsnd, 0 before the first. MSG_COPY, by which an
agent looks at messages, changes neither.
"""

from __future__ import annotations

from nsbridge.agents.endpoints.queue.queue import QueueOwner, use_of
from nsbridge.agents.endpoints.unused import Use


class WatchedKey:
    """The queue with a key. See WatchedQueue."""

    found_by = "key"

    def __init__(self, side: str, key: int, owner: QueueOwner) -> None:
        self._side = side
        self._key = key
        self._owner = owner

    def made(self) -> int | None:
        """See WatchedQueue."""
        return self._owner.made.pop(self._key, None)

    def use(self) -> Use | None:
        """See WatchedQueue."""
        found = use_of(self._key)
        if found is None:
            return None
        return Use(found.id, found.messages, found.was_read if self._side == "in" else found.was_sent_to)
