"""Greetings, the window, pieces, confirmations, each by itself; all at once: properties/test_session_model.py."""

from __future__ import annotations

import pytest

from nsbridge.agents import wire
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.outgoing import NeverTakenError
from nsbridge.agents.wire import Data, Hello, Message, Run, WireError
from nsbridge.config.schema import Window
from tests.frames import Ack, Frame, parsed
from tests.memory_store import MemorySink, MemorySource, hand_over_one, new_epoch, next_waiting
from tests.one_sided import Sink, Source, exchange, greeted, packets

PIECE, FITS = wire.MAX_PACKET - wire.DATA_OVERHEAD, wire.MAX_PACKET - wire.RUN_OVERHEAD - wire.RUN_MESSAGE_OVERHEAD


# -- greetings


def test_nothing_is_sent_before_the_greeting_is_answered() -> None:
    source = Source()
    source.take(b"x")
    (packet,) = packets(source.session)
    assert parsed(packet) == [Hello(source.session._nonce, 0, 100, 0, 0, 0)]


def test_nothing_is_accepted_before_the_greeting_is_answered() -> None:
    sink = Sink()
    sink.session.receive(wire.pack_hello(Hello(77, 0, 100, 0, 0, 0)))
    sink.session.receive(wire.pack_data_header(100, 1, Message(1, b"x"), 0, 1) + b"x")
    assert not sink.in_.waiting


def test_new_source_is_refused_while_messages_are_in_flight() -> None:
    """Their numbers would mean other messages in the sink's journal. The agent exits and greets again."""
    store, in_flight = MemorySink(), [True]
    incoming = Incoming(store, Window(), lambda: not in_flight[0])
    with pytest.raises(OSError, match="messages of the old one are in flight"):
        incoming.greeted(100, 5)
    assert (store.epoch, store.handed) == (0, 0)
    in_flight[0] = False
    incoming.greeted(100, 5)
    assert (store.epoch, store.handed) == (100, 5)


def test_an_answer_to_a_dead_process_is_ignored() -> None:
    sink = Sink()
    sink.session.receive(wire.pack_hello(Hello(77, 12345678, 100, 5, 0, 0)))
    assert not sink.session.greeted
    assert sink.store.epoch == 0


def test_a_greeting_lost_with_a_process_is_answered_by_the_next() -> None:
    source = Source()
    source.take(b"x")
    packets(source.session)  # received by a sink that was killed before it answered
    sink = Sink()
    exchange(source.session, sink.session)
    assert source.session.greeted
    assert sink.hand_over() == [b"x"]


def test_a_peer_may_be_killed_repeatedly_before_its_answer() -> None:
    source = Source()
    for _ in range(100):
        source.session.receive(packets(Sink().session)[0])
    sink = Sink()
    exchange(source.session, sink.session)
    assert source.session.greeted
    assert sink.session.greeted


def test_only_the_latest_greeting_is_answered_and_once() -> None:
    source = Source()
    source.session.receive(wire.pack_hello(Hello(50, 0, 0, 0, 0, 0)))
    source.session.receive(wire.pack_hello(Hello(51, 0, 0, 0, 0, 0)))
    (packet,) = packets(source.session)
    assert [hello.answers for hello in parsed(packet) if isinstance(hello, Hello)] == [0, 51]
    source.session.receive(wire.pack_hello(Hello(51, source.session._nonce, 0, 0, 0, 0)))
    assert packets(source.session) == []


def test_a_greeting_is_followed_by_all_from_the_last_confirmed() -> None:
    source, sink = greeted()
    source.take(b"1", b"2", b"3")
    exchange(source.session, sink.session)
    assert sink.hand_over(1) == [b"1"]
    exchange(source.session, sink.session)
    assert source.store.confirmed == 1
    successor = Sink(store=sink.store)
    exchange(source.session, successor.session)
    assert successor.hand_over() == [b"2", b"3"]


def test_a_sink_that_lives_on_drops_what_is_repeated() -> None:
    source, sink = greeted()
    source.take(b"1", b"2")
    exchange(source.session, sink.session)
    assert sink.hand_over(1) == [b"1"]
    successor = Source(store=source.store)
    exchange(successor.session, sink.session)
    assert sink.hand_over() == [b"2"]
    assert sink.in_.repeats_dropped == 1
    exchange(successor.session, sink.session)
    assert source.store.confirmed == 2


def test_a_repeat_is_confirmed_again() -> None:
    source, sink = greeted()
    source.take(b"1")
    exchange(source.session, sink.session)
    sink.hand_over()
    packets(sink.session)  # the confirmation is lost
    source.out.rewind()
    exchange(source.session, sink.session)
    assert source.store.confirmed == 1


def test_sink_that_learns_its_position_late_takes_what_follows() -> None:
    """Both were killed, and a NATS sink asks the server what its predecessor had published while they greet."""
    source, sink = Source(epoch=100), Sink()
    sink.store.adopt(100, 0)
    source.take(b"1", b"2")
    source.session.receive(sink.session.next_packet())
    sink.session.receive(source.session.next_packet())
    sink.store.hand(1)
    exchange(source.session, sink.session)
    assert source.store.confirmed == 1
    assert sink.hand_over() == [b"2"]


def test_a_new_source_is_listened_to_from_its_first_message() -> None:
    source, sink = greeted()
    source.take(b"1", b"2")
    exchange(source.session, sink.session)
    sink.hand_over()
    successor = Source(epoch=200)
    successor.take(b"3")
    exchange(successor.session, sink.session)
    assert sink.hand_over() == [b"3"]
    assert (sink.store.epoch, sink.store.handed) == (200, 1)


