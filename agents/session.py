"""Messages between two agents: numbering, repeating, confirming, the window. No I/O, no clock.

The rules of this file, for each direction:
* A message has (epoch, seq); the epoch is born with the source's store, seq counts from 1 without gaps.
* The source keeps a message until the sink has confirmed it; the sink confirms only what it has handed over.
* After any start an agent greets, and sends and accepts nothing else until its own greeting was answered: what lies
  in the socket from before belongs to another life. The nonce separates an answer to this greeting from an older one's.
* A greeting may have gone to a process that died before it answered. So its successor, which learns of the greeter
  by the answer to its own, answers that answer.
* A greeting makes its receiver go back to the last confirmed message and repeat from there; the sink drops what it
  has had. So frames may be lost or seen again around a restart, in any way, without a message being either.
* Nothing is dropped to make room: beyond the window the source stops taking. Only after a source has lost its store
  may the sink still be full of what it sent before; then what comes is dropped, and asked for by a greeting later.

Stores (journal/store.py) hold what must outlive a process; this file only decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from nsbridge.agents import wire
from nsbridge.agents.wire import Ack, Data, Hello, Message, Run, WireError
from nsbridge.config.schema import Window


class SourceStore(Protocol):
    """Messages that a source has taken and its sink has not confirmed: seqs `confirmed + 1` to `taken`."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def confirmed(self) -> int: ...  # noqa: D102
    @property
    def taken(self) -> int: ...  # noqa: D102
    @property
    def pending_bytes(self) -> int: ...  # noqa: D102
    def append(self, message: Message) -> int: ...  # noqa: D102
    def run(self, seq: int) -> Run | None: ...  # noqa: D102  (the pending messages from `seq` on, or some; None: not now)
    def confirm(self, seq: int) -> None: ...  # noqa: D102


class SinkStore(Protocol):
    """Position of a sink: everything of `epoch` up to `handed` is handed over."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def handed(self) -> int: ...  # noqa: D102
    def adopt(self, epoch: int, handed: int) -> None: ...  # noqa: D102
    def hand(self, seq: int) -> None: ...  # noqa: D102


class Outgoing:
    """The source's half of a direction."""

    def __init__(self, store: SourceStore, window: Window) -> None:
        self.store = store
        self._window = window
        self._sent = store.confirmed  # the last seq that was put into a packet whole
        self._under_way: deque[tuple[int, int]] = deque()  # of each frame that was sent and not confirmed: last, bytes
        self._bytes_under_way = 0
        self._offset = 0  # how much of the next one was
        self._cut: Run | None = None  # that message: a store copies it, and it may take a thousand packets

    def has_room(self) -> bool:
        """True if one more message may be taken; always while none is pending, so any message gets through."""
        messages, size = self.room()
        return messages > 0 and size > 0

    def room(self) -> tuple[int, int]:
        """Return how many messages and bytes may be taken; one more message while both are above 0."""
        store, window = self.store, self._window
        return window.messages - store.taken + store.confirmed, window.bytes - store.pending_bytes

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """Return how many of these messages may be taken now."""
        store = self.store
        return _admitted(bodies, self._window, store.taken - store.confirmed, store.pending_bytes)

    def has_unsent(self) -> bool:
        """True if something is still to be sent, now or when the sink has made room."""
        return self._sent < self.store.taken

    def confirm(self, seq: int) -> None:
        """Take the sink's word for all up to `seq`. WireError if it speaks of what was never sent."""
        if seq > self.store.taken:
            raise WireError(f"message {seq} confirmed, only {self.store.taken} were taken")
        if seq > self.store.confirmed:
            self.store.confirm(seq)
            under_way = self._under_way
            while under_way and under_way[0][0] <= seq:
                self._bytes_under_way -= under_way.popleft()[1]
            if self._sent < seq:
                self._sent, self._offset, self._cut = seq, 0, None

    def rewind(self) -> None:
        """Repeat from the first unconfirmed message."""
        self._sent, self._offset, self._cut = self.store.confirmed, 0, None
        self._under_way.clear()
        self._bytes_under_way = 0

    def fill(self, parts: list[bytes], room: int) -> None:
        """Append to `parts` as many frames as fit into `room` bytes, and into the sink's window.

        More than the window may be pending: it was larger once, or an earlier life took files of unknown lengths.
        """
        store = self.store
        while self._sent < store.taken and room > wire.DATA_OVERHEAD:
            run = self._cut or store.run(self._sent + 1)
            if run is None:
                return
            if self._offset:
                self._fill_with_piece(run, parts, room)
                return
            count = _admitted(run.bodies, self._window, self._sent - store.confirmed, self._bytes_under_way)
            if not count:
                return
            count = min(count, _fitting(run.bodies, room - wire.RUN_OVERHEAD))
            if not count:
                self._fill_with_piece(run, parts, room)
                return
            run = run.before(count)
            frame = wire.pack_run(run)
            parts += frame
            room -= sum(map(len, frame))
            self._note_sent(run.last, sum(map(len, run.bodies)))

    def _fill_with_piece(self, run: Run, parts: list[bytes], room: int) -> None:
        """Fill the packet with a piece: a message is cut only where a packet has room for nothing else."""
        body = run.bodies[0]
        left = len(body) - self._offset
        length = min(left, room - wire.DATA_OVERHEAD)
        if length < left and parts:
            return
        parts.append(wire.pack_data_header(run.epoch, run.first, Message(run.type, body), self._offset, length))
        parts.append(body[self._offset : self._offset + length])
        if length == left:
            self._note_sent(run.first, len(body))
            self._offset, self._cut = 0, None
        else:
            self._offset += length
            self._cut = run.one(0)

    def _note_sent(self, last: int, size: int) -> None:
        self._sent = last
        self._under_way.append((last, size))
        self._bytes_under_way += size


