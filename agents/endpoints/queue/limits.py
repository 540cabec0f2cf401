"""The longest message that a queue takes, now and formerly: a longer one waits or becomes a dead letter.

A message that was always too long is a dead letter. But the queue's owner may lower msg_qbytes at any time, and the
namespace's owner kernel.msgmax. Then every message would become a dead letter, though the route worked a moment ago. So
the sink's journal keeps the largest limit of this queue, and a message within that limit waits.
"""

from __future__ import annotations

from contextlib import suppress

from nsbridge.agents import queuestatus
from nsbridge.agents.endpoints.queue.cells import LARGEST, LARGEST_OF
from nsbridge.agents.endpoints.queue.queue import Queue, size_of, too_long
from nsbridge.agents.journal.sinkjournal import SinkJournal

UNKNOWN = 1 << 40  # bytes: stands for a limit that we may not read; the kernel decides


class QueueLimits:
    """The limits of one sink's queue; asked when a queue is opened and when it refuses a message."""

    def __init__(self, journal: SinkJournal) -> None:
        self._cells = journal.cells
        self._seen = (0, 0)  # the id of the queue that was looked at last, and its limit
        self.largest = 0  # bytes known to fit: for a longer message ask `takes` first

    def look(self, queue: Queue) -> int:
        """Return the queue's limit in bytes (msg_qbytes), UNKNOWN if we may not read it; note the largest."""
        limit = size_of(queue) or UNKNOWN
        if self._seen != (queue.id, limit):  # write only on change: a full queue is read often
            self._seen = (queue.id, limit)
            self._note(queue.id, min(limit, _longest()))
        return limit

    def takes(self, queue: Queue, size: int) -> bool:
        """True if a message of `size` bytes is within the limits now, that of the namespace too."""
        limit = min(self.look(queue), _longest())
        self._note(queue.id, limit)
        return size <= limit

    def _note(self, queue_id: int, limit: int) -> None:
        cells = self._cells
        if cells[LARGEST_OF] != queue_id + 1:
            cells[LARGEST] = 0
            cells[LARGEST_OF] = queue_id + 1
        cells[LARGEST] = self.largest = max(cells[LARGEST], limit)

    def shrunk(self, queue: Queue, size: int) -> str:
        """Return why the queue does not take `size` bytes now, if it once did; empty if it does, or never did."""
        if self.takes(queue, size) or size > self.largest:
            return ""
        return f"{too_long(size, queue.id)}; the limit was larger before, so the message waits: raise it again"

    def refusal(self, queue: Queue, size: int, max_message: int) -> tuple[str, bool]:
        """Return why the queue does not take a message of `size` bytes, and whether it may take it later."""
        if size > max_message:
            return f"{size} bytes are more than max_message = {max_message} of this agent", False
        if why := self.shrunk(queue, size):
            return why, True
        return too_long(size, queue.id), False


def _longest() -> int:
    with suppress(OSError):
        return queuestatus.longest_message()
    return UNKNOWN
