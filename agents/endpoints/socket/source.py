"""Holds what both sources of sockets share: the held socket, its binding, and the end when the path is lost."""

from __future__ import annotations

import socket
from abc import abstractmethod

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource, Waiter, log_recovered
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.socket.binding import LostPathError, SocketBinding
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.loop import READABLE

_REPORT_EVERY = 10.0  # seconds


class DroppedMessages:
    """Reports messages that were too long: the first at once, then their number each _REPORT_EVERY seconds."""

    def __init__(self, host: AgentApi, limit: int) -> None:
        self._host = host
        self._limit = limit
        self._unreported = 0
        self._is_due = False

    def note(self) -> None:
        """Count a message."""
        self._unreported += 1
        if not self._is_due:
            self._report()

    def _report(self) -> None:
        self._is_due = self._unreported > 0
        if self._is_due:
            count, self._unreported = self._unreported, 0
            what = "a message" if count == 1 else f"{count} messages"
            self._host.report_refused(f"dropped {what} longer than max_message = {self._limit}", moved=False)
            self._host.loop.call_later(_REPORT_EVERY, self._report)


class SocketSource(EventSource):
    """Receives from the socket that the supervisor holds, once it is bound."""

    def __init__(
        self, host: AgentApi, tree: Tree, config: SocketEndpoint, journal: SourceJournal, held: socket.socket
    ) -> None:
        self._host = host
        self._config = config
        self._journal = self.store = journal
        self._held = held
        self._binding = SocketBinding(host, tree, config, held, journal.cells, self._changed)
        self._waiter = Waiter(host, "out", self._again)
        self._dropped = DroppedMessages(host, config.max_message)
        self._is_watched = False
        self._is_shut = False  # True if it takes no more datagrams
        self._is_lost = False  # True if the path is lost: what the socket has is taken, then the agent enters anew

    def start(self) -> None:
        """Bind the socket, and take what it has."""
        log_recovered(self._host, self._journal, "had just been received")
        self._again()

    def room_again(self) -> None:
        """Continue to take."""
        self._listen()
        if self._is_lost:
            self._ready(0)

    @abstractmethod
    def _take_all(self) -> bool:
        """Take while there is room. Return True if the held socket has nothing left. Raises Blocked."""

    def _ready(self, _events: int) -> None:
        try:
            is_empty = self._take_all()
        except Blocked as reason:
            self._rest()
            self._waiter.wait(reason)
            return
        finally:
            self._host.flush()
        if is_empty and self._is_lost and not self._is_shut and self._config.type is SocketType.DATAGRAM:
            self._is_shut = True
            self._held.shutdown(socket.SHUT_RD)  # programs that are still connected get an error from now on
            self._ready(0)  # what they sent before is there
        elif is_empty and self._is_lost:
            self._host.renew_socket()
            raise Gone(
                f"the path {shown(self._binding.path)} no longer leads to its socket; entering anew with another"
            )

    def _again(self) -> None:
        try:
            self._binding.open()
        except Blocked as reason:
            self._waiter.wait(reason)
            return
        except LostPathError:
            self._is_lost = True
        self._waiter.done()
        self.room_again()

    def _changed(self) -> None:
        if not self._is_lost and not self._waiter.waits and not self._binding.is_there():
            self._host.log("warning", f"{shown(self._binding.path)} was removed or replaced")
            self._again()

    def _listen(self) -> None:
        if not self._is_watched and not self._waiter.waits:
            self._is_watched = True
            self._host.loop.watch(self._held.fileno(), READABLE, self._ready)

    def _rest(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._host.loop.unwatch(self._held.fileno())
