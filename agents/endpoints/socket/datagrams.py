"""The `out` side of a datagram socket: each datagram goes straight into the journal, where the kernel puts it.

The kernel counts the datagrams and keeps their lengths, so a kill of the agent loses none: those that were received
have landed, and those that were not are in the socket, which the supervisor holds. Without the counter a datagram is
looked at, taken, and then removed: a kill in between repeats it.
"""

from __future__ import annotations

import errno
import os
import socket

from nsbridge.agents.counter import LENGTHS, Counts
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.receiving import RowReceiver, take_while_room
from nsbridge.agents.endpoints.socket.calls import PreparedReceive
from nsbridge.agents.endpoints.socket.config import SocketEndpoint
from nsbridge.agents.endpoints.socket.source import SocketSource
from nsbridge.agents.journal.counted import Landing
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message


class DatagramSource(SocketSource):
    """Takes each datagram as a message."""

    def __init__(
        self,
        host: AgentApi,
        tree: Tree,
        config: SocketEndpoint,
        journal: SourceJournal,
        held: socket.socket,
        counter: Counts | None,
    ) -> None:
        super().__init__(host, tree, config, journal, held)
        self._size = config.max_message + 1  # of what is longer one byte more is received, and shows it
        self._landing = Landing(journal, counter, longest=config.max_message) if counter is not None else None
        self._was_too_long = False  # True if the last datagram was
        if self._landing is not None:
            receive = PreparedReceive(held.fileno(), self._size).receive
            self._receiver = RowReceiver(host, self._landing, receive, self._size, config.max_message)

    def _take_all(self) -> bool:
        if take_while_room(self._host, LENGTHS, self._take_some):
            return not self._was_too_long  # then the loop reports the next one
        if not self._host.has_room():  # else it took only what is dropped, and `room_again` would not follow
            self._rest()  # until `room_again`
        return False

    def _take_some(self, most: int, size: int) -> list[int]:
        """Take up to `most` datagrams, while there are `size` bytes of room; return their lengths. Raises Blocked."""
        self._was_too_long = False
        if self._landing is None:
            return self._take_one()
        got, last = self._receiver.take(most, size), self._receiver.last
        if last >= self._size:
            self._refuse()
            self._landing.forget()
        elif not got and last not in (-errno.EAGAIN, -errno.EINTR):
            raise Blocked(f"its socket: {os.strerror(-last)}")
        return got

    def _take_one(self) -> list[int]:
        """Take a datagram without the counter."""
        try:
            body = self._held.recv(self._size, socket.MSG_PEEK)
            is_short = len(body) < self._size
            if is_short:
                self._host.take(Message(0, body))
            else:
                self._refuse()
            self._held.recv(1)
        except BlockingIOError:
            return []
        return [len(body)] if is_short else []

    def _refuse(self) -> None:
        """Report a datagram that is too long: the kernel has given a part of it, and dropped the rest."""
        self._was_too_long = True
        self._dropped.note()
