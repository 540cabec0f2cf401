"""The socket between the two agents of a route: sends a session's packets, and decides when a confirmation is sent."""

from __future__ import annotations

import socket
from collections.abc import Callable

from nsbridge.agents.loop import READABLE, WRITABLE, Loop
from nsbridge.agents.session import Session
from nsbridge.agents.wire import MAX_PACKET

# Seconds that a confirmation may wait, so that it can share a packet with a message: that saves a packet and a wake-up.
# Other late work waits as long, so that messages in flight come first.
_DELAY = 0.002
_MOST_PUT_OFF = 8  # times _DELAY for which late work waits while packets come: between two messages it delays the next
_SHORT = 16 << 10  # bytes; after a shorter packet another one is unlikely
_PACKETS_AT_ONCE = 8  # received before their messages are handed over and confirmed


class PeerLink:
    """Sends and receives the packets of a session. Calls `late` some time after `do_late`, once for several calls.

    While packets come it waits for a pause, but not for long. A confirmation that is sent by itself ends the wait, and
    `late` is called before.

    `sync`, if given, is called before each packet: it makes durable what the packet reports. Then nothing is sent late.
    """

    def __init__(self, loop: Loop, fd: int, late: Callable[[], None], sync: Callable[[], None] | None) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._fd = fd
        self._late = late
        self._sync = sync
        self._session: Session
        self._received: Callable[[], None]
        self._late_is_due = False
        self._has_received = False  # since the timer of late work was set
        self._put_off = 0  # how often late work was, for that
        self._ack_since = 0.0  # when the oldest confirmation that waits became due
        self.acks_at_once = sync is not None  # no confirmation waits
        self.unsent = b""  # a packet for which the socket had no room

    def start(self, session: Session, received: Callable[[], None]) -> None:
        """Receive from now on; `received` is called when the session has taken packets in."""
        self._session = session
        self._received = received
        self._loop.watch(self._fd, READABLE, self._ready)

    def flush(self) -> None:
        """Send what can be sent, except for a confirmation that may wait."""
        session = self._session
        self._send(acks=self.acks_at_once)
        if not session.ack_waits():
            self._ack_since = 0.0
        elif not self._ack_since:
            self._ack_since = self._loop.now()
            self.do_late(_DELAY)

    def flush_all(self) -> None:
        """Send what can be sent."""
        self._ack_since = 0.0
        self._send(acks=True)

    def do_late(self, delay: float = _DELAY) -> None:
        """Call `late` within that time, or in a pause that follows soon."""
        if not self._late_is_due:
            self._late_is_due = True
            self._has_received = False
            self._loop.call_later(delay, self._do_late)

    def _do_late(self) -> None:
        self._late_is_due = False
        left = self._ack_since + _DELAY - self._loop.now() if self._ack_since else 0.0
        acks = bool(self._ack_since) and left <= 0  # nothing has come for it to travel with
        if self._has_received and self._put_off < _MOST_PUT_OFF and not acks:
            self._put_off += 1
        else:
            self._put_off = 0
            self._late()
        if acks:
            self.flush_all()
        elif left > 0:
            self.do_late(left)
        if self._put_off:
            self.do_late()

    def _send(self, *, acks: bool) -> None:
        if self.unsent:
            return  # the socket is full; _ready continues
        if self._sync is not None:
            self._sync()
        session = self._session
        while packet := session.next_packet(acks=acks):
            try:
                self._socket.send(packet)
            except BlockingIOError:
                self.unsent = packet
                self._loop.watch(self._fd, READABLE | WRITABLE, self._ready)
                return
            if not session.has_more():
                return

    def _ready(self, events: int) -> None:
        if events & WRITABLE and self.unsent:
            try:
                self._socket.send(self.unsent)
            except BlockingIOError:
                pass
            else:
                self.unsent = b""
                self._loop.watch(self._fd, READABLE, self._ready)
        self._has_received = True
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = self._socket.recv(MAX_PACKET + 1)
            except BlockingIOError:
                break
            if not packet:
                raise OSError("the route's socket was closed")
            self._session.receive(packet)
            if len(packet) < _SHORT:
                break
        self._received()
