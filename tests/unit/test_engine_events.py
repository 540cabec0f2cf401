"""Events of engines about containers that start: any bytes, in any pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.engine_events import EVENT_LIMIT, SOMETHING, EventParser, parse_event, parse_started

ID = "5203" * 16
# As dockerd 20.10 and podman 4.3 wrote it.
DOCKER = (
    '{"status":"start","id":"ID","from":"busybox:1","Type":"container","Action":"start","Actor":{"ID":"ID",'
    '"Attributes":{"image":"busybox:1","name":"web"}},"scope":"local","time":1795631577,"timeNano":1795631577556733544}'
).replace('"ID",', f'"{ID}",')
PODMAN = (
    '{"status":"start","id":"ID","from":"localhost/b:1","Type":"container","Action":"start","Actor":{"ID":"ID",'
    '"Attributes":{"containerExitCode":"0","image":"localhost/b:1","name":"web","podId":""}},"scope":"local"}'
).replace('"ID",', f'"{ID}",')
STARTED = f"{ID} web".encode()


def event(container_id: object = ID, **attributes: object) -> bytes:
    return json.dumps({"Action": "start", "Actor": {"ID": container_id, "Attributes": attributes}}).encode()


@pytest.mark.parametrize("said", [DOCKER, PODMAN])
def test_an_event_of_each_engine_is_its_id_and_name(said: str) -> None:
    assert parse_event(said.encode()) == STARTED
    assert parse_started(STARTED) == (ID, "web")


@pytest.mark.parametrize(
    "said",
    [
        event(name="two words"),
        event(name="a\nb"),
        event(name="\x1b[2J"),
        event(name="-x"),
        event(name="x" * 256),
        event(name=""),
        event(name="\udcff"),
        event(name={"a": "b"}),
        event("../../etc", name="web"),
        event("ABCDEF" * 5, name="web"),
        event(ID + "0", name="web"),
        event(None, name="web"),
    ],
)
def test_a_name_or_id_that_no_engine_gives_is_a_plain_event(said: bytes) -> None:
    assert parse_event(said) == SOMETHING


@pytest.mark.parametrize(
    "said", [b"garbage", b"{}", b"[]", b"null", b'{"Actor":[]}', b'{"Actor":{"ID":"x"}}', b"[" * 100_000, b"\xff\xfe"]
)
def test_what_is_no_event_is_an_error(said: bytes) -> None:
    with pytest.raises(ValueError, match="not an event"):
        parse_event(said)


@pytest.mark.parametrize(
    "line", [b"", b"+", b"web", STARTED + b" x", b" " + STARTED, STARTED + b"\r", b"xyz web", b"? ?"]
)
def test_a_line_that_is_not_exactly_id_and_name_names_nobody(line: bytes) -> None:
    assert parse_started(line) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reading_of_a_line(line: bytes) -> None:
    started = parse_started(line)
    assert started is None or f"{started[0]} {started[1]}".encode() == line


@given(st.lists(st.sampled_from([DOCKER, PODMAN, ""]), max_size=5), st.lists(st.integers(0, 2000), max_size=20))
def test_events_are_the_same_however_they_are_cut(said: list[str], cuts: list[int]) -> None:
    stream = "".join(line + "\n" for line in said).encode()
    events, events_read = EventParser(), []
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    for start, end in itertools.pairwise(places):
        events_read += events.feed(stream[start:end])
    assert events_read == [STARTED for line in said if line]


def test_an_overlong_event_is_dropped_and_does_not_hide_the_next() -> None:
    """A container's labels may be of any length."""
    events = EventParser()
    piece = b"x" * 60_000
    for _ in range(EVENT_LIMIT // len(piece) + 5):
        assert events.feed(piece) == []
        assert len(events._line) <= EVENT_LIMIT
    assert events.feed(b"\n" + DOCKER.encode() + b"\n") == [SOMETHING, STARTED]


def test_an_event_without_end_is_an_error() -> None:
    events = EventParser()
    piece = b"x" * 1_000_000
    for _ in range(engine_events.ENDLESS // len(piece)):
        events.feed(piece)
    with pytest.raises(ValueError, match="without end"):
        events.feed(piece)
