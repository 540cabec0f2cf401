"""The sink of a Unix socket, over real ones: killed at any line, each message is sent once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.evidence import evidence
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.endpoints.socket.sink import SocketSink
from nsbridge.agents.journal.sinkjournal import IN_DOUBT
from nsbridge.agents.wire import Run
from tests.fake_counter import FakeCounter
from tests.kills import killed_at
from tests.mqueue_life import EPOCH, SendingHost, route
from tests.socket_life import counter_fixture, held  # noqa: F401  (a fixture)

SENDING = ("socket/sink.py", "endpoints/evidence.py", "journal/counted.py", "journal/sinkjournal.py")


@contextmanager
def sink_life(
    path: Path, endpoint: SocketEndpoint, counter: FakeCounter | None
) -> Iterator[tuple[SendingHost, SocketSink]]:
    """Start an agent's sink."""
    host = SendingHost(path)
    sink = SocketSink(host, host.tree, endpoint, evidence(host, host.journal, counter, route()))
    host.sink = sink
    sink.start()
    try:
        yield host, sink
    finally:
        sink._leave()
        host.close()


@pytest.mark.parametrize("kind", SocketType)
def test_sink_killed_at_any_line_sends_each_message_once(
    tmp_path: Path, counter: FakeCounter, kind: SocketType
) -> None:
    """A program takes what each connection brings; a part of a message at its end is none."""
    place, line = tmp_path / "s", 0
    long = b"x" * 40_000
    bodies = [
        b"one",
        b"" if kind is not SocketType.SEQPACKET else b"two",
        long,
        b"four",
    ]  # there an empty one is no end
    expected = [bodies]
    if kind is not SocketType.STREAM:
        expected.append([b"one", b"", *bodies[1:]])  # an empty message is sent by a call that is not counted
    endpoint = SocketEndpoint(in_=str(place), type=kind, framing=StreamFraming.LENGTH)
    with held(kind) as program:
        program.bind(str(place))
        if kind is not SocketType.DATAGRAM:
            program.listen(5)
        for line in count(1):
            path, is_whole, got = tmp_path / f"{line}.in", False, list[bytes]()
            with sink_life(path, endpoint, counter) as (host, sink):
                host.journal.adopt(EPOCH, 0)
                with killed_at(line, *SENDING):
                    is_whole = sink.put(Run(EPOCH, 1, 0, bodies)) == len(bodies)
            got += arrived(program, kind)
            with sink_life(path, endpoint, counter) as (host, sink):
                assert sink.put(Run(EPOCH, 1, 0, bodies)) == len(bodies)
                assert host.journal.cells[IN_DOUBT] == 0
            got += arrived(program, kind)
            assert got in expected, f"killed at line {line}"
            if is_whole:
                break
    assert line > 60


def arrived(program: socket.socket, kind: SocketType) -> list[bytes]:
    """Return what the sink's connection has brought, until its end."""
    found: list[bytes] = []
    if kind is SocketType.DATAGRAM:
        while (body := _packet(program)) is not None:
            found.append(body)
        return found
    with program.accept()[0] as connection:
        connection.settimeout(5)
        if kind is SocketType.SEQPACKET:
            # The end of a connection looks as an empty packet does, and comes last.
            while (body := connection.recv(1 << 17)) or connection.recv(1, socket.MSG_PEEK):
                found.append(body)
            return found
        data = b""
        while part := connection.recv(1 << 17):
            data += part
    while len(data) >= 4 and len(data) >= (end := 4 + struct.unpack(">I", data[:4])[0]):
        found.append(data[4:end])
        data = data[end:]
    return found


def _packet(program: socket.socket) -> bytes | None:
    try:
        return program.recv(1 << 17)
    except BlockingIOError:
        return None


def test_sink_waits_for_its_program_and_connects_again(tmp_path: Path, counter: FakeCounter) -> None:
    place = tmp_path / "s"
    endpoint = SocketEndpoint(in_=str(place), type=SocketType.STREAM)
    with sink_life(tmp_path / "a.in", endpoint, counter) as (host, _sink):
        host.journal.adopt(EPOCH, 0)
        assert host.reason == f"no socket {place} in docker:web: has its program started?"
        host.send(Run(EPOCH, 1, 0, [b"a"]))
        for body in (b"a\n", b"b\n"):
            with held(SocketType.STREAM) as program:
                program.bind(str(place))
                program.listen()
                host.run_until(lambda: host.reason == "", "it is connected")
                with program.accept()[0] as connection:
                    if body == b"b\n":
                        host.send(Run(EPOCH, 2, 0, [b"b"]))
                    connection.settimeout(5)
                    assert connection.recv(100) == body
            host.run_until(lambda: "no program uses it" in host.reason, "it has noticed the end")
            place.unlink()


def test_full_socket_is_waited_for(tmp_path: Path, counter: FakeCounter) -> None:
    place = tmp_path / "s"
    with held(SocketType.DATAGRAM) as program:
        program.bind(str(place))
        with sink_life(tmp_path / "a.in", SocketEndpoint(in_=str(place)), counter) as (host, _sink):
            host.journal.adopt(EPOCH, 0)
            bodies = [b"%d" % number for number in range(2000)]
            host.send(Run(EPOCH, 1, 0, bodies))
            assert host.reason == f"{place} is full: its program does not read"
            got: list[bytes] = []
            while len(got) < len(bodies):
                got += arrived(program, SocketType.DATAGRAM)
                host.settle()
            assert got == bodies


def test_unfit_messages_become_dead_letters(tmp_path: Path, counter: FakeCounter) -> None:
    place = tmp_path / "s"
    endpoint = SocketEndpoint(in_=str(place), type=SocketType.STREAM, max_message=1000)
    with held(SocketType.STREAM) as program:
        program.bind(str(place))
        program.listen()
        with sink_life(tmp_path / "a.in", endpoint, counter) as (host, sink):
            host.journal.adopt(EPOCH, 0)
            assert sink.put(Run(EPOCH, 1, 0, [b"two\nlines", bytes(1001)])) == 2
            assert host.letters == [
                (1, "it has a newline in it, and lines are sent"),
                (2, "1001 bytes are more than max_message = 1000 of this agent"),
            ]
