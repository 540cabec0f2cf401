"""The use of a POSIX queue, for the report of queues that no program uses (agents/endpoints/unused.py).

The kernel keeps no time of the last receive: each call changes all times of a queue. So the agent compares how many
messages there are with how many there would be, had it alone moved some. Any other number shows that a program moved
messages, so its name for the queue is the same.
"""

from __future__ import annotations

import os

from nsbridge.agents.endpoints.mqueue.calls import messages_in
from nsbridge.agents.endpoints.mqueue.mqueue import OpenQueue
from nsbridge.agents.endpoints.unused import Use


class WatchedName:
    """The queue that one side has open. See WatchedQueue."""

    found_by = "name"

    def __init__(self, queue: OpenQueue) -> None:
        self._queue = queue
        self._id = -1
        self._messages = self._moved = 0  # what the last look found

    def made(self) -> int | None:
        """See WatchedQueue."""
        made, self._queue.made = self._queue.made, None
        if made is not None:
            self._id, self._messages, self._moved = made, 0, 0
        return made

    def use(self) -> Use | None:
        """See WatchedQueue."""
        queue = self._queue
        if queue.fd < 0:
            return None
        found, messages = os.fstat(queue.fd).st_ino, messages_in(queue.fd)
        expected = self._messages + queue.moved - self._moved
        is_used = found == self._id and messages != expected
        self._id, self._messages, self._moved = found, messages, queue.moved
        return Use(found, messages, is_used)