# -- confirmations


def test_what_was_only_accepted_is_not_confirmed() -> None:
    source, sink = greeted()
    source.take(b"1")
    exchange(source.session, sink.session)
    next_waiting(sink.in_)
    exchange(source.session, sink.session)
    assert source.store.confirmed == 0


def test_one_frame_confirms_all_that_was_handed_over() -> None:
    source, sink = greeted()
    source.take(*[b"x"] * 50)
    exchange(source.session, sink.session)
    sink.hand_over()
    assert [parsed(packet) for packet in packets(sink.session)] == [[Ack(100, 50)]]


def test_a_confirmation_of_what_was_never_taken_is_an_error() -> None:
    source, _ = greeted()
    source.take(b"1")
    with pytest.raises(WireError, match="message 2 confirmed, only 1 were taken"):
        source.session.receive(wire.pack_ack(100, 2))


def test_a_greeting_that_claims_what_was_never_taken_is_an_error() -> None:
    source = Source()
    with pytest.raises(NeverTakenError, match=r"message 1 of this .* has taken only 0"):
        source.session.receive(wire.pack_hello(Hello(1, 0, 0, 0, 100, 1)))


def test_a_confirmation_for_another_epoch_is_ignored() -> None:
    source, _ = greeted()
    source.take(b"1")
    source.session.receive(wire.pack_ack(99, 1))
    source.session.receive(wire.pack_ack(99, 10))
    assert source.store.confirmed == 0


def test_data_where_there_is_no_such_direction_is_an_error() -> None:
    source, _ = greeted()
    with pytest.raises(WireError, match="a direction that this route does not have"):
        source.session.receive(wire.pack_data_header(1, 1, Message(1, b""), 0, 0))


def test_a_confirmation_without_that_direction_is_ignored() -> None:
    _, sink = greeted()
    sink.session.receive(wire.pack_ack(100, 1))
    assert packets(sink.session) == []


def test_what_an_earlier_epoch_sent_is_not_noted_as_this_one_s() -> None:
    store = MemorySink()
    incoming = Incoming(store, Window())
    incoming.greeted(100, 0)
    incoming.accept(Data(100, 1, 1, 1, 0, b"x"))
    incoming.greeted(200, 7)
    hand_over_one(incoming)
    assert (store.epoch, store.handed) == (200, 7)
    assert not incoming.ack_due


# -- packets and fragments


def test_small_messages_share_packets() -> None:
    source, _ = greeted()
    source.take(*[b"x" * 10] * 1000)
    packed = packets(source.session)
    assert len(packed) == 1 + 1000 * (wire.DATA_OVERHEAD + 10) // wire.MAX_PACKET
    assert all(len(packet) <= wire.MAX_PACKET for packet in packed)


def seqs_of(frame: Frame) -> list[int]:
    """Return the seqs of the messages that are in it, whole or in part."""
    if isinstance(frame, Run):
        return list(range(frame.first, frame.last + 1))
    return [frame.seq] if isinstance(frame, Data) else []


@pytest.mark.parametrize(
    ("size", "pieces"), [(FITS - 1, 1), (FITS, 1), (FITS + 1, 2), (2 * PIECE, 2), (2 * PIECE + 1, 3)]
)
def test_a_message_is_cut_only_where_it_must_be(size: int, pieces: int) -> None:
    source, sink = greeted()
    source.take(b"first", bytes(size), b"last")
    packed = packets(source.session)
    seqs = [seq for packet in packed for frame in parsed(packet) for seq in seqs_of(frame)]
    assert seqs == [1, *[2] * pieces, 3]
    for packet in packed:
        sink.session.receive(packet)
    assert [len(body) for body in sink.hand_over()] == [5, size, 4]


def test_a_message_of_which_a_piece_is_missing_does_not_come_out() -> None:
    source, sink = greeted()
    source.take(bytes(3 * PIECE))
    first, _, third = packets(source.session)
    for packet in (first, third):
        sink.session.receive(packet)
    assert not sink.in_.waiting
    source.out.rewind()
    exchange(source.session, sink.session)
    assert [len(body) for body in sink.hand_over()] == [3 * PIECE]


def test_a_confirmation_during_a_repeat_does_not_spoil_the_next() -> None:
    source, sink = greeted()
    source.take(b"a" * (FITS + 1), b"b" * (FITS + 1))
    exchange(source.session, sink.session)
    source.out.rewind()
    source.session.next_packet()  # the first piece, again
    assert len(sink.hand_over(1)[0]) == FITS + 1
    exchange(source.session, sink.session)
    assert sink.hand_over() == [b"b" * (FITS + 1)]
    exchange(source.session, sink.session)
    assert source.store.confirmed == 2


# -- stores


def test_the_memory_store_counts_what_is_pending() -> None:
    store = MemorySource(5)
    assert [store.append(Message(1, bytes(size))) for size in (3, 0, 4)] == [1, 2, 3]
    assert (store.confirmed, store.taken, store.pending_bytes) == (0, 3, 7)
    store.confirm(2)
    assert (store.confirmed, store.taken, store.pending_bytes) == (2, 3, 4)
    assert store.get(3) == Message(1, bytes(4))
    store.confirm(1)
    assert (store.confirmed, store.taken) == (2, 3)


def test_epochs_rise() -> None:
    assert 0 < new_epoch() < new_epoch()


def test_a_message_keeps_its_type() -> None:
    source, sink = greeted()
    source.store.append(Message((1 << 62) + 1, b""))
    exchange(source.session, sink.session)
    assert next_waiting(sink.in_) == Run(100, 1, (1 << 62) + 1, (b"",))
