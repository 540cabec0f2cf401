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
from nsbridge.agents.endpoints.socket.calls import PreparedReceive
from nsbridge.agents.endpoints.socket.config import SocketEndpoint
from nsbridge.agents.endpoints.socket.source import SocketSource
from nsbridge.agents.journal.counted import Landing, behind
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message

_FLUSH_EVERY = 64  # messages taken before they are sent on, so that the other agent works meanwhile
_BODY_AT = 8  # in a msgbuf, behind the type


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
        self._receive = PreparedReceive(held.fileno(), self._size)

    def _take_all(self) -> bool:
        host = self._host
        host.retry_dead_letters()
        messages, size = host.room()
        unsent = 0
        while messages > 0 and size > 0:
            got = self._take_some(min(messages, LENGTHS), size)
            if not got:
                return not self._was_too_long  # then the loop reports the next one
            messages, size, unsent = messages - len(got), size - sum(got), unsent + len(got)
            if unsent >= _FLUSH_EVERY:
                unsent = 0
                host.flush()
        if not host.has_room():  # else it took only what is dropped, and `room_again` would not follow
            self._rest()  # until `room_again`
        return False

    def _take_some(self, most: int, size: int) -> list[int]:
        """Take up to `most` datagrams, while there are `size` bytes of room; return their lengths. Raises Blocked."""
        landing, self._was_too_long = self._landing, False
        if landing is None:
            return self._take_one()
        try:
            at = landing.begin(self._size)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        receive, last, most, got = self._receive.receive, landing.last, min(most, landing.most), list[int]()
        length = 0
        try:
            while len(got) < most and size > 0 and at <= last:
                if got:
                    landing.clear(at)
                length = receive(at + _BODY_AT)
                if not 0 <= length < self._size:
                    break
                got.append(length)
                size -= length
                at = behind(at, length)
        finally:
            if got:
                self._host.landed(landing.landed(got))
        if length >= self._size:
            self._refuse()
            landing.forget()
        elif not got and length not in (-errno.EAGAIN, -errno.EINTR):
            raise Blocked(f"its socket: {os.strerror(-length)}")
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
