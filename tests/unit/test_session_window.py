"""Limits to what a source takes and sends, and to what a sink accepts."""

from __future__ import annotations

import pytest

from nsbridge.agents.wire import WireError
from nsbridge.config.schema import Window
from tests.memory_store import next_waiting
from tests.one_sided import WIDE, Sink, Source, exchange, greeted


def test_the_source_takes_no_more_messages_than_the_window() -> None:
    source = Source(window=Window(messages=2, bytes=100))
    source.take(b"1")
    assert source.out.has_room()
    source.take(b"2")
    assert not source.out.has_room()


def test_the_source_stops_when_the_window_s_bytes_are_used() -> None:
    source = Source(window=Window(messages=9, bytes=10))
    source.take(bytes(9))
    assert source.out.has_room()
    source.take(bytes(1))
    assert not source.out.has_room()


def test_a_message_larger_than_the_window_gets_through_alone() -> None:
    source, sink = greeted(Window(messages=1, bytes=1))
    for number in range(3):
        assert source.out.has_room()
        source.take(b"%d" % number * 200_000)
        assert not source.out.has_room()
        exchange(source.session, sink.session)
        assert [len(body) for body in sink.hand_over()] == [200_000]
        exchange(source.session, sink.session)


@pytest.mark.parametrize("window", [Window(messages=3, bytes=1000), Window(messages=1000, bytes=3)])
def test_a_source_that_sends_more_than_its_window_is_an_error(window: Window) -> None:
    source, sink = Source(window=WIDE), Sink(window)
    exchange(source.session, sink.session)
    source.take(b"1", b"2", b"3", b"4")
    with pytest.raises(WireError, match="more than the window: 3 messages, 3 bytes, and then one more"):
        exchange(source.session, sink.session)


@pytest.mark.parametrize("window", [Window(messages=3, bytes=1000), Window(messages=1000, bytes=3), Window(1, 1)])
@pytest.mark.parametrize("kills", [False, True])
def test_pending_beyond_the_window_is_sent_as_the_sink_proceeds(window: Window, *, kills: bool) -> None:
    """The window was larger before a reload, say. Nobody's error, and nothing stands still."""
    bodies = [b"%d" % number for number in range(10)]
    source, sink = greeted(window)
    source.take(*bodies)
    got: list[bytes] = []
    for _ in bodies:
        exchange(source.session, sink.session)
        if kills:
            source = Source(window=window, store=source.store)
            exchange(source.session, sink.session)
        assert len(sink.in_.waiting) > 0
        got += sink.hand_over(1)
        if got == bodies:
            break
    assert got == bodies


def test_an_empty_message_waits_for_a_window_full_of_bytes() -> None:
    """The sink refuses all that comes with it; so it is neither taken nor, where it is pending, sent."""
    source, sink = greeted(Window(messages=9, bytes=3))
    bodies = [b"1", b"2", b"3", b""]
    assert source.out.room_for(bodies) == 3
    source.take(*bodies)
    exchange(source.session, sink.session)
    assert sink.hand_over() == bodies[:3]
    exchange(source.session, sink.session)
    assert sink.hand_over() == bodies[3:]


@pytest.mark.parametrize("window", [Window(messages=3, bytes=1000), Window(messages=1000, bytes=3)])
def test_a_dead_source_s_messages_do_not_block_its_successor(window: Window) -> None:
    source, sink = greeted(window)
    source.take(b"1", b"2", b"3")
    exchange(source.session, sink.session)
    successor = Source(epoch=200, window=window)  # its store was lost; the sink is still stuck
    successor.take(b"4", b"5", b"6")
    exchange(successor.session, sink.session)
    assert sum(len(run.bodies) for run in sink.in_.waiting) == 3
    assert sink.hand_over(1) == [b"1"]
    exchange(successor.session, sink.session)
    assert sink.hand_over() == [b"2", b"3"]
    exchange(successor.session, sink.session)
    assert sink.hand_over() == [b"4", b"5", b"6"]
    exchange(successor.session, sink.session)
    assert successor.store.confirmed == 3


def test_the_sink_is_busy_while_a_dead_source_s_messages_wait() -> None:
    source, sink = greeted()
    assert sink.in_.idle()
    source.take(b"1")
    exchange(source.session, sink.session)
    assert not sink.in_.idle()
    exchange(Source(epoch=200).session, sink.session)
    assert not sink.in_.idle()
    in_hand = next_waiting(sink.in_)
    assert not sink.in_.idle()
    sink.in_.put_back(in_hand)
    sink.hand_over()
    assert sink.in_.idle()


def test_what_was_put_back_is_the_first_again() -> None:
    source, sink = greeted()
    source.take(b"1", b"2")
    exchange(source.session, sink.session)
    sink.in_.put_back(next_waiting(sink.in_))
    assert sink.hand_over() == [b"1", b"2"]


def test_message_of_many_packets_is_read_from_its_store_once() -> None:
    """A journal copies what it reads: 64 MiB for each of a thousand packets took a minute, and no heartbeat in it."""
    source, sink = greeted(Window(messages=1, bytes=1))
    reads: list[int] = []
    run = source.store.run
    source.store.run = lambda seq: (reads.append(seq), run(seq))[1]  # type: ignore[method-assign,func-returns-value]
    for number in range(2):
        source.take(b"%d" % number * 5_000_000)
        exchange(source.session, sink.session)
        assert [body[:1] for body in sink.hand_over()] == [b"%d" % number]
        exchange(source.session, sink.session)
    assert reads == [1, 2]


def test_message_of_many_packets_is_repeated_from_its_beginning() -> None:
    """Its sink was killed in the middle of it."""
    source, sink = greeted(Window(messages=1, bytes=1))
    source.take(b"x" * 200_000)
    sink.session.receive(source.session.next_packet())
    successor = Sink(Window(messages=1, bytes=1), sink.store)
    exchange(source.session, successor.session)
    assert [len(body) for body in successor.hand_over()] == [200_000]
