"""The sink of a queue with `exactly-once`: decides which messages are offered to its two sender processes, and when.

offers.py sends; evidence.py finds out after a kill what had been sent.
"""

from __future__ import annotations

import errno
import os

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Denied, put_in_parts
from nsbridge.agents.endpoints.doubt import OF_ANOTHER_LIFE
from nsbridge.agents.endpoints.queue.cells import BEGUN, SENDERS
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.evidence import QueueEvidence, begun
from nsbridge.agents.endpoints.queue.offers import Offers
from nsbridge.agents.endpoints.queue.queue import (
    Queue,
    QueueOwner,
    has_room,
    is_there,
    no_permission,
    open_queue,
    shown,
    try_send,
)
from nsbridge.agents.endpoints.queue.senders import FAILED, FULL, QUEUE
from nsbridge.agents.endpoints.queue.sinkbase import QueueSinkBase
from nsbridge.agents.fork import has_stopped_child
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt


class ExactQueueSink(QueueSinkBase):
    """Hands each message to a queue exactly once."""

    def __init__(
        self,
        host: AgentApi,
        config: QueueEndpoint,
        key: int,
        journal: SinkJournal,
        in_doubt: InDoubt,
        owner: QueueOwner | None = None,
    ) -> None:
        super().__init__(host, config, key, journal, owner)
        self._evidence = QueueEvidence(host, key, self._type, journal, in_doubt)
        self._offers = Offers(host, config.max_message, journal, self._evidence, self._debt, self._noted)
        self._outbox, self._offered = self._offers.outbox, self._offers.runs
        self._known_limit = 0
        self._is_full = False

    def may_adopt(self) -> bool:
        """See Sink: a message is in its journal by its number alone."""
        return not self._offered

    def start(self) -> None:
        """Open the queue. The senders are forked a little later: the first message need not wait for them."""
        self._host.vouch(self._vouch)
        self._offers.start()
        self._again()

    def _vouch(self) -> float:
        """Return the time at which the senders last owed nothing.

        A sender must send what is offered. It is excused only while the queue is really full, or while this side waits.

        A sender may have been stopped after it reported a full queue, so its report is not enough.
        """
        cells = self._outbox.cells
        if has_stopped_child():
            owes = True
        elif not self._offered or self._queue is None or cells[FAILED]:
            owes = False
        else:
            owes = not cells[FULL] or has_room(self._queue.id, self._offered[0])
        return self._debt.since(owes=owes)

    def put(self, run: Run) -> int:
        """Offer them to the senders, which take turns."""
        return put_in_parts(run, self._put_some)

    def _put_some(self, run: Run) -> int:
        """Accept some of the first messages and return how many; 0 if it cannot take any now."""
        if self._queue is None or self._outbox.cells[FAILED]:
            return 0
        size = len(run.bodies[0])
        if run.epoch != self._journal.epoch:  # whose numbers mean others by now; it came before that source was lost
            return not self._offered and self._bury(run.one(0), OF_ANOTHER_LIFE)
        if run.first <= self._journal.handed:
            self._host.handed(run.one(0))  # found out after the greeting
            return 1
        if self._evidence.resolve(run, self._queue):
            return 1
        fitting = self._fitting(run)
        if not fitting:
            return not self._offered and self._cannot_fit(self._queue, run.one(0))  # in its turn
        if self._shared and (not self._leaves_room(self._queue, size, is_used=bool(self._offered)) or self._offered):
            return 0
        if not self._offers.pids and not self._offered and self._send_first(self._queue, run.one(0)):
            return 1
        return self._offers.offer(run.before(1 if self._shared else fitting), self._type or run.type or 1)

    def _fitting(self, run: Run) -> int:
        """Return how many of the first messages are not longer than the queue takes."""
        longest = max(map(len, run.bodies))
        if longest > self._limits.largest and self._queue is not None:
            self._limits.takes(self._queue, longest)  # notes a limit that was raised
        if longest <= self._known_limit:
            return len(run.bodies)
        sizes = map(len, run.bodies)
        return next((count for count, size in enumerate(sizes) if size > self._limit(size)), len(run.bodies))

    def _send_first(self, queue: Queue, one: Run) -> bool:
        """Send the message from the agent itself, as the sender 0 that is still to start; True if it was sent.

        This saves 6 ms after a start.
        """
        journal = self._journal
        if journal.last_sender == 0:
            return False  # it has sent one: the next is for the other sender
        mtype = self._type or one.type or 1
        self._evidence.intend(one, mtype)
        journal.cells[BEGUN] = begun(os.getpid(), one.first)
        journal.cells[SENDERS] = os.getpid()
        if try_send(queue.id, mtype, one.bodies[0]):
            journal.cells[SENDERS] = 0  # the senders find out what is in the way
            return False
        journal.sent(one.first, 0)
        self._host.handed(one)
        return True

    def _limit(self, size: int) -> int:
        """Return the longest message in bytes that both the queue and max_message allow."""
        if size > self._known_limit and self._queue is not None:
            self._known_limit = min(self._limits.look(self._queue), self._config.max_message)
        return self._known_limit

    def _again(self) -> None:
        """Open the queue if there is none; then continue where it stopped."""
        try:
            if self._queue is None:
                queue = open_queue(self._key, self._config, self._host, self._owner)
                self._evidence.examine(queue)
                self._queue = queue
                self._known_limit = 0
                self._limits.look(queue)
                self._outbox.cells[QUEUE] = queue.id
        except Blocked as reason:
            self._wait(reason)
            return
        if self._outbox.cells[FAILED] == errno.EINVAL and self._offered and not self._put_aside(self._queue):
            return
        self._waiter.done()
        self._is_full = False  # that was the earlier queue
        self._debt.clear()
        self._outbox.cells[FAILED] = 0
        self._offers.wake()
        self._host.sink_ready()

    def _noted(self) -> None:
        cells = self._outbox.cells
        number = int(cells[FAILED])  # before it is seen how far they are: once it is set, they rest
        self._offers.collect()
        if number:
            if not self._waiter.waits:  # or it is known, and `_again` follows
                self._failed(number)
        elif self._is_full != bool(cells[FULL]):
            self._is_full = not self._is_full
            self._host.blocked("in", self._full() if self._is_full else "")
        self._host.sink_ready()
        if self._offered:
            self._offers.watch_senders()

    def _full(self) -> str:
        """Return why the senders wait for room."""
        why = ""
        if self._queue is not None and self._offered:
            why = self._limits.shrunk(self._queue, len(self._offered[0].bodies[0]))
        return f"{shown(self._key)}: {why}" if why else f"queue full ({shown(self._key)})"

    def _failed(self, number: int) -> None:
        """Handle a failed send. The senders rest until FAILED is 0 again."""
        if number == errno.EACCES:
            self._queue = None
            self._wait(Denied(no_permission(self._key)))
        elif number in (errno.EINVAL, errno.EIDRM) and not (
            self._queue is not None and is_there(self._key, self._queue.id)
        ):
            self._queue = None
            self._waiter.wait(self._removals.note())
        elif number == errno.EINVAL and self._offered and not self._fits_now(self._offered[0]):
            self._again()
        else:
            self._waiter.wait(f"{shown(self._key)}: {os.strerror(number)}")

    def _fits_now(self, run: Run) -> bool:
        """True if its first message is within the queue's limits."""
        return self._queue is not None and self._limits.takes(self._queue, len(run.bodies[0]))

    def _put_aside(self, queue: Queue) -> bool:
        """Write the first message, which can never be sent, as a dead letter. False: it waits, and `_again` is called.

        The same sender gets the next message, because it did not send this one.
        """
        run = self._offered[0]
        if self._fits_now(run):
            return True
        if not self._cannot_fit(queue, run.one(0)):
            self._waiter.wait()  # the reason is shown
            return False
        self._evidence.forget_latest()
        self._offers.skip()
        return True
