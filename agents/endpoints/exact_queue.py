"""The sink of a queue with `exactly-once`: offers messages to two sender processes, and after a kill finds out what
they had sent (senders.py says by what evidence)."""

from __future__ import annotations

import errno
import os
import signal
import zlib
from collections import deque

from nsbridge.agents import linux
from nsbridge.agents.endpoints import senders
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.queue import Queue, has_room, is_there, no_permission, open_queue, shown
from nsbridge.agents.endpoints.senders import FAILED, FULL, QUEUE, Outbox
from nsbridge.agents.fork import fork, has_stopped_child
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.loop import READABLE
from nsbridge.agents.session import Arrived
from nsbridge.agents.sinkjournal import (
    BASELINE,
    IN_DOUBT,
    INTENT,
    LATEST,
    NOT_DELIVERED,
    PLACE,
    PREDECESSOR,
    SENDERS,
    SinkJournal,
)
from nsbridge.agents.wire import Message
from nsbridge.config.schema import InDoubt, QueueEndpoint

_LOOK_AGAIN = 0.002  # seconds until a half-full queue is looked at again: nothing tells when a message leaves it


class ExactQueueSink:
    """Hands each message to a queue exactly once."""

    def __init__(self, host: Host, config: QueueEndpoint, key: int, journal: SinkJournal, in_doubt: InDoubt) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.in_.type
        self._journal = journal
        self._in_doubt = in_doubt
        self._outbox = Outbox()
        self._queue: Queue | None = None
        self._examined = False  # whether what the last senders left is settled
        # Where a program answers through the same queue, a queue full of questions would leave it no room to.
        self._shared = config.out is not None and config.out.key == config.in_.key
        self._looks_again = False
        self._known_limit = 0
        self._was_alone = False  # whether nothing had been offered behind the doubtful message
        self._doubtful = 0  # the seq of which nobody knows whether it was sent
        self._next_sender = 0
        self._offered: deque[Arrived] = deque()
        self._waiter = Waiter(host, "in", self._again)
        self._pids: tuple[int, ...] = ()
        self._debt = Debt(host.loop.now)
        journal.may_adopt = lambda: not self._offered

    def descriptor(self) -> int:
        """See Sink: a queue is the kernel's memory."""
        return -1

    def start(self) -> None:
        """Fork the senders, before there is any thread; then open the queue."""
        me = os.getpid()
        keep = {0, 1, 2, self._journal.fd, self._outbox.to_agent, *self._outbox.to_sender}
        pids = []
        for which in (0, 1):
            child = fork(lambda which=which: self._be_sender(which, me, keep))  # type: ignore[misc]
            pids.append(child.pid)
            self._host.loop.watch(child.pidfd, READABLE, lambda _events: self._sender_died())
        self._pids = tuple(pids)
        self._host.senders(self._pids)
        self._host.vouch(self._vouch)
        self._host.loop.watch(self._outbox.to_agent, READABLE, self._noted)
        self._again()

    def _be_sender(self, which: int, agent_pid: int, keep: set[int]) -> int:
        linux.set_name(f"{self._host.name}/{which}")
        senders.run(which, self._outbox, self._journal, agent_pid, keep)
        return 0

    def _vouch(self) -> float:
        """A sender has to send what is offered; an excuse is a queue that is really full, and that this side waits.

        A sender may have been stopped after it had said that the queue is full, so its word is not enough.
        """
        cells = self._outbox.cells
        if has_stopped_child():
            owes = True
        elif not self._offered or self._queue is None or cells[FAILED]:
            owes = False
        else:
            owes = not cells[FULL] or has_room(self._queue.id, self._offered[0])
        return self._debt.since(owes=owes)

    def put(self, arrived: Arrived) -> bool:
        """Offer it to the sender whose turn it is."""
        if self._queue is None or self._outbox.cells[FAILED]:
            return False
        if arrived.epoch == self._journal.epoch and arrived.seq <= self._journal.handed:
            self._host.handed(arrived)  # found out after the greeting
            return True
        size = len(arrived.message.body)
        if size > self._limit(size):
            why = f"{size} bytes are more than the queue's own limit"
            return not self._offered and self._host.dead(arrived, shown(self._key), why)  # in its turn
        if self._shared and not self._leaves_room(size):
            return False
        if arrived.seq == self._doubtful and self._resolve_doubt(arrived):
            return True
        return self._offer(arrived)

    def _offer(self, arrived: Arrived) -> bool:
        message, sender = arrived.message, self._next_sender
        mtype = self._type or message.type or 1
        cells = self._journal.cells
        if cells[INTENT] < arrived.seq:
            cells[PREDECESSOR], cells[LATEST] = cells[LATEST], _checksum(mtype, message.body)
            cells[INTENT] = arrived.seq
        if not self._outbox.offer(arrived.seq, self._journal.handed, sender, mtype, message.body):
            why = f"{len(message.body)} bytes are more than any queue takes"  # if there is no room for it alone
            return not self._offered and self._host.dead(arrived, shown(self._key), why)
        if not self._offered:
            self._debt.clear()
        self._offered.append(arrived)
        self._next_sender = 1 - sender
        self._outbox.wake(sender)
        return True

    def _limit(self, size: int) -> int:
        """The queue's own limit (msg_qbytes), looked at again before a message is called too long."""
        if size > self._known_limit and self._queue is not None:
            try:
                self._known_limit = linux.queue_usage(self._queue.id)[1]
            except OSError:
                self._known_limit = size  # may not be looked at: the kernel will say
        return self._known_limit

    def _leaves_room(self, size: int) -> bool:
        """Whether half of the queue stays free for who answers through it; if not, `sink_ready` is called soon."""
        assert self._queue is not None  # noqa: S101  (asked by put)
        try:
            used, limit = linux.queue_usage(self._queue.id)
        except OSError:
            return True
        if not used + size <= limit // 2 and (used or self._offered):
            self._host.blocked("in", f"{shown(self._key)} is half full, the rest is for its answers")
            if not self._looks_again:
                self._looks_again = True
                self._host.loop.call_later(_LOOK_AGAIN, self._look_again)
            return False
        return not self._offered

    def _look_again(self) -> None:
        self._looks_again = False
        self._host.blocked("in", "")
        self._host.sink_ready()

    def _again(self) -> None:
        """Open the queue if there is none; then go on where it stopped."""
        try:
            if self._queue is None:
                queue = open_queue(self._key, self._config)
                self._examine(queue)
                self._queue = queue
                self._known_limit = 0
                self._outbox.cells[QUEUE] = queue.id
        except Blocked as reason:
            self._waiter.wait(reason)
            return
        self._waiter.done()
        self._debt.clear()
        self._outbox.cells[FAILED] = 0
        for sender in (0, 1):
            self._outbox.wake(sender)
        self._host.sink_ready()

    def _examine(self, queue: Queue) -> None:
        """Settle what the last senders left, once; and note the new ones, before they send. Raises Blocked."""
        cells, journal = self._journal.cells, self._journal
        if self._examined:
            if cells[PLACE] != queue.id + 1:  # a new queue: nobody has sent into it
                cells[BASELINE] = 1
                cells[PLACE] = queue.id + 1
            return
        last_pid: int = queue.last_send_pid
        last, former = journal.last_sender, (cells[SENDERS], cells[SENDERS + 1])
        ours = last_pid in former or last_pid + 1 == cells[BASELINE] or last_pid == 0
        if cells[PLACE] == queue.id + 1 and cells[INTENT] > journal.handed:
            if last_pid == former[1 - last]:
                journal.sent(journal.handed + 1, 1 - last)
                self._host.log("info", f"message {journal.handed} was sent just before the agent was killed")
            elif not ours:
                self._doubtful = journal.handed + 1
                self._was_alone = cells[INTENT] == self._doubtful
        cells[BASELINE] = last_pid + 1 if ours or cells[PLACE] != queue.id + 1 else 0
        cells[PLACE] = queue.id + 1
        cells[SENDERS], cells[SENDERS + 1] = self._pids
        journal.set_last_sender(1)
        self._next_sender = 0
        self._outbox.start_at(journal.handed)
        self._examined = True

    def _resolve_doubt(self, arrived: Arrived) -> bool:
        """Whether the doubtful message is done with: it is in the queue, or is to be skipped."""
        self._doubtful = 0
        if self._was_alone and self._is_in_queue(arrived.message):
            self._host.log("info", f"message {arrived.seq} is in the queue: it was sent before the agent was killed")
        else:
            self._journal.cells[IN_DOUBT] += 1
            what = "sent again" if self._in_doubt is InDoubt.RESEND else "skipped"
            self._host.log("warning", f"nothing tells whether message {arrived.seq} was sent before a kill: {what}")
            if self._in_doubt is InDoubt.RESEND:
                return False
            self._journal.cells[NOT_DELIVERED] += 1
        self._host.handed(arrived)
        self._outbox.start_at(arrived.seq)
        return True

    def _is_in_queue(self, message: Message) -> bool:
        buffer = bytearray(8 + max(len(message.body) + 1, 8192))
        address = linux.address_of(buffer)
        wanted = (self._type or message.type or 1, message.body)
        if _checksum(*wanted) == self._journal.cells[PREDECESSOR]:
            return False  # what is found may be the message before it
        index = 0
        assert self._queue is not None  # noqa: S101  (asked by put)
        while True:
            try:
                length = linux.msgrcv(
                    self._queue.id, address, len(buffer) - 8, index, linux.MSG_COPY | linux.IPC_NOWAIT
                )
            except OSError as error:
                if error.errno != errno.E2BIG:
                    return False
            else:
                if (int.from_bytes(buffer[:8], "little", signed=True), bytes(buffer[8 : 8 + length])) == wanted:
                    return True
            index += 1

    def _noted(self, _events: int) -> None:
        """The senders have handed over, or one of them cannot."""
        os.eventfd_read(self._outbox.to_agent)
        self._debt.clear()
        self._collect()
        cells = self._outbox.cells
        if cells[FAILED]:
            self._failed(int(cells[FAILED]))
        else:
            self._host.blocked("in", f"queue full ({shown(self._key)})" if cells[FULL] else "")
        self._host.sink_ready()

    def _collect(self) -> None:
        handed = self._journal.handed
        while self._offered and self._offered[0].seq <= handed:
            self._host.handed(self._offered.popleft())

    def _failed(self, number: int) -> None:
        """The senders rest until FAILED is 0 again."""
        self._collect()
        if number == errno.EACCES:
            self._queue = None
            self._waiter.wait(no_permission(self._key))
        elif number in (errno.EINVAL, errno.EIDRM) and not (
            self._queue is not None and is_there(self._key, self._queue.id)
        ):
            self._queue = None
            self._waiter.wait(f"{shown(self._key)} was removed")
        elif number == errno.EINVAL and self._offered:
            arrived = self._offered.popleft()
            why = f"{len(arrived.message.body)} bytes are more than the queue takes (kernel.msgmax, or its own limit)"
            if not self._host.dead(arrived, shown(self._key), why):
                self._offered.appendleft(arrived)
                self._waiter.wait("a dead letter cannot be written")
                return
            self._outbox.reassign(arrived.seq + 1, 1 - self._journal.last_sender)
            self._next_sender = self._journal.last_sender ^ 1 ^ (len(self._offered) & 1)
            self._again()
        else:
            self._waiter.wait(f"{shown(self._key)}: {os.strerror(number)}")

    def _sender_died(self) -> None:
        """The evidence is only read by a fresh agent. To die by the same signal says that it was done to us."""
        os.kill(os.getpid(), signal.SIGKILL)


def _checksum(mtype: int, body: bytes) -> int:
    return zlib.crc32(body, mtype & 0xFFFFFFFF)
