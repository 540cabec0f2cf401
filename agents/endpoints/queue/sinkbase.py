"""Holds what both sinks of a queue share: their queue, its limits, and the handling of a message that does not fit."""

from __future__ import annotations

from abc import abstractmethod
from itertools import accumulate, takewhile

from nsbridge.agents import queuestatus
from nsbridge.agents.endpoints.base import AgentApi, Blocked, Denied, Sink, Waiter
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.limits import QueueLimits
from nsbridge.agents.endpoints.queue.queue import Queue, QueueOwner, shown
from nsbridge.agents.endpoints.removals import Removals
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.wire import Run

_ROUTES = 4  # that may share a queue so that all together leave room for its answers
_LOOK_AGAIN = 0.002  # seconds until a half-full queue is looked at again: nothing reports when a message leaves it


class QueueSinkBase(Sink):
    """A sink of a queue; `_queue` is None while there is no queue that it may use."""

    def __init__(
        self, host: AgentApi, config: QueueEndpoint, key: int, journal: SinkJournal, owner: QueueOwner | None
    ) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.in_.type
        self._journal = journal
        self._owner = owner or QueueOwner(host, (key,), is_user_configured=True)
        self._queue: Queue | None = None
        self._limits = QueueLimits(journal)
        self._removals = Removals(host, shown(key))
        self._waiter = Waiter(host, "in", self._again)
        self._debt = Debt(host.loop.now)
        # Where a program answers through the same queue, a queue full of questions would leave it no room to.
        self._shared = config.out is not None and config.out.key == config.in_.key
        self._looks_again = False
        self._free = 0  # bytes that may be sent into a shared queue before it is looked at again

    @abstractmethod
    def _again(self) -> None:
        """Open the queue if there is none; then continue."""

    def _cannot_fit(self, queue: Queue, one: Run) -> bool:
        """Return True if the message is a dead letter now; False if it waits for the queue's limit, or for space."""
        why, may_fit_later = self._limits.refusal(queue, len(one.bodies[0]), self._config.max_message)
        if not may_fit_later:
            return self._bury(one, why)
        self._waiter.wait(f"{shown(self._key)}: {why}")
        return False

    def _bury(self, one: Run, why: str) -> bool:
        """Write the message as a dead letter. False: not now; the agent offers it again unless it was accepted."""
        return self._host.dead(one, shown(self._key), why)

    def _wait(self, reason: Blocked) -> None:
        self._waiter.wait(reason)
        if isinstance(reason, Denied):
            self._owner.check_later()

    def _leaves_room(self, queue: Queue, size: int, *, is_used: bool = False) -> bool:
        """Return True if half of the queue stays free for the program that answers; else `sink_ready` follows soon.

        A message that is larger than half fits into an empty queue, of which nothing `is_used` by messages under way.
        """
        try:
            status = queuestatus.queue_status(queue.id)
        except OSError:
            return True
        self._free = (status.limit // 2 - status.used) // _ROUTES
        if status.used + size <= status.limit // 2 or not (status.used or is_used):
            return True
        self._host.blocked("in", f"{shown(self._key)} is half full, the rest is for its answers")
        if not self._looks_again:
            self._looks_again = True
            self._host.loop.call_later(_LOOK_AGAIN, self._look_again)
        return False

    def _leave_room(self, queue: Queue, run: Run) -> Run | None:
        """Return the first messages of the run that leave half of a shared queue free; None: see `_leaves_room`.

        The queue is looked at once for several messages. Other routes may send into it meanwhile.
        """
        if run.size + len(run.bodies) > self._free:
            used = accumulate(len(body) + 1 for body in run.bodies)
            count = sum(1 for _ in takewhile(lambda size: size <= self._free, used))
            if not count and not self._leaves_room(queue, len(run.bodies[0])):
                return None
            run = run.before(count or 1)
        self._free -= run.size + len(run.bodies)
        return run

    def _look_again(self) -> None:
        self._looks_again = False
        self._host.blocked("in", "")
        self._host.sink_ready()
