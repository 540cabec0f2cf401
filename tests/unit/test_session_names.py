"""Names of files that travel with messages, from session to session."""

from __future__ import annotations

import pytest

from nsbridge.agents import wire
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.wire import Data, Message, Names, Run, WireError
from nsbridge.config.schema import Window
from tests.frames import parsed
from tests.memory_store import MemorySink
from tests.one_sided import greeted, packets

FITS = wire.MAX_PACKET - wire.RUN_OVERHEAD - wire.RUN_MESSAGE_OVERHEAD  # the longest body that goes in one packet


def names(first: int, *given: bytes, epoch: int = 100) -> bytes:
    return b"".join(wire.pack_names(Run(epoch, first, 0, [b""] * len(given), given)))


def run(first: int, *bodies: bytes) -> bytes:
    return b"".join(wire.pack_run(Run(100, first, 0, bodies)))


def named_sink() -> Incoming:
    incoming = Incoming(MemorySink(), Window(), keeps_names=True)
    incoming.greeted(100, 0)
    return incoming


def feed(incoming: Incoming, packet: bytes) -> None:
    for frame in parsed(packet):
        if isinstance(frame, Names):
            incoming.accept_names(frame)
        elif isinstance(frame, Run):
            incoming.accept_run(frame)
        elif isinstance(frame, Data):
            incoming.accept(frame)


def arrived(incoming: Incoming) -> list[tuple[bytes, bytes]]:
    return [(body, name) for run in incoming.waiting for body, name in zip(run.bodies, run.names, strict=True)]


def test_names_come_with_their_messages_also_after_repeats() -> None:
    incoming = named_sink()
    feed(incoming, names(1, b"a", b"") + run(1, b"1", b"2"))
    feed(incoming, names(1, b"a", b"", b"c") + run(1, b"1", b"2", b"3"))
    assert arrived(incoming) == [(b"1", b"a"), (b"2", b""), (b"3", b"c")]


def test_name_of_a_message_in_pieces_survives_a_repeat() -> None:
    incoming, piece = named_sink(), wire.pack_data_header(100, 1, Message(0, b"ab"), 0, 1) + b"a"
    rest = wire.pack_data_header(100, 1, Message(0, b"ab"), 1, 1) + b"b"
    feed(incoming, names(1, b"x") + piece)
    incoming.greeted(100, 0)
    feed(incoming, names(1, b"x") + piece + rest)
    feed(incoming, names(1, b"x") + piece)  # a repeat, whose name is for nothing that follows
    feed(incoming, run(2, b"c"))
    assert [run.names for run in incoming.waiting] == [[b"x"], ()]


@pytest.mark.parametrize("packet", [names(2, b"a"), names(1, b"a", b"b"), names(1, b"a", epoch=99)])
def test_names_of_other_messages_are_refused(packet: bytes) -> None:
    with pytest.raises(WireError, match="names of"):
        feed(named_sink(), packet + run(1, b"1"))


def test_names_for_a_sink_that_keeps_none_are_refused() -> None:
    _, sink = greeted()
    with pytest.raises(WireError, match="names for a sink that keeps none"):
        sink.session.receive(names(1, b"a"))


def test_names_take_their_room_in_packets() -> None:
    """No packet is too large, whatever the lengths of bodies and names."""
    for size in (*range(FITS - 600, FITS + 2, 37), 40, 3 * FITS):
        source, _ = greeted()
        source.store._name_of = lambda _epoch, seq: bytes([97 + seq % 26]) * 255
        for _ in range(300 if size == 40 else 2):
            source.take(bytes(size))
        sink = named_sink()
        sink.greeted(source.store.epoch, 0)
        for packet in packets(source.session):
            assert len(packet) <= wire.MAX_PACKET
            feed(sink, packet)
        assert [len(body) for body, _ in arrived(sink)] == [size] * source.store.taken
        assert all(len(name) == 255 for _, name in arrived(sink))
