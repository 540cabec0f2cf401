"""The source of a Unix socket, over real ones: killed at any line, bindings, and clients."""

from __future__ import annotations

import os
import select
import socket
import struct
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.socket.config import SocketType, StreamFraming
from tests.fake_counter import FakeCounter
from tests.kills import killed_at
from tests.socket_life import (  # noqa: F401  (the fixtures)
    RECEIVING,
    client,
    config,
    counter_fixture,
    held,
    polling_fixture,
    served,
    source_life,
)

BODIES = [b"one", b"", b"three" * 50, b"four"]


@pytest.mark.usefixtures("polling")
def test_source_killed_at_any_line_takes_each_datagram_once(tmp_path: Path, counter: FakeCounter) -> None:
    place = tmp_path / "s"
    with held(SocketType.DATAGRAM) as sock, source_life(tmp_path / "0", config(place), sock, counter):
        pass
    line, sock = 0, held(SocketType.DATAGRAM)
    with source_life(tmp_path / "a.out", config(place), sock, counter):
        assert place.stat().st_mode & 0o777 == 0o620
    taken = 0
    for line in count(1):
        is_whole = False
        with client(place) as program:
            for body in BODIES:
                program.send(body)
        with (
            source_life(tmp_path / "a.out", config(place), sock, counter) as (host, source),
            killed_at(line, *RECEIVING),
        ):
            source._take_all()
            is_whole = True
        with source_life(tmp_path / "a.out", config(place), sock, counter) as (host, source):
            host.settle()
            assert host.journal.taken == taken + len(BODIES), f"killed at line {line}"
            assert [host.journal.get(taken + 1 + n).body for n in range(len(BODIES))] == BODIES
            taken = host.journal.taken
            host.journal.confirm(taken)
        if is_whole:
            break
    sock.close()
    assert line > 50


@pytest.mark.usefixtures("polling")
def test_source_without_counter_repeats_one_datagram(tmp_path: Path) -> None:
    place, sock, line, repeated = tmp_path / "s", held(SocketType.DATAGRAM), 0, 0
    parts = ("socket/datagrams.py", "journal/sourcejournal.py")
    for line in count(1):
        is_whole = False
        with source_life(tmp_path / "a.out", config(place), sock, None), client(place) as program:
            program.send(b"a")
            program.send(b"b")
        with source_life(tmp_path / "a.out", config(place), sock, None) as (host, source), killed_at(line, *parts):
            source._take_all()
            is_whole = True
        with source_life(tmp_path / "a.out", config(place), sock, None) as (host, source):
            host.settle()
            bodies = [host.journal.get(seq).body for seq in range(host.journal.confirmed + 1, host.journal.taken + 1)]
            assert bodies in ([b"a", b"b"], [b"a", b"a", b"b"], [b"a", b"b", b"b"]), f"killed at line {line}"
            repeated += len(bodies) - 2
            host.journal.confirm(host.journal.taken)
        if is_whole:
            break
    sock.close()
    assert repeated


def test_too_long_datagram_is_reported(tmp_path: Path, counter: FakeCounter) -> None:
    place, sock = tmp_path / "s", held(SocketType.DATAGRAM)
    with source_life(tmp_path / "a.out", config(place), sock, counter) as (host, _source), client(place) as program:
        for body in (b"before", bytes(1001), bytes(1000), b"behind"):
            program.send(body)
        host.settle()
        assert [message.body for message in host.took()] == [b"before", bytes(1000), b"behind"]
        assert host.said == ["dropped a message longer than max_message = 1000"]
    sock.close()


def test_only_a_stale_socket_is_replaced(tmp_path: Path, counter: FakeCounter) -> None:
    place = tmp_path / "s"
    with held(SocketType.DATAGRAM) as stale:
        stale.bind(str(place))
    with held(SocketType.DATAGRAM) as sock, source_life(tmp_path / "1", config(place), sock, counter) as (host, _):
        assert host.reason == ""
        client(place).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "s"]
    place.unlink()
    for number, (make, why) in enumerate(OTHERS.items()):
        kept = make(place)
        before = place.lstat()
        with (
            held(SocketType.DATAGRAM) as sock,
            source_life(tmp_path / f"x{number}", config(place), sock, counter) as (
                host,
                _,
            ),
        ):
            assert host.reason == f"{place} {why}: the agent waits until that is removed"
            assert place.lstat().st_ino == before.st_ino
            if kept is not None:
                kept.close()
            place.unlink()
            host.run_until(lambda: host.reason == "", "it is bound")
        place.unlink()


def a_file(place: Path) -> None:
    place.write_bytes(b"")


def a_link(place: Path) -> None:
    place.symlink_to("/etc/passwd")


def a_live_socket(place: Path) -> socket.socket:
    live = held(SocketType.DATAGRAM)
    live.bind(str(place))
    return live