def _admitted(bodies: Sequence[bytes], window: Window, messages: int, size: int) -> int:
    """Return how many of the bodies fit into a window that holds so many messages of `size` bytes in all.

    One more while there are fewer messages and fewer bytes than its limits; the first in any case.
    """
    most = min(len(bodies), window.messages - messages)
    if size + sum(map(len, bodies)) < window.bytes:
        return max(most, 0)
    count = 0
    while count < most and (size < window.bytes or not (count or messages)):
        size += len(bodies[count])
        count += 1
    return count


def _fitting(bodies: Sequence[bytes], room: int) -> int:
    """Return how many of the bodies fit into `room` bytes of a RUN frame."""
    if sum(map(len, bodies)) + wire.RUN_MESSAGE_OVERHEAD * len(bodies) <= room:
        return len(bodies)
    for count, body in enumerate(bodies):
        room -= len(body) + wire.RUN_MESSAGE_OVERHEAD
        if room < 0:
            return count
    return len(bodies)


class Incoming:
    """The sink's half of a direction."""

    def __init__(self, store: SinkStore, window: Window) -> None:
        self.store = store
        self.waiting: deque[Run] = deque()
        self.repeats_dropped = 0
        self.ack_due = False
        self._limits = window
        self._waiting_messages = 0
        self._waiting_bytes = 0
        self._unacked = self._unacked_bytes = 0  # handed over and not confirmed to the peer
        self._unhanded = 0  # messages that came whole and were not handed over, whether they wait or a sink has them
        self._received = store.handed
        self._partial = bytearray()
        self._refused = False  # messages had to be dropped, so that the peer must be asked to repeat

    def greeted(self, epoch: int, confirmed: int) -> None:
        """Learn what the source has: it will never again send what it calls confirmed."""
        self._partial.clear()
        self._refused = False
        if epoch and (epoch != self.store.epoch or confirmed > self._received):
            self.store.adopt(epoch, confirmed)
            self._received = confirmed

    def accept(self, data: Data) -> None:
        """Take in one piece; what completes a message that is next in order goes to `waiting`."""
        if data.epoch != self.store.epoch or data.seq > self._received + 1:
            return  # from another life; it is repeated after the greeting
        if data.seq <= self._received:
            self.repeats_dropped += data.offset == 0
            self.ack_due = True
            return
        if data.offset == 0:
            self._partial.clear()
        if data.offset != len(self._partial):
            return
        body = data.piece
        if data.offset + len(body) < data.total:
            self._partial += body
            return
        if self._partial:
            body = bytes(self._partial) + body
        self.accept_run(Run(data.epoch, data.seq, data.type, (body,)))

    def accept_run(self, run: Run) -> None:
        """Take in whole messages; those that are next in order go to `waiting`."""
        if run.epoch != self.store.epoch or run.first > self._received + 1:
            return  # from another life; they are repeated after the greeting
        repeats = min(self._received + 1 - run.first, len(run.bodies))
        if repeats:
            self.repeats_dropped += repeats
            self.ack_due = True
            run = run.after(repeats)
            if not run.bodies:
                return
        self._partial.clear()
        size = sum(map(len, run.bodies))
        if not self._has_room_for(run, size):
            self._refused = True
            return
        self._received = run.last
        self._unhanded += len(run.bodies)
        self._keep(run, size)

    def _keep(self, run: Run, size: int) -> None:
        self._waiting_messages += len(run.bodies)
        self._waiting_bytes += size
        self.waiting.append(run)

    def accepted(self, count: int) -> None:
        """Note that a sink has the first `count` messages of the first run that waits."""
        if not count:
            return
        run = self.waiting.popleft()
        if count < len(run.bodies):
            self.waiting.appendleft(run.after(count))
        self._waiting_messages -= count
        self._waiting_bytes -= sum(map(len, run.before(count).bodies))

    def idle(self) -> bool:
        """True if everything that came has been handed over."""
        return not self._unhanded

    def in_flight(self) -> bool:
        """True if the sink has accepted messages and not yet handed them over."""
        return self._unhanded > self._waiting_messages

    def is_pressing(self) -> bool:
        """True if so much was handed over and not confirmed that the peer's window may be full soon."""
        return 4 * self._unacked >= self._limits.messages or 4 * self._unacked_bytes >= self._limits.bytes

    def acknowledged(self) -> None:
        """Note that the peer knows of all that was handed over."""
        self.ack_due, self._unacked, self._unacked_bytes = False, 0, 0

    def wants_repeat(self) -> bool:
        """True if the peer must repeat messages, once, that were dropped and now have room."""
        if not self._refused or (self.waiting and self.waiting[0].epoch != self.store.epoch):
            return False
        self._refused = False
        return True

    def put_back(self, run: Run) -> None:
        """Put it back: it is the first that waits again."""
        self.waiting.appendleft(run)
        self._waiting_messages += len(run.bodies)
        self._waiting_bytes += sum(map(len, run.bodies))

    def handed(self, epoch: int, last: int, count: int = 1, size: int = 0) -> None:
        """Note that `count` messages up to `last`, of `size` bytes, were handed over.

        So they are confirmed, if their source still lives in that epoch.
        """
        self._unhanded -= count
        self._unacked += count
        self._unacked_bytes += size
        if epoch == self.store.epoch:
            self.store.hand(last)
            self.ack_due = True

    def _has_room_for(self, run: Run, size: int) -> bool:
        """True if the window is open. WireError if it was filled in this epoch; an earlier may have filled it.

        A source takes a message while it has less than the window's bytes, so all but the last must fit.
        """
        count, bytes_ = self._waiting_messages + len(run.bodies) - 1, self._waiting_bytes + size - len(run.bodies[-1])
        if not count or (count < self._limits.messages and bytes_ < self._limits.bytes):
            return True
        if not self.waiting or self.waiting[0].epoch == run.epoch:
            raise WireError(f"more than the window: {count} messages, {bytes_} bytes, and then one more")
        return False


