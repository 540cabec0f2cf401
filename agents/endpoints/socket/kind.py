"""The `socket` endpoint: its entry in the registry."""

from __future__ import annotations

import socket

from nsbridge.agents.confinement import landlock
from nsbridge.agents.confinement.callrules import TREE, Condition, KindCalls, Must, Rule
from nsbridge.agents.confinement.entry import Entered
from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.evidence import evidence
from nsbridge.agents.endpoints.kind import ServedPaths
from nsbridge.agents.endpoints.socket import cells
from nsbridge.agents.endpoints.socket.calls import NUMBERS
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType
from nsbridge.agents.endpoints.socket.connections import ConnectionSource
from nsbridge.agents.endpoints.socket.datagrams import DatagramSource
from nsbridge.agents.endpoints.socket.sink import SocketSink
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal

_FLAGS = int(socket.SOCK_NONBLOCK), int(socket.SOCK_CLOEXEC)
_TYPES = tuple(
    kind.number | flags for kind in SocketType for flags in (0, *_FLAGS, sum(_FLAGS))
)  # with what socket(2) may add to a type
_UNIX = (
    Condition(0, Must.BE_ONE_OF, (int(socket.AF_UNIX),), "AF_UNIX"),
    Condition(1, Must.BE_ONE_OF, _TYPES, "SOCK_DGRAM, SOCK_STREAM, SOCK_SEQPACKET"),
)


class ServedSocket(ServedPaths[SocketEndpoint]):
    """See ServedEndpoint."""

    table = SocketEndpoint
    calls = KindCalls(
        always=(*TREE, "socket:unix", "connect:unix"),
        source=("bind", "listen", "accept4", "preadv2", "renameat2", "fchmodat", "statx", "shutdown"),
        sink=("pwritev2",),
        rules={
            "socket:unix": Rule("socket", "connect to a program's Unix socket, or see if a program uses one", _UNIX),
            "connect:unix": Rule("connect", "connect to a program's Unix socket, or see if a program uses one"),
            "bind": Rule("bind", "put the socket that it was given at its path"),
            "listen": Rule("listen", "let clients of a stream socket connect"),
            "accept4": Rule("accept4", "accept clients of a stream socket"),
            "preadv2": Rule("preadv2", "take datagrams, by a call of their own that is counted"),
            "pwritev2": Rule("pwritev2", "hand messages over to a socket, by a call of their own that is counted"),
            "fchmodat": Rule(
                "fchmodat",
                "give the socket's file its configured mode",
                (Condition(2, Must.HAVE_NONE_OF, (0o7000,), "no setuid, setgid, sticky bit"),),
            ),
        },
        numbers=NUMBERS,
        rights=landlock.MAKE_SOCK,
    )
    source_cells = cells.SOURCE_CELLS
    counter: Counts | None

    def joined(self, agent: AgentApi, entered: Entered, counter: Counts | None) -> None:
        """See ServedEndpoint."""
        super().joined(agent, entered, counter)
        self.counter = counter

    def source(self, agent: AgentApi, journal: SourceJournal) -> Source:
        """See ServedEndpoint."""
        held = socket.socket(fileno=self.assignment.held_fd)
        if self.endpoint.type is SocketType.DATAGRAM:
            return DatagramSource(agent, self.tree, self.endpoint, journal, held, self.counter)
        return ConnectionSource(agent, self.tree, self.endpoint, journal, held)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> Sink:
        """See ServedEndpoint."""
        found = evidence(agent, journal, self.counter, self.assignment.route)
        return SocketSink(agent, self.tree, self.endpoint, found)
