"""The parts of the `nats` endpoint that need no server."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.config import host_and_port
from nsbridge.agents.endpoints.nats.errors import Unready
from nsbridge.agents.endpoints.nats.evidence import Id, SinkNotes, parse
from nsbridge.agents.endpoints.nats.guest import GuestLoop
from nsbridge.agents.endpoints.nats.pulls import Pulls
from nsbridge.agents.endpoints.nats.source import arrival
from nsbridge.agents.endpoints.nats.subjects import is_filter, is_literal, matches
from nsbridge.agents.journal.sinkjournal import open_sink
from nsbridge.agents.loop import Loop
from tests.unit.late_imports import loaded_by_an_agent


@pytest.mark.parametrize(
    ("pattern", "subject", "holds"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
        ("a.b", "a.*", False),
        ("a.*", "a.*", True),
        ("a.*", "a.>", False),
    ],
)
def test_pattern_covers_subjects_as_nats_has_it(pattern: str, subject: str, holds: bool) -> None:
    assert matches(pattern, subject) is holds


def test_pattern_is_no_subject_to_publish_to() -> None:
    assert [is_literal(text) for text in ("a.b", "a.*", "a.>", "", "a..b", "a b", ".a", "a.\x00")] == [
        True,
        *[False] * 7,
    ]
    assert [is_filter(text) for text in ("a.b", "a.*", "a.>", ">", "*", "a.>.b", "a>", "")] == [
        *[True] * 5,
        *[False] * 3,
    ]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("nats://a.example", ("a.example", 4222)),
        ("tls://10.0.0.1:5000", ("10.0.0.1", 5000)),
        ("nats://[::1]", ("::1", 4222)),
        ("nats://[::1]:77", ("::1", 77)),
    ],
)
def test_url_has_a_host_and_a_port(url: str, where: tuple[str, int]) -> None:
    assert host_and_port(url) == where


# -- what a source asks for


def test_source_asks_for_what_has_room_and_again_at_half() -> None:
    pulls = Pulls()
    assert pulls.next(0, 100, 0.0) is None
    assert pulls.next(10_000, 0, 0.0) is None
    number, request = pulls.next(10_000, 1000, 0.0) or (0, {})
    assert (number, request["batch"], request["max_bytes"]) == (1, 256, 1000)
    for _ in range(127):
        pulls.came()
    assert pulls.next(10_000, 1000, 0.0) is None
    pulls.came()
    assert (pulls.next(10_000, 1000, 0.0) or (0, {"batch": 0}))[1]["batch"] == 128


def test_message_longer_than_a_request_allows_is_asked_for_alone() -> None:
    pulls = Pulls()
    assert pulls.next(100, 1000, 0.0)
    pulls.ended(1, is_too_long=True)
    assert pulls.next(100, 1000, 0.0) == (2, {"batch": 1, "expires": 5_000_000_000})
    pulls.came()
    assert (pulls.next(100, 1000, 0.0) or (0, {}))[1]["max_bytes"] == 1000


def test_request_that_had_messages_is_only_full() -> None:
    pulls = Pulls()
    assert pulls.next(100, 1000, 0.0)
    pulls.came()
    pulls.ended(1, is_too_long=True)
    assert (pulls.next(100, 1000, 0.0) or (0, {}))[1]["batch"] == 100


def test_request_without_an_answer_is_late() -> None:
    pulls = Pulls()
    assert (pulls.due, pulls.are_late(1e9)) == (0.0, False)
    assert pulls.next(100, 1000, 10.0)
    assert pulls.due == 18.0
    assert [pulls.are_late(now) for now in (17.9, 18.0)] == [False, True]
    pulls.ended(1, is_too_long=False)
    assert not pulls.are_late(18.0)


@pytest.mark.parametrize(
    "reply",
    ["$JS.ACK.S.d.2.70.90.1700000000.5", "$JS.ACK.domain.account.S.d.2.70.90.1700000000.5.token"],
)
def test_numbers_of_a_message_are_in_its_reply_subject(reply: str) -> None:
    one = arrival(Msg(Client(), subject="s", reply=reply, data=b"x"))
    assert (one.sequence, one.reply, one.body) == (70, reply, b"x")


def test_message_of_no_consumer_is_refused() -> None:
    with pytest.raises(ValueError, match="no message of a consumer"):
        arrival(Msg(Client(), subject="s", reply="_INBOX.x", data=b""))


# -- what a sink knows


def test_ids_are_parsed_as_they_are_written() -> None:
    assert parse(str(Id(0x1234, 77))) == Id(0x1234, 77)
    assert [parse(text) for text in ("", "x", "1-", "-1", "other-message")] == [None] * 5


def test_messages_in_flight_are_known_after_a_kill(tmp_path: Path) -> None:
    journal = open_sink(str(tmp_path / "j"))
    journal.adopt(7, 0)
    notes = SinkNotes(journal)
    assert notes.is_decided
    notes.begin(7, 3)
    notes.begin(7, 2)
    notes.begin(6, 9)  # of an epoch that is over
    assert (notes.begun, notes.is_decided) == (3, False)
    journal.hand(3)
    notes.confirmed(55)
    journal.close()
    notes = SinkNotes(open_sink(str(tmp_path / "j")))
    assert (notes.begun, notes.is_decided, notes.known) == (3, True, 55)


def test_another_epoch_has_nothing_in_flight(tmp_path: Path) -> None:
    journal = open_sink(str(tmp_path / "j"))
    journal.adopt(7, 0)
    notes = SinkNotes(journal)
    notes.begin(7, 3)
    journal.adopt(8, 0)
    assert (notes.begun, notes.is_decided) == (0, True)
    journal.close()


def info(state: dict[str, int] | None = None, **config: Any) -> dict[str, Any]:
    return {
        "config": {"name": "S", "retention": "limits", "discard": "new", **config},
        "state": {"first_seq": 1, "last_seq": 9, **(state or {})},
        "created": "now",
    }


def test_stream_that_keeps_the_evidence_is_used() -> None:
    assert stream.for_sink(info()) == stream.StreamState(
        "S", stream.identity(info()), 1, 9, is_whole=True, max_message=-1, is_replicated=False, loses=""
    )
    found = stream.for_sink(info({"num_deleted": 2}, discard="old", max_bytes=5, max_age=0, max_msg_size=100))
    assert (found.is_whole, found.max_message) == (False, 100)
    assert found.loses == "stream S deletes its oldest messages by max_bytes, taken or not"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"retention": "workqueue"}, "retention workqueue"),
        ({"retention": "interest"}, "retention interest"),
        ({"no_ack": True}, "no_ack"),
        ({"sealed": True}, "sealed"),
        ({"mirror": {"name": "x"}}, "mirror"),
    ],
)
def test_stream_without_evidence_is_refused_with_the_reason(config: dict[str, Any], why: str) -> None:
    with pytest.raises(Unready, match=why):
        stream.for_sink(info(**config))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"deliver_subject": "x"}, "push consumer"),
        ({"ack_policy": "none"}, "ack policy none"),
        ({"headers_only": True}, "headers_only"),
        ({"deliver_policy": "last_per_subject"}, "last_per_subject"),
        ({"filter_subject": "b"}, "takes b, and the configuration says a"),
        ({"filter_subject": ""}, "takes >, and the configuration says a"),
    ],
)
def test_consumer_that_cannot_be_used_is_refused(config: dict[str, Any], why: str) -> None:
    about = {"name": "d", "stream_name": "S", "config": {"ack_policy": "explicit", "filter_subject": "a", **config}}
    with pytest.raises(Unready, match=why):
        stream.check_consumer(about, "a")


def test_consumer_without_a_filter_takes_all() -> None:
    about = {"name": "d", "stream_name": "S", "config": {"ack_policy": "explicit"}}
    stream.check_consumer(about, ">")


def test_stored_message_has_its_headers_and_type() -> None:
    headers = base64.b64encode(b"NATS/1.0\r\nNats-Msg-Id: a-1\r\nNsbridge-Type: 12\r\n\r\n").decode()
    one = stream.stored({"message": {"seq": 5, "hdrs": headers, "data": base64.b64encode(b"body").decode()}})
    assert (one.sequence, one.body, one.headers["Nats-Msg-Id"], stream.type_of(one.headers)) == (5, b"body", "a-1", 12)
    wrong = ("", "x", "-1", "99999999999999999999", "\u0661")
    assert [stream.type_of({"Nsbridge-Type": text}) for text in wrong] == [0] * 5


def test_stored_message_has_its_time() -> None:
    texts = ("2026-11-29T14:00:00.123456789Z", "2026-11-29T14:00:00.12Z", "2026-11-29T14:00:00Z", "")
    times = [stream.stored({"message": {"seq": 5, "time": text}}).time for text in texts]
    assert times == [1795960800123456789, 1795960800120000000, 1795960800000000000, 0]
    for wrong in ("yesterday", "1900-01-01T00:00:00Z", "2026-11-29T14:00:00.xZ"):
        with pytest.raises(ValueError):  # noqa: PT011  (of whichever part)
            stream.stored({"message": {"seq": 5, "time": wrong}})


def test_stream_made_again_has_another_identity() -> None:
    assert stream.identity(info()) == stream.identity(info())
    assert stream.identity(info()) != stream.identity({**info(), "created": "later"})


# -- asyncio as a guest


def run_guest(work: Any, addresses: Any = None) -> None:
    """Run a coroutine in the guest until it ends."""
    host, guest = Loop(), GuestLoop(addresses or {})

    async def all_of_it() -> None:
        await work()
        host.stop()

    guest.attach(host)
    guest.begin(all_of_it())
    try:
        host.run()
    finally:
        guest.close()
        host.close()


def test_guest_serves_timers_in_order() -> None:
    seen: list[str] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, seen.append, "second")
        loop.call_later(0.01, seen.append, "first")
        loop.call_later(0.005, seen.append, "never").cancel()
        await asyncio.sleep(0.03)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)

    run_guest(work)
    assert seen == ["first", "second"]


def test_error_of_a_coroutine_is_raised_in_the_agents_loop() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_guest(work)


def test_guest_knows_only_addresses_that_were_looked_up() -> None:
    address = (2, 1, 6, "", ("10.0.0.1", 4222))
    found: list[Any] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        found.append(await loop.getaddrinfo("a", 4222))
        with pytest.raises(OSError, match="the address of b is not known"):
            await loop.getaddrinfo("b", 4222)

    run_guest(work, {"a:4222": [address]})
    assert found == [[address]]


def test_guest_talks_over_a_socket(tmp_path: Path) -> None:
    async def work() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_unix_server(echo, tmp_path / "s")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        server.close()

    run_guest(work)


def test_no_other_process_loads_asyncio_or_nats() -> None:
    """An agent has what its supervisor had loaded when it was forked, and only one of NATS loads more."""
    assert not {"asyncio", "nats", "nkeys", "nsbridge.agents.endpoints.nats.sink"} & loaded_by_an_agent()
