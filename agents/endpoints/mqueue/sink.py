"""The `in` side of the `mqueue` endpoint: sends messages, and waits in the loop while the queue is full."""

from __future__ import annotations

import errno
import os
import zlib

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Sink, Waiter, put_in_parts
from nsbridge.agents.endpoints.doubt import OF_ANOTHER_LIFE
from nsbridge.agents.endpoints.evidence import SendEvidence
from nsbridge.agents.endpoints.mqueue.calls import PreparedSend
from nsbridge.agents.endpoints.mqueue.cells import LARGEST, LARGEST_OF
from nsbridge.agents.endpoints.mqueue.config import HIGHEST_PRIORITY, MqueueEndpoint
from nsbridge.agents.endpoints.mqueue.mqueue import MqueueOwner, OpenQueue
from nsbridge.agents.endpoints.removals import Removals
from nsbridge.agents.loop import WRITABLE
from nsbridge.agents.wire import Run


class MqueueSink(Sink):
    """Hands each message to a queue, with the evidence that shows after a kill what was sent."""

    def __init__(
        self, host: AgentApi, config: MqueueEndpoint, evidence: SendEvidence, owner: MqueueOwner, own_fds: int
    ) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._priority = config.in_.priority
        self._longest = config.longest
        self._journal = evidence.journal
        self._evidence = evidence
        self.queue = OpenQueue(host, config, "in", owner, own_fds, self._again)
        self._sender: PreparedSend
        self._removals = Removals(host, self.queue.what)
        self._waiter = Waiter(host, "in", self._again)
        self._is_full = False
        self._needed = 0  # bytes of a message that waits for a queue with the limit of a former one
        name = zlib.crc32(os.fsencode(config.in_.name)) + 1
        if self._journal.cells[LARGEST_OF] != name:
            self._journal.cells[LARGEST] = 0
            self._journal.cells[LARGEST_OF] = name

    def start(self) -> None:
        """Make the queue if it is missing and `create` is set, so that programs find it before the first message."""
        self._again()

    def put(self, run: Run) -> int:
        """Send messages while there is room; then wait until the loop reports some."""
        if len(run.bodies[0]) != self._needed:
            self._needed = 0
        if self.queue.fd >= 0 and self.queue.is_removed:
            self._open()
        return put_in_parts(run, self._put_some)

    def _put_some(self, run: Run) -> int:
        """Return how many of the first messages are finished; 0 if the next one is not now."""
        if self.queue.fd < 0 or self._is_full:
            return 0
        journal = self._journal
        if run.epoch != journal.epoch:  # its numbers now belong to others
            return int(self._bury(run.one(0), OF_ANOTHER_LIFE))
        if run.first <= journal.handed:  # found out after the greeting
            self._host.handed(run.one(0))
            return 1
        priority = run.type if self._priority is None else self._priority
        if not 0 <= priority <= HIGHEST_PRIORITY:
            why = f"its type is {priority}, and a priority is at most {HIGHEST_PRIORITY}: set in.priority"
            return int(self._bury(run.one(0), why))
        sent, number = self._send(run, priority)
        self.queue.moved += sent
        if sent:
            self._host.handed(run.before(sent))
        if number and not sent:
            return int(self._failed(run.one(0), number))
        return sent

    def _send(self, run: Run, priority: int) -> tuple[int, int]:
        """Return how many messages were sent, and the errno of the next; 0 if all were sent."""
        evidence, send = self._evidence, self._sender.send
        limit = min(self._longest, self.queue.attributes.max_message)
        evidence.begin(run.last)
        for seq, body in enumerate(run.bodies, run.first):
            if len(body) > limit:
                return seq - run.first, errno.EMSGSIZE
            evidence.before(seq)
            number = send(body, priority)
            if number:
                evidence.not_sent(seq)
                return seq - run.first, -number
            evidence.after(seq)
        return len(run.bodies), 0

    def _failed(self, one: Run, number: int) -> bool:
        """Return True if the message is finished, as a dead letter; otherwise it is offered again later."""
        if number == errno.EMSGSIZE and len(one.bodies[0]) <= min(self._longest, self._journal.cells[LARGEST]):
            self._needed = len(one.bodies[0])
            self._wait(self._shrunk())
            return False
        if number == errno.EMSGSIZE:
            return self._bury(one, self._too_long(len(one.bodies[0])))
        if number == errno.EAGAIN:
            self._is_full = True
            self._host.blocked("in", f"{self.queue.what} is full: {self.queue.attributes.max_messages} messages")
            self._host.loop.watch(self.queue.fd, WRITABLE, self._has_room)
        else:
            self._wait(Blocked(f"{self.queue.what}: {os.strerror(number)}"))
        return False

    def _too_long(self, size: int) -> str:
        limit = self.queue.attributes.max_message
        if size > limit:
            return f"{size} bytes are more than the queue takes: its mq_msgsize is {limit}"
        return f"{size} bytes are more than max_message = {self._longest} of this agent"

    def _shrunk(self) -> Blocked:
        """Return the reason to wait: nothing becomes a dead letter because its queue was made again with less."""
        now, before = self.queue.attributes.max_message, self._journal.cells[LARGEST]
        return Blocked(
            f"{self.queue.what} was made again with mq_msgsize = {now}, and a message of {self._needed} bytes waits: "
            f"make it with {before} as before, or set max_message to make dead letters of longer ones"
        )

    def _bury(self, one: Run, why: str) -> bool:
        """Write the message as a dead letter. False: not now; the agent offers it again."""
        return self._host.dead(one, self.queue.what, why)

    def _has_room(self, _events: int) -> None:
        self._rest()
        self._host.sink_ready()

    def _rest(self) -> None:
        if self._is_full:
            self._is_full = False
            self._host.loop.unwatch(self.queue.fd)
            self._host.blocked("in", "")

    def _wait(self, reason: Blocked) -> None:
        self._rest()
        self.queue.close()
        self._waiter.wait(reason)

    def _again(self) -> None:
        """Open the queue that the name leads to now; then the refused message is offered again."""
        self._open()
        if self.queue.fd >= 0:
            self._host.sink_ready()

    def _open(self) -> None:
        self._rest()
        if self.queue.fd >= 0 and self.queue.is_removed:
            self._removals.note()
        try:
            self.queue.open()
        except Blocked as reason:
            self._wait(reason)
            return
        limit, cells = self.queue.attributes.max_message, self._journal.cells
        cells[LARGEST] = max(cells[LARGEST], limit)
        if limit < self._needed:
            self._wait(self._shrunk())
            return
        self._sender = PreparedSend(self.queue.fd)
        self._waiter.done()  # before: what follows may show another reason
