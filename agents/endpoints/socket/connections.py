"""The `out` side of a stream or seqpacket socket: many clients connect, and each sends messages.

Clients that connect while no agent runs wait in the socket, which the supervisor holds. Only the agent holds a
connection: a kill ends it, and loses the messages that its client has sent and the agent has not taken.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log.framing import LengthSplitter, LineSplitter, Splitter, TooLong
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.endpoints.socket.source import SocketSource
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.loop import HUNG_UP, READABLE
from nsbridge.agents.wire import Message

_CHUNK = 64 << 10  # bytes read at once from one connection, so that the others have their turn
MOST_CLIENTS = 200  # connections at once, below health.max_descriptors; others wait in the socket's backlog


class _Client:
    """One connection."""

    __slots__ = ("is_over", "is_watched", "items", "sock", "splitter")

    def __init__(self, sock: socket.socket, splitter: Splitter | None) -> None:
        self.sock = sock
        self.splitter = splitter  # None: each packet is a message
        self.items: list[bytes] = []  # complete messages that there was no room for
        self.is_watched = False
        self.is_over = False


class ConnectionSource(SocketSource):
    """Takes the messages of all clients; those of each client keep their order."""

    def __init__(
        self, host: AgentApi, tree: Tree, config: SocketEndpoint, journal: SourceJournal, held: socket.socket
    ) -> None:
        super().__init__(host, tree, config, journal, held)
        self._clients: dict[_Client, None] = {}  # in the order in which they came

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
        return False

    def _splitter(self) -> Splitter:
        is_lines = self._config.framing is StreamFraming.LINE
        return LineSplitter(self._config.max_message) if is_lines else LengthSplitter(self._config.max_message)

    def _watch(self, client: _Client) -> None:
        if not client.is_watched:
            client.is_watched = True
            self._host.loop.watch(client.sock.fileno(), READABLE, lambda events: self._readable(client, events))

    def _unwatch(self, client: _Client) -> None:
        if client.is_watched:
            client.is_watched = False
            self._host.loop.unwatch(client.sock.fileno())

    def _readable(self, client: _Client, events: int) -> None:
        if not self._host.has_room():
            self._unwatch(client)  # until `room_again`: then it, or the kernel, holds the program back
            return
        try:
            data = self._received(client)
        except BlockingIOError:
            return
        except OSError:
            data = None
        if data is None or (not data and (client.splitter is not None or events & HUNG_UP)):
            self._ended(client)
            return
        self._split(client, data)
        self._serve(client)

    def _received(self, client: _Client) -> bytes:
        if client.splitter is not None:
            return client.sock.recv(_CHUNK)
        return client.sock.recv(self._config.max_message + 1)

    def _split(self, client: _Client, data: bytes) -> None:
        found = client.splitter.feed(data) if client.splitter is not None else [data]
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
            host.log("warning", f"a client's message waits: {reason}")
        finally:
            del client.items[:taken]
            if taken:
                host.flush()
        if client.items:
            self._unwatch(client)
        elif client.is_over:
            self._clients.pop(client, None)
            self._listen()  # there may be others, and there was no room for them
        else:
            self._watch(client)

    def _ended(self, client: _Client) -> None:
        """Close a connection that its client has ended. A rest without a newline is a message, too."""
        rest = client.splitter.end() if client.splitter is not None else None
        if rest is not None and not isinstance(rest, TooLong):
            client.items.append(rest.body)
        self._unwatch(client)
        client.is_over = True
        with suppress(OSError):
            client.sock.close()
        self._serve(client)
