"""The late work of a PeerLink: it waits for a pause in which no packets come, or for a confirmation."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.agents.peerlink import PeerLink
from nsbridge.agents.session import Session
from tests.agent_life import FakeLoop


class FakeSession:
    """See Session: a confirmation waits if `acks`; it is the only thing to send."""

    def __init__(self) -> None:
        self.acks = False

    def receive(self, packet: bytes) -> None:
        """Do nothing."""

    def ack_waits(self) -> bool:
        """See Session."""
        return self.acks

    def has_more(self) -> bool:
        """See Session."""
        return False

    def next_packet(self, *, acks: bool = True) -> bytes:
        """Return the confirmation."""
        packet, self.acks = (b"ack", False) if acks and self.acks else (b"", self.acks)
        return packet


class WatchedLoop(FakeLoop):
    """Its one descriptor is served by `packet`."""

    def watch(self, _fd: int, _mask: int, callback: object) -> None:
        """Remember the callback."""
        self.callback = callback


class Life:
    """A link, and the times at which its late work was done."""

    def __init__(self) -> None:
        self.peer, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.loop, self.session = WatchedLoop(), FakeSession()
        self.done: list[float] = []
        self.link = PeerLink(cast(Loop, self.loop), mine.detach(), lambda: self.done.append(self.loop.time), None)
        self.link.start(cast(Session, self.session), lambda: None)
        self.begun = self.loop.time

    def packet(self) -> None:
        """Let a packet come."""
        self.peer.send(b"packet")
        self.link._ready(1)

    def late(self) -> list[int]:
        """Return how many ms after the beginning late work was done."""
        return [round((time - self.begun) * 1000) for time in self.done]


@pytest.fixture
def life() -> Iterator[Life]:
    made = Life()
    yield made
    made.link._socket.close()
    made.peer.close()


def test_late_work_is_done_soon(life: Life) -> None:
    life.packet()
    life.link.do_late()
    life.link.do_late()
    life.loop.fire()
    assert (life.late(), life.loop.pending()) == ([2], [])


def test_late_work_waits_for_a_pause(life: Life) -> None:
    life.link.do_late()
    for _ in range(3):
        life.packet()
        life.loop.fire()
    assert life.late() == []
    life.loop.fire()
    assert (life.late(), life.loop.pending()) == ([8], [])


def test_late_work_does_not_wait_for_long(life: Life) -> None:
    life.link.do_late()
    for _ in range(9):
        life.packet()
        life.loop.fire()
    assert life.late() == [18]


def test_late_work_precedes_a_confirmation_that_goes_alone(life: Life) -> None:
    life.session.acks = True
    life.link.flush()
    life.packet()
    life.peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        life.peer.recv(100)
    life.loop.fire()
    assert (life.late(), life.peer.recv(100)) == ([2], b"ack")
