"""The sink of a queue whose messages the kernel counts: exactly once, even if others use it (journal/counted.py).

It sends as the at-least-once sink does, but notes a batch in place of each message. After a kill the kernel's count
says how far it had come.
"""

from __future__ import annotations

from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.doubt import OF_ANOTHER_LIFE, decide, messages
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.evidence import QueueEvidence
from nsbridge.agents.endpoints.queue.queue import Queue, QueueOwner
from nsbridge.agents.endpoints.queue.sink import QueueSink
from nsbridge.agents.journal.counted import COUNT_LIFE, SentCount
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt


class CountedQueueSink(QueueSink):
    """Hands each message to a queue exactly once."""

    _notes_each = False

    def __init__(
        self,
        host: AgentApi,
        config: QueueEndpoint,
        key: int,
        count: SentCount,
        in_doubt: InDoubt,
        owner: QueueOwner | None = None,
    ) -> None:
        journal = count.journal
        super().__init__(host, config, key, journal, owner)
        self._count = count
        # A former agent with senders left other evidence, which needs the queue.
        self._former = None if journal.cells[COUNT_LIFE] else QueueEvidence(host, key, self._type, journal, in_doubt)
        if self._former is None:
            self._recover(in_doubt)

    def may_adopt(self) -> bool:
        """See Sink: the thread's message keeps its number."""
        return self._pending is None

    def _recover(self, in_doubt: InDoubt) -> None:
        found, journal = self._count.recover(), self._journal
        if found.certain:
            self._host.log(
                "info", f"{messages(found.certain)} up to {journal.handed} had been sent when the agent was killed"
            )
        if found.doubtful:
            self._count.settled(decide(self._host, journal, found.doubtful, in_doubt))

    def _opened(self, queue: Queue) -> None:
        """Resolve what a former agent with senders left. Raises Blocked."""
        self._free = 0
        if self._former is not None and not self._journal.cells[COUNT_LIFE]:
            self._former.examine(queue)

    def put(self, run: Run) -> int:
        """Send messages while there is room; then let the thread wait for room."""
        count, journal = 0, self._journal
        while count < len(run.bodies) and self._queue is not None and self._pending is None:
            rest = run.after(count)
            if rest.epoch != journal.epoch:  # its numbers now belong to others
                if not self._bury(rest.one(0), OF_ANOTHER_LIFE):
                    break
                count += 1
            elif rest.first <= journal.handed:  # found out after the greeting
                self._host.handed(rest.one(0))
                count += 1
            elif self._former is not None and self._former.resolve(rest, self._queue):
                count += 1
            else:
                part = self._leave_room(self._queue, rest) if self._shared else rest
                some = super().put(part) if part is not None else 0
                count += some
                if part is None or some < len(part.bodies):
                    break
        return count

    def _send(self, queue: Queue, run: Run) -> tuple[int, int]:
        self._begin(run.last)
        return super()._send(queue, run)

    def _wait_in_thread(self, one: Run) -> None:
        self._begin(one.last)
        super()._wait_in_thread(one)

    def _begin(self, last: int) -> None:
        if self._former is not None:
            self._former = None
            self._count.settled(self._journal.handed)
        self._count.begin(last)
