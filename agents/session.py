"""Messages between two agents: numbering, repeating, confirming, the window. No I/O, no clock.

outgoing.py has the source's half of a direction, incoming.py the sink's. The rules of all three, for each direction:
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

Stores (journal/store.py) hold what must outlive a process; these files only decide.
"""

from __future__ import annotations

from nsbridge.agents import wire
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.wire import Data, Hello, Names, Run, WireError


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
        wire.parse(packet, self)

    def run(self, run: Run) -> None:
        """See wire.Receiver."""
        if self.greeted:
            (self.incoming or self._expected()).accept_run(run)

    def data(self, data: Data) -> None:
        """See wire.Receiver."""
        if self.greeted:
            self._expected().accept(data)

    def names(self, names: Names) -> None:
        """See wire.Receiver."""
        if self.greeted:
            self._expected().accept_names(names)

    def _expected(self) -> Incoming:
        if self.incoming is None:
            raise WireError("data in a direction that this route does not have")
        return self.incoming

    def ack(self, epoch: int, seq: int) -> None:
        """See wire.Receiver."""
        outgoing = self.outgoing
        if self.greeted and outgoing is not None and epoch == outgoing.store.epoch:
            outgoing.confirm(seq)

    def ack_waits(self) -> bool:
        """True if there is a confirmation, which may wait for a message to travel with, but not for long."""
        return self.incoming is not None and self.incoming.ack_due and self.greeted

    def has_more(self) -> bool:
        """True if `next_packet`, which has just returned a packet, may return one more."""
        return self.outgoing is not None and self.outgoing.has_unsent()

    def _acks_now(self) -> bool:
        """True if a confirmation is due that travels with messages, or that the peer's window may be waiting for."""
        incoming, outgoing = self.incoming, self.outgoing
        if incoming is None or not incoming.ack_due:
            return False
        return (outgoing is not None and outgoing.has_unsent()) or incoming.is_pressing()

    def next_packet(self, *, acks: bool = True) -> bytes:
        """Return the next packet to send, empty if there is none now. Each call counts its content as sent.

        Without `acks`, a confirmation that may wait does.
        """
        parts: list[bytes] = []
        room, incoming, outgoing = wire.MAX_PACKET, self.incoming, self.outgoing
        asks = self._asks or (incoming is not None and incoming.refused and incoming.wants_repeat())
        if asks or self._to_answer:
            self._greet(parts, asks=asks)
            room -= sum(map(len, parts))
        if not self.greeted:
            return b"".join(parts)
        if incoming is not None and incoming.ack_due and (acks or self._acks_now()):
            incoming.acknowledged()
            parts.append(wire.pack_ack(incoming.store.epoch, incoming.store.handed))
            room -= wire.ACK_SIZE
        if outgoing is not None and outgoing.has_unsent():
            outgoing.fill(parts, room)
        return b"".join(parts) if parts else b""

    def _greet(self, parts: list[bytes], *, asks: bool) -> None:
        """Append the greetings that are due: an own one, or an answer, or both."""
        if asks:
            self._asks = False
            parts.append(wire.pack_hello(self._hello(0)))
        if self._to_answer:
            self._answered, self._to_answer = self._to_answer, 0
            parts.append(wire.pack_hello(self._hello(self._answered)))

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

    def hello(self, hello: Hello) -> None:
        """See wire.Receiver."""
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
                self.outgoing.check(hello.in_handed)
                self.outgoing.confirm(hello.in_handed)
            self.outgoing.rewind()
