"""The sink of a queue with `at-least-once`: sends messages itself and notes each after it was sent."""

from __future__ import annotations

import errno
import os
import threading

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Denied
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.queue import (
    SEND_ERRORS,
    Queue,
    QueueOwner,
    has_room,
    is_there,
    no_permission,
    number_of,
    open_queue,
    sender,
    shown,
)
from nsbridge.agents.endpoints.queue.sinkbase import QueueSinkBase
from nsbridge.agents.endpoints.queue.threads import start_thread
from nsbridge.agents.journal.journalfile import seal
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.wire import Run

_GONE = (errno.EINVAL, errno.EIDRM, errno.ENOENT)
_TOO_LONG = errno.EMSGSIZE  # never returned by msgsnd: the message is longer than the known limit


class QueueSink(QueueSinkBase):
    """Sends messages; while the queue is full a thread waits in msgsnd, so that the agent continues."""

    _notes_each = True  # each message, as soon as it was sent

    def __init__(
        self, host: AgentApi, config: QueueEndpoint, key: int, journal: SinkJournal, owner: QueueOwner | None = None
    ) -> None:
        super().__init__(host, config, key, journal, owner)
        self._limit = 0  # bytes that the queue takes, and that are allowed
        self._pending: Run | None = None  # the one message that the thread is sending
        self._go = threading.Semaphore(0)
        self._thread_runs = False

    def start(self) -> None:
        """Make the queue if it is missing and `create` is set, so that programs find it before the first message."""
        self._again()

    def put(self, run: Run) -> int:
        """Send messages while there is room; then let the thread wait for room."""
        count = 0
        while count < len(run.bodies) and self._queue is not None and self._pending is None:
            rest = run.after(count)
            sent, obstacle = self._send(self._queue, rest)
            if sent:
                self._host.handed(rest.before(sent))
                count += sent
            if obstacle:
                past = self._pass(self._queue, run.one(count), obstacle)
                if past is None:
                    break
                count += past
        return count

    def _send(self, queue: Queue, run: Run) -> tuple[int, int]:
        """Return how many messages were sent (each is noted at once), and the errno of the next; 0 if all were sent."""
        notes, cell = self._journal.cells, self._journal.handed_cell
        is_noted = self._notes_each and run.epoch == self._journal.epoch
        mtype, limit = self._type_of(run), min(self._limit, self._limits.largest)
        send = sender(queue, mtype)
        seq = run.first
        try:
            for seq, body in enumerate(run.bodies, run.first):
                if len(body) > limit:
                    return seq - run.first, _TOO_LONG
                send(body, False, mtype)
                if is_noted:
                    notes[cell] = seal(seq << 1)  # a kill before this repeats the message
        except SEND_ERRORS as error:
            return seq - run.first, number_of(error)
        return len(run.bodies), 0

    def _type_of(self, run: Run) -> int:
        return self._type or run.type or 1

    def _pass(self, queue: Queue, one: Run, number: int) -> int | None:
        """Decide about a message. 1: finished, or given to the thread. 0: send it. None: it is offered again later."""
        if number not in (errno.EAGAIN, _TOO_LONG):
            return 1 if self._failed(queue, one, number) else None
        self._look_at_limit(queue)
        size = len(one.bodies[0])
        fits = size <= self._limit and (size <= self._limits.largest or self._limits.takes(queue, size))
        if not fits:  # the kernel calls that busy, too
            return 1 if self._cannot_fit(queue, one) else None
        if number == errno.EAGAIN:
            self._wait_in_thread(one)
            return 1
        return 0

    def _look_at_limit(self, queue: Queue) -> None:
        self._limit = min(self._limits.look(queue), self._config.max_message)

    def _wait_in_thread(self, one: Run) -> None:
        self._host.blocked("in", f"queue full ({shown(self._key)})")
        self._pending = one
        self._debt.clear()
        if not self._thread_runs:
            self._thread_runs = True
            self._host.vouch(self._vouch)
            start_thread("put", self._run)
        self._go.release()

    def _vouch(self) -> float:
        """Vouch for the thread, which waits in msgsnd only while the queue is full."""
        pending, queue = self._pending, self._queue
        owes = pending is not None and queue is not None and has_room(queue.id, pending)
        return self._debt.since(owes=owes)

    def _again(self) -> None:
        """Open the queue if there is none; then the refused message is offered again."""
        if self._queue is None:
            try:
                queue = open_queue(self._key, self._config, self._host, self._owner)
                self._opened(queue)
            except Blocked as reason:
                self._wait(reason)
                return
            self._queue = queue
            self._look_at_limit(queue)
        self._waiter.done()  # before: what follows may show another reason
        self._host.sink_ready()

    def _opened(self, queue: Queue) -> None:
        """Prepare for a queue that was opened. Raises Blocked."""

    def _failed(self, queue: Queue, one: Run, number: int) -> bool:
        """Return True if the message is finished, as a dead letter; otherwise it is offered again later."""
        size = len(one.bodies[0])
        is_gone = number in _GONE and not is_there(self._key, queue.id)
        if number == errno.EINVAL and not is_gone and not self._limits.takes(queue, size):
            return self._cannot_fit(queue, one)  # for msgmax: the queue's own limit gives EAGAIN
        self._queue = None
        if number == errno.EACCES:
            self._wait(Denied(no_permission(self._key)))
        elif is_gone:
            self._waiter.wait(self._removals.note())
        else:
            self._waiter.wait(f"{shown(self._key)} does not take a message of {size} bytes: {os.strerror(number)}")
        return False

    def _run(self) -> None:
        while True:
            self._go.acquire()
            one, queue = self._pending, self._queue
            assert one is not None and queue is not None  # noqa: S101, PT018  (set before the semaphore is released)
            number = self._send_in_thread(queue, one)
            with self._host.guarded():
                self._pending = None
                self._host.blocked("in", "")
                if not number:
                    self._host.handed(one)
                elif not self._failed(queue, one, number):
                    self._host.put_back(one)
                    continue
                self._host.sink_ready()

    def _send_in_thread(self, queue: Queue, one: Run) -> int:
        """Wait until there is room; return 0 or errno."""
        mtype = self._type_of(one)
        send = sender(queue, mtype)
        while True:
            try:
                send(one.bodies[0], True, mtype)
            except SEND_ERRORS as error:
                number = number_of(error)
                if number != errno.EINTR:
                    return number
            else:
                return 0
