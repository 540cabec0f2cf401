"""The `out` side of a stream or seqpacket socket: many clients connect, and each sends messages.

Clients that connect while no agent runs wait in the socket, which the supervisor holds. Only the agent holds a
connection: a kill ends it, and loses the messages that its client has sent and the agent has not taken.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress

from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log.framing import Item, LengthSplitter, LineSplitter, Splitter, TooLong
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.endpoints.socket.source import SocketSource
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.loop import HUNG_UP, READABLE
from nsbridge.agents.wire import Message

_CHUNK = 64 << 10  # bytes read at once from one connection, so that the others have their turn
_ENDS = HUNG_UP | select.EPOLLRDHUP  # the client sends no more; what it sent is still there
_MOST_EMPTY = 1024  # packets in a row: so many do not fit into a socket, so the connection is at its end
_MOST_KEPT = 16 << 20  # bytes of incomplete messages; beyond it one client at a time may complete its own
MOST_CLIENTS = 200  # connections at once, below health.max_descriptors; others wait in the socket's backlog


class _Client:
    """One connection."""

    __slots__ = ("is_over", "is_watched", "items", "kept", "sock", "splitter")

    def __init__(self, sock: socket.socket, splitter: Splitter | None) -> None:
        self.sock = sock
        self.splitter = splitter  # None: each packet is a message
        self.items: list[bytes] = []  # complete messages that there was no room for
        self.kept = 0  # bytes of a message that is incomplete
        self.is_watched = False
        self.is_over = False


class ConnectionSource(SocketSource):
    """Takes the messages of all clients; those of each client keep their order."""

    def __init__(
        self, host: AgentApi, tree: Tree, config: SocketEndpoint, journal: SourceJournal, held: socket.socket
    ) -> None:
        super().__init__(host, tree, config, journal, held)
        self._clients: dict[_Client, None] = {}  # in the order in which they came
        self._kept = 0  # bytes of all incomplete messages
        self._shown = ""

    def room_again(self) -> None:
        """See SocketSource: what was read before goes first."""
        for client in list(self._clients):
            if not self._host.has_room():
                return
            self._serve(client)
        super().room_again()

    def _take_all(self) -> bool:
        """Accept clients: a connection has room for what it sends."""
        self._host.retry_dead_letters()
        while len(self._clients) < MOST_CLIENTS:
            try:
                sock, _ = self._held.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                raise Blocked(f"a client cannot be accepted: {os.strerror(error.errno or 0)}") from None
            sock.setblocking(False)
            is_stream = self._config.type is SocketType.STREAM
            client = _Client(sock, self._splitter() if is_stream else None)
            self._clients[client] = None
            self._watch(client)
        self._rest()
        self._show()
        return False

    def _splitter(self) -> Splitter:
        is_lines = self._config.framing is StreamFraming.LINE
        return LineSplitter(self._config.max_message) if is_lines else LengthSplitter(self._config.max_message)

    def _watch(self, client: _Client) -> None:
        if not client.is_watched:
            client.is_watched = True
            self._host.loop.watch(
                client.sock.fileno(), READABLE | select.EPOLLRDHUP, lambda events: self._readable(client, events)
            )

    def _unwatch(self, client: _Client) -> None:
        if client.is_watched:
            client.is_watched = False
            self._host.loop.unwatch(client.sock.fileno())

    def _readable(self, client: _Client, events: int) -> None:
        if not self._host.has_room() or not self._may_read(client):
            self._unwatch(client)  # until `room_again` or `_count`: then it, or the kernel, holds the program back
            return
        try:
            found = self._received(client, may_end=bool(events & _ENDS))
        except BlockingIOError:
            return
        except OSError:
            found = None
        if found is None:
            self._ended(client)
            return
        self._keep(client, found)
        self._serve(client)

    def _received(self, client: _Client, *, may_end: bool) -> Sequence[Item] | None:
        """Return the messages that are complete now; None at the end of the connection. Raises OSError."""
        if client.splitter is not None:
            data = client.sock.recv(_CHUNK)
            return client.splitter.feed(data) if data else None
        packets: list[Item] = []
        while True:
            data = client.sock.recv(self._config.max_message + 1)
            packets.append(data)
            if data or not may_end:
                return packets
            if len(packets) > _MOST_EMPTY:
                return None  # an end reads as empty packets; those right before it look the same

    def _may_read(self, client: _Client) -> bool:
        """True unless too much is incomplete: then the client that came first completes its message."""
        return self._kept < _MOST_KEPT or client is self._first_incomplete()

    def _first_incomplete(self) -> _Client | None:
        return next((client for client in self._clients if client.kept), None)

    def _count(self, client: _Client) -> None:
        """Count what is incomplete, and read on from those whose turn it is now."""
        before, kept = self._kept, client.splitter.kept if client.splitter is not None else 0
        self._kept += kept - client.kept
        client.kept = kept
        if max(before, self._kept) < _MOST_KEPT:
            return
        first = self._first_incomplete()
        for other in self._clients if self._kept < _MOST_KEPT else [first] if first is not None else []:
            if not other.items and not other.is_over:
                self._watch(other)
        self._show()

    def _show(self) -> None:
        """Show in status that clients wait for others."""
        text = ""
        if len(self._clients) >= MOST_CLIENTS:
            text = f"{MOST_CLIENTS} clients are connected: others wait until one of them closes"
        elif self._kept >= _MOST_KEPT:
            text = f"clients have sent {self._kept >> 20} MiB of half messages: they complete them one after the other"
        if text[:20] != self._shown[:20]:
            self._shown = text
            self._host.notice("out", text)

    def _keep(self, client: _Client, found: Sequence[Item]) -> None:
        self._count(client)
        limit = self._config.max_message
        for item in found:
            if isinstance(item, TooLong) or len(item) > limit:
                self._dropped.note()
            else:
                client.items.append(item)

    def _serve(self, client: _Client) -> None:
        """Take the client's messages while there is room; then read on, or wait for room."""
        host, taken = self._host, 0
        try:
            while taken < len(client.items) and host.has_room():
                host.take(Message(0, client.items[taken]))
                taken += 1
        except Blocked as reason:
            self._rest()
            self._waiter.wait(reason)
        finally:
            del client.items[:taken]
            if taken:
                host.flush()
        if client.items:
            self._unwatch(client)
        elif client.is_over:
            self._clients.pop(client, None)
            self._listen()  # there may be others, and there was no room for them
            self._show()
        else:
            self._watch(client)

    def _ended(self, client: _Client) -> None:
        """Close a connection that its client has ended. A rest without a newline is a message, too."""
        rest = client.splitter.end() if client.splitter is not None else None
        if rest is not None and not isinstance(rest, TooLong):
            client.items.append(rest.body)
        self._count(client)
        self._unwatch(client)
        client.is_over = True
        with suppress(OSError):
            client.sock.close()
        self._serve(client)
