"""Sessions of which one only sends and the other only receives, without a socket between them."""

from __future__ import annotations

from itertools import count

from nsbridge.agents.incoming import Incoming
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.session import Session
from nsbridge.agents.wire import Message
from nsbridge.config.schema import Window
from tests.memory_store import MemorySink, MemorySource, hand_over_one

NONCES = count(1)
WIDE = Window()


class Source:
    """A session that only sends."""

    def __init__(self, epoch: int = 100, window: Window = WIDE, store: MemorySource | None = None) -> None:
        self.store = store or MemorySource(epoch)
        self.out = Outgoing(self.store, window)
        self.session = Session(next(NONCES), self.out, None)

    def take(self, *bodies: bytes) -> None:
        for body in bodies:
            self.store.append(Message(1, body))


class Sink:
    """A session that only receives."""

    def __init__(self, window: Window = WIDE, store: MemorySink | None = None) -> None:
        self.store = store or MemorySink()
        self.in_ = Incoming(self.store, window)
        self.session = Session(next(NONCES), None, self.in_)

    def hand_over(self, limit: int = 1000) -> list[bytes]:
        bodies: list[bytes] = []
        while self.in_.waiting and limit:
            bodies += hand_over_one(self.in_).bodies
            limit -= 1
        return bodies


def packets(session: Session) -> list[bytes]:
    return list(iter(session.next_packet, b""))


def exchange(one: Session, other: Session) -> None:
    """Let both send all that they have to send."""
    for _ in range(100):
        there, back = packets(one), packets(other)
        for packet in there:
            other.receive(packet)
        for packet in back:
            one.receive(packet)
        if not there and not back:
            return
    raise AssertionError("they talk without end")


def greeted(window: Window = WIDE) -> tuple[Source, Sink]:
    source, sink = Source(window=window), Sink(window)
    exchange(source.session, sink.session)
    return source, sink
