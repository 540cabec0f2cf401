"""Decisions of a NATS sink and source: what may be in flight, under which condition, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbridge.agents.endpoints.nats.chain import Chain, Entry, Last
from nsbridge.agents.endpoints.nats.connection import version_of
from nsbridge.agents.endpoints.nats.evidence import Id, SinkNotes
from nsbridge.agents.endpoints.nats.order import Order, behind
from nsbridge.agents.endpoints.nats.stream import StreamState
from nsbridge.agents.journal.sinkjournal import open_sink

EPOCH = 0xA
NEW, OLD = (2, 12, 0), (2, 11, 9)


def state(*, is_replicated: bool = True, max_message: int = -1) -> StreamState:
    return StreamState("S", 5, 1, 9, is_whole=True, max_message=max_message, is_replicated=is_replicated, loses="")


def entry(seq: int, mtype: int = 0) -> Entry:
    return Entry(Id(EPOCH, seq), mtype, b"x")


def published(chain: Chain, seqs: range) -> list[int]:
    """Publish them; return the numbers of those that are to be answered."""
    return [number for seq in seqs if (number := chain.publish(entry(seq), is_last=False))]


@pytest.mark.parametrize(
    ("version", "is_replicated", "most"),
    [(NEW, True, 100), (OLD, True, 1), ((), True, 1), (OLD, False, 100), ((), False, 100)],
)
def test_old_servers_get_one_message_at_a_time(version: tuple[int, ...], is_replicated: bool, most: int) -> None:
    chain = Chain(state(is_replicated=is_replicated), version, Last(9, None), 100)
    chain.publish(entry(1), is_last=False)
    assert not chain.has_room(), "the first shows where the stream is"
    chain.confirm(1, 10)
    seq = 1
    while chain.has_room():
        chain.publish(entry(seq := seq + 1), is_last=False)
    assert len(chain.flying) == most


def test_each_message_in_flight_expects_the_one_before_it() -> None:
    chain = Chain(state(), NEW, Last(9, Id(EPOCH, 3)), 100)
    assert chain.headers(entry(4, 7)) == {
        "Nats-Msg-Id": "000000000000000a-4",
        "Nats-Expected-Stream": "S",
        "Nats-Expected-Last-Subject-Sequence": "9",
        "Nsbridge-Type": "7",
    }
    chain.publish(entry(4), is_last=False)
    assert [one.id.seq for one in chain.confirm(1, 20)] == [4]
    published(chain, range(5, 8))
    assert chain.headers(entry(8)) == {
        "Nats-Msg-Id": "000000000000000a-8",
        "Nats-Expected-Last-Sequence": "23",
        "Nats-Expected-Last-Msg-Id": "000000000000000a-7",
    }
    assert [one.id.seq for one in chain.confirm(3, 22)] == [5, 6]
    assert chain.headers(entry(8))["Nats-Expected-Last-Sequence"] == "23"


def test_server_answers_the_first_the_last_and_some_between() -> None:
    chain = Chain(state(), NEW, Last(0, None), 40)
    assert published(chain, range(1, 2)) == [1]
    chain.confirm(1, 1)
    assert published(chain, range(2, 42)) == [16, 32, 41]
    chain.confirm(41, 41)
    assert chain.publish(entry(42), is_last=True) == 42
    with pytest.raises(ValueError, match="message 43 of 42"):
        chain.confirm(43, 43)


def test_longest_message_is_the_servers_or_the_streams() -> None:
    assert Chain(state(), NEW, Last(0, None), 1).longest(100) == 100
    assert Chain(state(max_message=50), NEW, Last(0, None), 1).longest(100) == 50


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.10.27", (2, 10, 27)), ("2.12.0-beta.1", (2, 12, 0)), ("", ()), ("x2.1", ()), (None, ()), (5, ())],
)
def test_version_of_a_server_is_read(text: object, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


# -- holes


def headers(one: Id, before: Id | None) -> dict[str, str]:
    return {"Nats-Msg-Id": str(one), **behind(before, one)}


def test_message_names_the_one_before_only_if_that_is_not_clear() -> None:
    assert behind(Id(EPOCH, 4), Id(EPOCH, 5)) == {}
    assert behind(Id(EPOCH, 3), Id(EPOCH, 5)) == {"Nsbridge-Behind": "000000000000000a-3"}
    assert behind(Id(9, 4), Id(EPOCH, 5)) == {"Nsbridge-Behind": "0000000000000009-4"}
    assert behind(None, Id(EPOCH, 1)) == {"Nsbridge-Behind": "-"}


def test_hole_is_seen_by_the_message_behind_it() -> None:
    order = Order()
    assert order.is_empty
    order.took(headers(Id(EPOCH, 4), None))
    assert not order.is_empty
    assert order.hole(headers(Id(EPOCH, 5), Id(EPOCH, 4))) == ""
    assert order.hole(headers(Id(EPOCH, 8), Id(EPOCH, 7))) == ("messages from 000000000000000a-5 to 000000000000000a-7")
    assert order.hole(headers(Id(0xB, 1), Id(EPOCH, 6))) == "messages from 000000000000000a-5 to 000000000000000a-6"


@pytest.mark.parametrize(
    "after",
    [
        headers(Id(EPOCH, 9), Id(EPOCH, 4)),  # those between became dead letters
        headers(Id(EPOCH, 9), None),  # the publisher does not have the one before
        headers(Id(0xB, 1), Id(0xC, 7)),  # of a publisher that is not known
        headers(Id(EPOCH, 2), Id(EPOCH, 1)),  # once more
        {"Nats-Msg-Id": "of another program"},
        {},
    ],
)
def test_what_is_no_hole_is_taken(after: dict[str, str]) -> None:
    order = Order()
    order.took(headers(Id(EPOCH, 4), None))
    order.took({})
    assert order.hole(after) == ""


def test_publishers_do_not_disturb_each_other() -> None:
    order = Order()
    for seq in (1, 2, 3):
        for epoch in (EPOCH, 0xB):
            one = headers(Id(epoch, seq), Id(epoch, seq - 1))
            assert order.hole(one) == ""
            order.took(one)


def test_publishers_that_are_remembered_have_a_limit() -> None:
    order = Order()
    for epoch in range(1, 1000):
        order.took(headers(Id(epoch, 1), None))
    assert len(order._last) == 256
    assert order.hole(headers(Id(999, 3), Id(999, 2))) == "messages from 00000000000003e7-2 to 00000000000003e7-2"


def test_another_stream_has_confirmed_nothing(tmp_path: Path) -> None:
    notes = SinkNotes(open_sink(str(tmp_path / "j")))
    notes.confirmed(55)
    notes.found(1 << 32)
    assert notes.known == 55
    notes.found(1 << 32 | 1)
    assert notes.known == 0
