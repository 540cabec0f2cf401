"""The source of a Unix socket against hostile clients: floods, odd ends, half messages, and a full disk."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.socket import connections
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.endpoints.socket.connections import ConnectionSource
from nsbridge.agents.endpoints.socket.datagrams import DatagramSource
from nsbridge.agents.wire import Message
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


@pytest.mark.usefixtures("polling")
def test_flood_of_too_long_datagrams_ends_no_agent(
    tmp_path: Path, counter: FakeCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program sends them as fast as the agent drops them."""
    place, sock = tmp_path / "s", held(SocketType.DATAGRAM)
    with source_life(tmp_path / "a.out", config(place), sock, counter) as (host, source), client(place) as program:
        assert isinstance(source, DatagramSource)
        left, refuse = [2 * sys.getrecursionlimit()], source._refuse

        def refuse_and_send() -> None:
            refuse()
            if left[0]:
                left[0] -= 1
                program.send(bytes(1001))

        monkeypatch.setattr(source, "_refuse", refuse_and_send)
        program.send(bytes(1001))
        passes = 0
        while left[0]:
            host.loop.run_once(0.02)
            passes += 1
        assert passes > 2, "the loop serves others, too"
        program.send(b"behind")
        host.settle()
        assert [message.body for message in host.took()] == [b"behind"]
    sock.close()


@pytest.mark.usefixtures("polling")
def test_kill_makes_no_message_of_a_too_long_datagram(tmp_path: Path, counter: FakeCounter) -> None:
    place, sock = tmp_path / "s", held(SocketType.DATAGRAM)
    with source_life(tmp_path / "0", config(place), sock, counter):
        pass
    sock.close()
    sock = held(SocketType.DATAGRAM)
    bodies, taken = [b"a", bytes(1001), b"b"], 0
    for line in count(1):
        is_whole = False
        with source_life(tmp_path / "a.out", config(place), sock, counter), client(place) as program:
            for body in bodies:
                program.send(body)
        with (
            source_life(tmp_path / "a.out", config(place), sock, counter) as (_host, source),
            killed_at(line, *RECEIVING),
        ):
            source._take_all()
            is_whole = True
        with source_life(tmp_path / "a.out", config(place), sock, counter) as (host, source):
            host.settle()
            got = [host.journal.get(seq).body for seq in range(taken + 1, host.journal.taken + 1)]
            assert got == [b"a", b"b"], f"killed at line {line}"
            taken = host.journal.taken
            host.journal.confirm(taken)
        if is_whole:
            break
    sock.close()


@pytest.mark.parametrize("is_closed", [False, True])
def test_end_of_packets_is_no_message(tmp_path: Path, is_closed: bool) -> None:
    """A client that only shuts its half down reads as endless empty packets."""
    place, sock = tmp_path / "s", held(SocketType.SEQPACKET)
    with source_life(tmp_path / "a.out", config(place, SocketType.SEQPACKET), sock, None) as (host, source):
        with client(place, SocketType.SEQPACKET) as program:
            for body in (b"a", b"", b"", b"b"):
                program.send(body)
            if is_closed:
                program.close()
            else:
                program.shutdown(socket.SHUT_WR)
            host.run_until(lambda: host.journal.taken >= 4 and served(source), "it is served")
        assert [message.body for message in host.took()] == [b"a", b"", b"", b"b"]
    sock.close()


def test_empty_packets_of_a_client_that_stays_are_messages(tmp_path: Path) -> None:
    place, sock = tmp_path / "s", held(SocketType.SEQPACKET)
    with source_life(tmp_path / "a.out", config(place, SocketType.SEQPACKET), sock, None) as (host, source):
        with client(place, SocketType.SEQPACKET) as program:
            for body in (b"", b"a", b""):
                program.send(body)
            host.run_until(lambda: host.journal.taken == 3, "all are taken")
        host.run_until(lambda: served(source), "it is served")
        assert [message.body for message in host.took()] == [b"", b"a", b""]
    sock.close()


def test_client_s_message_waits_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, sock = tmp_path / "s", held(SocketType.STREAM)
    with source_life(tmp_path / "a.out", config(place, SocketType.STREAM), sock, None) as (host, _source):
        take, is_full = host.take, [True]

        def taking(message: Message, note: bytes = b"") -> int:
            if is_full[0]:
                raise Blocked("disk full")
            return take(message, note)

        monkeypatch.setattr(host, "take", taking)
        with client(place, SocketType.STREAM) as program:
            program.send(b"one\ntwo\n")
            host.run_until(lambda: host.reason == "disk full", "it is shown")
            is_full[0] = False
            host.run_until(lambda: host.journal.taken == 2, "both are taken")
        assert host.reason == ""
    sock.close()


def test_many_half_messages_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client sends a part of a message and stays; one that completes its own is served first."""
    place, sock = tmp_path / "s", held(SocketType.STREAM)
    monkeypatch.setattr(connections, "_MOST_KEPT", 1 << 20)
    wide = SocketEndpoint(out=str(place), type=SocketType.STREAM, framing=StreamFraming.LENGTH, max_message=1 << 18)
    with source_life(tmp_path / "a.out", wide, sock, None, messages=2) as (host, source):
        assert isinstance(source, ConnectionSource)
        clients = [client(place, SocketType.STREAM) for _ in range(30)]
        for program in clients:
            program.setblocking(False)
            program.send(struct.pack(">I", 1 << 18))
        sent = dict.fromkeys(clients, 0)

        def send_all(upto: int) -> None:
            for _ in range(20):
                for program in clients:
                    with suppress(BlockingIOError):
                        sent[program] += program.send(bytes(min(1 << 15, upto - sent[program])) or b"")
                host.loop.run_once(0)

        send_all(1 << 17)
        kept = sum(one.splitter.kept for one in source._clients if one.splitter is not None)
        assert kept <= (1 << 20) + (1 << 18) + (1 << 16)
        assert "half" in host.notices["out"]
        while any(sent[program] < 1 << 18 for program in clients):
            send_all(1 << 18)
            host.journal.confirm(host.journal.taken)
            source.room_again()
        for program in clients:
            program.close()
        while not served(source):
            host.journal.confirm(host.journal.taken)
            source.room_again()
            host.loop.run_once(0.02)
        assert host.journal.taken == 30
        assert host.notices["out"] == ""
    sock.close()


def test_no_datagram_is_lost_with_a_path_that_is_removed(
    tmp_path: Path, counter: FakeCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is connected sends on until it gets an error; all that it could send before is taken."""
    place, sock, sent = tmp_path / "s", held(SocketType.DATAGRAM), 0
    with (
        source_life(tmp_path / "a.out", config(place), sock, counter) as (host, source),
        client(place) as program,
    ):
        take = source._take_all

        def take_and_send() -> bool:
            nonlocal sent
            is_empty = take()
            with suppress(BrokenPipeError):
                program.send(b"%d" % sent)
                sent += 1
            return is_empty

        monkeypatch.setattr(source, "_take_all", take_and_send)
        place.unlink()
        with pytest.raises(Gone, match="no longer leads to its socket"):
            host.run_until(lambda: False, "it ends")
        assert sent > 0
        assert [message.body for message in host.took()] == [b"%d" % number for number in range(sent)]
    sock.close()
