"""How long a message a queue takes, now and at any time before: what decides between a dead letter and a wait.

A message that no queue of this kind ever took is a dead letter. But the queue's owner may lower msg_qbytes at any time,
and the namespace's owner kernel.msgmax: then every message would become a dead letter, though the route worked a moment
ago. So the sink's journal keeps the largest limit that was seen of this queue, and a message within it is waited with.
"""

from __future__ import annotations

from contextlib import suppress

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue import too_long
from nsbridge.agents.sinkjournal import LARGEST, LARGEST_OF, SinkJournal

UNKNOWN = 1 << 40  # bytes, of a queue that may not be looked at: the kernel decides


class QueueLimits:
    """The limits of one sink's queue; asked when a queue is opened and when it refuses a message."""

    def __init__(self, journal: SinkJournal) -> None:
        self._cells = journal.cells

    def look(self, queue_id: int) -> int:
        """Return the bytes that the queue takes (msg_qbytes), UNKNOWN if it may not be looked at; note the largest."""
        limit = _bytes_of(queue_id)
        cells, largest = self._cells, min(limit, _longest())
        if cells[LARGEST_OF] != queue_id + 1:
            cells[LARGEST] = 0
            cells[LARGEST_OF] = queue_id + 1
        cells[LARGEST] = max(cells[LARGEST], largest)
        return limit

    def takes(self, queue_id: int, size: int) -> bool:
        """True if a message of `size` bytes is within the limits now."""
        return size <= min(self.look(queue_id), _longest())

    def shrunk(self, queue_id: int, size: int) -> str:
        """Return why the queue does not take `size` bytes now, if it once did; empty if it does, or never did."""
        if self.takes(queue_id, size) or size > self._cells[LARGEST]:
            return ""
        return f"{too_long(size, queue_id)}; it was larger before, so the message waits: raise it again"


def _bytes_of(queue_id: int) -> int:
    try:
        return linux.queue_status(queue_id).limit
    except OSError:
        return UNKNOWN


def _longest() -> int:
    with suppress(OSError):
        return linux.longest_message()
    return UNKNOWN
