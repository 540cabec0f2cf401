"""Unix sockets as the supervisor makes them, lives of their source in this process, and a counter of messages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints import directory, watch
from nsbridge.agents.endpoints.socket.calls import NUMBERS
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.endpoints.socket.connections import ConnectionSource
from nsbridge.agents.endpoints.socket.datagrams import DatagramSource
from nsbridge.agents.endpoints.socket.source import SocketSource
from nsbridge.agents.journal.counted import recover_landed
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message
from tests.fake_counter import FakeCounter
from tests.mqueue_life import TakingHost

# Modules before whose every line a source is killed
RECEIVING = (
    "socket/datagrams.py",
    "socket/source.py",
    "endpoints/receiving.py",
    "journal/counted.py",
    "journal/sourcejournal.py",
)


@pytest.fixture(name="polling")
def polling_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no inotify: the kernel takes 20 ms to close an instance."""
    monkeypatch.setattr(directory, "watch_directory", watch.PollingWatch)


@pytest.fixture(name="counter")
def counter_fixture(monkeypatch: pytest.MonkeyPatch) -> FakeCounter:
    """Follow the real calls, as the kernel does: a call and its count are one step."""
    made, prepared = FakeCounter(), linux.prepared

    def prepare(number: int, *arguments: int | bytes) -> object:
        call, passed = prepared(number, *arguments)

        def counting() -> int:
            result = call()
            if result >= 0 and number in NUMBERS["pwritev2"]:
                made.sent += 1
            elif result >= 0:
                made.received += 1
                made._lengths.append(result)
            return result

        return counting, passed

    monkeypatch.setattr(linux, "prepared", prepare)
    return made


def held(kind: SocketType) -> socket.socket:
    """Return a socket as the supervisor makes it."""
    made = socket.socket(socket.AF_UNIX, kind.number)
    made.setblocking(False)
    return made


class ClientsHost(TakingHost):
    """Takes messages by `take` too."""

    refusals: list[str]

    def take(self, message: Message, note: bytes = b"") -> int:
        """See AgentApi."""
        return self.journal.append(message)

    def has_room(self) -> bool:
        """See AgentApi."""
        return self.room()[0] > 0


@contextmanager
def source_life(
    path: Path, config: SocketEndpoint, sock: socket.socket, counter: FakeCounter | None, messages: int = 100
) -> Iterator[tuple[ClientsHost, SocketSource]]:
    """Start an agent's source, which finds the socket that its supervisor holds."""

    def settle(made: SourceJournal) -> None:
        recover_landed(made, counter)

    made = open_source(str(path), 103, 1 << 20, settle=settle)
    host = ClientsHost(made, messages)
    source: SocketSource
    if config.type is SocketType.DATAGRAM:
        source = DatagramSource(host, host.tree, config, made, sock, counter)
    else:
        source = ConnectionSource(host, host.tree, config, made, sock)
    source.start()
    try:
        yield host, source
    finally:
        if isinstance(source, ConnectionSource):
            for client in source._clients:
                client.sock.close()
        source._binding.close()
        host.close()


def client(path: Path, kind: SocketType = SocketType.DATAGRAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind.number)
    made.settimeout(5)
    made.connect(str(path))
    return made


def served(source: SocketSource) -> bool:
    return isinstance(source, ConnectionSource) and not source._clients


def config(
    path: Path, kind: SocketType = SocketType.DATAGRAM, framing: StreamFraming = StreamFraming.LINE
) -> SocketEndpoint:
    return SocketEndpoint(out=str(path), type=kind, framing=framing, max_message=1000, mode=0o620)