def a_live_stream(place: Path) -> socket.socket:
    live = held(SocketType.STREAM)
    live.bind(str(place))
    live.listen()
    return live


def a_stale_socket_of_another(place: Path) -> None:
    a_live_socket(place).close()
    os.chown(place, 1234, 1234)


OTHERS = {
    a_file: "is no socket",
    a_link: "is no socket",
    a_live_socket: "is a socket that a program uses",
    a_live_stream: "is a socket that a program uses",
    a_stale_socket_of_another: "is a socket of uid 1234",
}


def test_socket_whose_path_is_lost_is_emptied_and_renewed(tmp_path: Path, counter: FakeCounter) -> None:
    place, sock = tmp_path / "s", held(SocketType.DATAGRAM)
    with source_life(tmp_path / "a.out", config(place), sock, counter, messages=1) as (host, source):
        with client(place) as program:
            program.send(b"1")
            program.send(b"2")
        place.unlink()
        host.run_until(lambda: any("was removed or replaced" in line for line in host.said), "it is seen")
        host.settle()
        assert host.renewed == 0
        assert host.journal.get(1).body == b"1"
        host.journal.confirm(1)
        source.room_again()
        assert host.journal.get(2).body == b"2"
        host.journal.confirm(2)
        with pytest.raises(Gone, match="no longer leads to its socket"):
            source.room_again()
        assert host.renewed == 1
    sock.close()


@pytest.mark.parametrize("framing", StreamFraming)
def test_stream_clients_are_taken_each_in_its_order(tmp_path: Path, framing: StreamFraming) -> None:
    """Messages come in pieces; what a client sent last without a newline is a message too."""
    place, sock = tmp_path / "s", held(SocketType.STREAM)
    with source_life(tmp_path / "a.out", config(place, SocketType.STREAM, framing), sock, None) as (host, source):
        clients = [client(place, SocketType.STREAM) for _ in range(20)]
        for number, program in enumerate(clients):
            for part in (b"%d a" % number, b"", b"%d b" % number, bytes(1001)):
                data = part + b"\n" if framing is StreamFraming.LINE else struct.pack(">I", len(part)) + part
                program.send(data[:2])
                host.settle()
                program.send(data[2:])
            program.send(b"rest" if framing is StreamFraming.LINE else b"\0\0")
            program.close()
        host.run_until(lambda: served(source), "all are served")
        bodies = [message.body for message in host.took()]
        last = [b"rest"] if framing is StreamFraming.LINE else []
        for number in range(20):
            assert [body for body in bodies if body.startswith(b"%d " % number)] == [b"%d a" % number, b"%d b" % number]
        assert len(bodies) == 20 * (3 + len(last))
        assert host.said[0] == "dropped a message longer than max_message = 1000"
    sock.close()


def test_full_window_holds_clients_back(tmp_path: Path) -> None:
    place, sock = tmp_path / "s", held(SocketType.STREAM)
    with source_life(tmp_path / "a.out", config(place, SocketType.STREAM), sock, None, messages=3) as (host, source):
        with client(place, SocketType.STREAM) as program:
            program.setblocking(False)
            sent = 0
            while select.select([], [program], [], 0)[1]:
                sent += program.send(b"x" * 99 + b"\n")
                host.settle()
            assert host.journal.taken == 3
            program.close()
        while host.journal.taken < sent // 100:
            host.journal.confirm(host.journal.taken)
            source.room_again()
            host.settle()
        assert host.journal.taken == sent // 100
    sock.close()


def test_packets_are_messages(tmp_path: Path) -> None:
    place, sock = tmp_path / "s", held(SocketType.SEQPACKET)
    with source_life(tmp_path / "a.out", config(place, SocketType.SEQPACKET), sock, None) as (host, source):
        with client(place, SocketType.SEQPACKET) as program:
            for body in (b"a", b"b\n", bytes(1001), b"c"):
                program.send(body)
                host.settle()
        host.run_until(lambda: served(source), "it is served")
        assert [message.body for message in host.took()] == [b"a", b"b\n", b"c"]
    sock.close()


@pytest.mark.parametrize("is_counted", [True, False])
def test_flood_of_too_long_datagrams_is_two_lines(tmp_path: Path, counter: FakeCounter, is_counted: bool) -> None:
    place, sock, now = tmp_path / "s", held(SocketType.DATAGRAM), [0.0]
    with source_life(tmp_path / "a.out", config(place), sock, counter if is_counted else None) as (host, _source):
        host.loop.now = lambda: now[0]
        with client(place) as program:
            for _ in range(300):
                program.send(bytes(1001))
                host.settle()
            program.send(b"behind")
            now[0] = 11.0
            host.settle()
        assert [message.body for message in host.took()] == [b"behind"]
        assert host.said == [
            "dropped a message longer than max_message = 1000",
            "dropped 299 messages longer than max_message = 1000",
        ]
    sock.close()