class Session:
    """Both directions of one agent; either half may be missing."""

    def __init__(self, nonce: int, outgoing: Outgoing | None, incoming: Incoming | None) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.greeted = False
        self._nonce = nonce
        self._asks = True  # a greeting is due
        self._to_answer = 0  # the nonce of the peer's latest greeting, if an answer is due; earlier ones died with it
        self._answered = 0  # the nonce that was answered last

    def receive(self, packet: bytes) -> None:
        """Take in one packet; what is to be handed over is then in `incoming.waiting`. WireError: the peer's fault."""
        for frame in wire.parse(packet):
            if type(frame) is Hello:
                self._receive_hello(frame)
            elif not self.greeted:
                continue
            elif isinstance(frame, Run | Data):
                if self.incoming is None:
                    raise WireError("data in a direction that this route does not have")
                if isinstance(frame, Run):
                    self.incoming.accept_run(frame)
                else:
                    self.incoming.accept(frame)
            elif type(frame) is Ack and self.outgoing is not None and frame.epoch == self.outgoing.store.epoch:
                self.outgoing.confirm(frame.seq)

    def ack_waits(self) -> bool:
        """True if there is a confirmation which may wait for a message to travel with, but not for long."""
        return self.incoming is not None and self.incoming.ack_due and self.greeted and not self._acks_now()

    def _acks_now(self) -> bool:
        """True if a confirmation is due that travels with messages, or that the peer's window may be waiting for."""
        incoming, outgoing = self.incoming, self.outgoing
        if incoming is None or not incoming.ack_due:
            return False
        return incoming.is_pressing() or (outgoing is not None and outgoing.has_unsent())

    def next_packet(self, *, acks: bool = True) -> bytes:
        """Return the next packet to send, empty if there is none now. Each call counts its content as sent.

        Without `acks`, a confirmation that may wait does.
        """
        parts: list[bytes] = []
        if self._asks or (self.incoming is not None and self.incoming.wants_repeat()):
            self._asks = False
            parts.append(wire.pack_hello(self._hello(0)))
        if self._to_answer:
            self._answered, self._to_answer = self._to_answer, 0
            parts.append(wire.pack_hello(self._hello(self._answered)))
        if not self.greeted:
            return b"".join(parts)
        room = wire.MAX_PACKET - sum(map(len, parts))
        if self.incoming is not None and self.incoming.ack_due and (acks or self._acks_now()):
            self.incoming.acknowledged()
            parts.append(wire.pack_ack(self.incoming.store.epoch, self.incoming.store.handed))
            room -= len(parts[-1])
        if self.outgoing is not None:
            self.outgoing.fill(parts, room)
        return b"".join(parts)

    def _hello(self, answers: int) -> Hello:
        source = self.outgoing and self.outgoing.store
        sink = self.incoming and self.incoming.store
        return Hello(
            self._nonce,
            answers,
            source.epoch if source else 0,
            source.confirmed if source else 0,
            sink.epoch if sink else 0,
            sink.handed if sink else 0,
        )

    def _receive_hello(self, hello: Hello) -> None:
        if hello.answers not in (0, self._nonce):
            return  # the answer to a greeting of a process that is dead
        if hello.answers:
            self.greeted = True
        if not hello.answers or hello.nonce != self._answered:
            self._to_answer = hello.nonce  # its own greeting, if it is not this, went to a process that is dead
        if self.incoming is not None:
            self.incoming.greeted(hello.out_epoch, hello.out_confirmed)
        if self.outgoing is not None:
            if hello.in_epoch == self.outgoing.store.epoch:
                self.outgoing.confirm(hello.in_handed)
            self.outgoing.rewind()
