"""What two agents owe each other about messages: numbering, repeating, confirming, the window. No I/O, no clock.

The law of this file, for each direction:
* A message has (epoch, seq); the epoch is born with the source's store, seq counts from 1 without gaps.
* The source keeps a message until the sink has confirmed it; the sink confirms only what it has handed over.
* After any start an agent greets, and sends and accepts nothing else until its own greeting was answered: what lies
  in the socket from before belongs to another life. The nonce tells an answer to this greeting from an older one's.
* A greeting may have gone to a process that died before it answered. So its successor, which learns of the greeter
  by the answer to its own, answers that answer.
* A greeting makes its receiver go back to the last confirmed message and repeat from there; the sink drops what it
  has had. So frames may be lost or seen again around a restart, in any way, without a message being either.
* Nothing is dropped to make room: beyond the window the source stops taking. Only after a source has lost its store
  may the sink still be full of what it sent before; then what comes is dropped, and asked for by a greeting later.

Stores (store.py) hold what must outlive a process; this file only decides.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from nsbridge.agents import wire
from nsbridge.agents.wire import Ack, Data, Hello, Message, WireError
from nsbridge.config.schema import Window


class SourceStore(Protocol):
    """What a source has taken and its sink has not confirmed. Seqs `confirmed + 1` to `taken` are there."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def confirmed(self) -> int: ...  # noqa: D102
    @property
    def taken(self) -> int: ...  # noqa: D102
    @property
    def pending_bytes(self) -> int: ...  # noqa: D102
    def append(self, message: Message) -> int: ...  # noqa: D102
    def get(self, seq: int) -> Message | None: ...  # noqa: D102
    def confirm(self, seq: int) -> None: ...  # noqa: D102


class SinkStore(Protocol):
    """How far a sink has handed over: everything of `epoch` up to `handed`."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def handed(self) -> int: ...  # noqa: D102
    def adopt(self, epoch: int, handed: int) -> None: ...  # noqa: D102
    def hand(self, seq: int) -> None: ...  # noqa: D102


class Arrived(NamedTuple):
    """A message that the sink is to hand over, in this order."""

    epoch: int
    seq: int
    message: Message


class Outgoing:
    """The source's half of a direction."""

    def __init__(self, store: SourceStore, window: Window) -> None:
        self.store = store
        self._window = window
        self._sent = store.confirmed  # the last seq that was put into a packet whole
        self._offset = 0  # how much of the next one was

    def has_room(self) -> bool:
        """Whether one more message may be taken; always while none is pending, so any message gets through."""
        pending = self.store.taken - self.store.confirmed
        return not pending or (pending < self._window.messages and self.store.pending_bytes < self._window.bytes)

    def has_unsent(self) -> bool:
        """Whether `fill` would add something."""
        return self._sent < self.store.taken

    def confirm(self, seq: int) -> None:
        """Take the sink's word for all up to `seq`. WireError if it speaks of what was never sent."""
        if seq > self.store.taken:
            raise WireError(f"message {seq} confirmed, only {self.store.taken} were taken")
        if seq > self.store.confirmed:
            self.store.confirm(seq)
            if self._sent < seq:
                self._sent, self._offset = seq, 0

    def rewind(self) -> None:
        """Repeat from the first unconfirmed message."""
        self._sent, self._offset = self.store.confirmed, 0

    def fill(self, parts: list[bytes], room: int) -> None:
        """Append to `parts` as many frames as fit into `room` bytes."""
        store = self.store
        while self._sent < store.taken and room > wire.DATA_OVERHEAD:
            seq = self._sent + 1
            message = store.get(seq)
            if message is None:
                return
            left = len(message.body) - self._offset
            length = min(left, room - wire.DATA_OVERHEAD)
            if length < left and parts:
                return  # a message is cut only where a packet has room for nothing else
            parts.append(wire.pack_data_header(store.epoch, seq, message, self._offset, length))
            parts.append(message.body[self._offset : self._offset + length])
            room -= wire.DATA_OVERHEAD + length
            if length == left:
                self._sent, self._offset = seq, 0
            else:
                self._offset += length


class Incoming:
    """The sink's half of a direction."""

    def __init__(self, store: SinkStore, window: Window) -> None:
        self.store = store
        self.waiting: deque[Arrived] = deque()
        self.repeats_dropped = 0
        self.ack_due = False
        self._limits = window
        self._waiting_bytes = 0
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
            self._partial.clear()
        if not self._has_room_for(data):
            self._refused = True
            return
        self._received = data.seq
        self._unhanded += 1
        self._waiting_bytes += len(body)
        self.waiting.append(Arrived(data.epoch, data.seq, Message(data.type, body)))

    def next(self) -> Arrived:
        """Remove and return the first that waits."""
        arrived = self.waiting.popleft()
        self._waiting_bytes -= len(arrived.message.body)
        return arrived

    def idle(self) -> bool:
        """Whether everything that came has been handed over."""
        return not self._unhanded

    def in_flight(self) -> bool:
        """Whether the sink has accepted messages and not yet handed them over."""
        return self._unhanded > len(self.waiting)

    def wants_repeat(self) -> bool:
        """Whether the peer is to be asked, once, for messages that were dropped and now have room."""
        if not self._refused or (self.waiting and self.waiting[0].epoch != self.store.epoch):
            return False
        self._refused = False
        return True

    def put_back(self, arrived: Arrived) -> None:
        """It is the first that waits again."""
        self.waiting.appendleft(arrived)
        self._waiting_bytes += len(arrived.message.body)

    def handed(self, arrived: Arrived) -> None:
        """Note that it was handed over, which makes it confirmed (if its source still lives in that epoch)."""
        self._unhanded -= 1
        if arrived.epoch == self.store.epoch:
            self.store.hand(arrived.seq)
            self.ack_due = True

    def _has_room_for(self, data: Data) -> bool:
        """Whether the window is open. WireError if it was filled in this epoch; an earlier may have filled it."""
        count, size = len(self.waiting), self._waiting_bytes
        if not count or (count < self._limits.messages and size < self._limits.bytes):
            return True
        if self.waiting[0].epoch == data.epoch:
            raise WireError(f"more than the window: {count} messages, {size} bytes wait already")
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
            elif type(frame) is Data:
                if self.incoming is None:
                    raise WireError("data in a direction that this route does not have")
                self.incoming.accept(frame)
            elif type(frame) is Ack and self.outgoing is not None and frame.epoch == self.outgoing.store.epoch:
                self.outgoing.confirm(frame.seq)

    def next_packet(self) -> bytes:
        """The next packet to send, empty if there is none now. Each call counts its content as sent."""
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
        if self.incoming is not None and self.incoming.ack_due:
            self.incoming.ack_due = False
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
