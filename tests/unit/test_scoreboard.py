"""Reports of an agent to its supervisor: the page that both see, and the control channel. The agent may be hostile."""

from __future__ import annotations

import faulthandler
import signal
import socket
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nsbridge.agents import control, scoreboard
from nsbridge.agents.scoreboard import Scoreboard
from tests.child import exit_code

LONGEST = scoreboard._REASON_SIZE - 1  # bytes of a reason


def test_what_a_child_writes_is_seen_here_and_outlives_it() -> None:
    page = Scoreboard()

    def child() -> int:
        page.cells[scoreboard.TAKEN] += 5
        page.cells[scoreboard.HANDED_BYTES] = (1 << 64) - 1
        page.set_reason("in", "queue full")
        return 0

    page.cells[scoreboard.TAKEN] = 2
    with page.lent():
        assert exit_code(child) == 0
    assert page.cells[scoreboard.TAKEN] == 7
    assert page.cells[scoreboard.HANDED_BYTES] == (1 << 64) - 1
    assert page.reason("in") == "queue full"


def test_no_child_has_a_page_that_is_not_lent_to_it() -> None:
    """The kind: what a child inherits beyond its own. A write ends the child, by SIGSEGV, and changes nothing here."""
    pages = [Scoreboard() for _ in range(3)]

    def write(which: int) -> int:
        faulthandler.disable()  # the death is meant
        pages[which].cells[scoreboard.BEAT] = 1
        return 0

    with pages[1].lent():
        codes = [exit_code(lambda which=which: write(which)) for which in range(3)]  # type: ignore[misc]
    assert codes == [-signal.SIGSEGV, 0, -signal.SIGSEGV]
    assert [page.cells[scoreboard.BEAT] for page in pages] == [0, 1, 0]
    assert exit_code(lambda: write(1)) == -signal.SIGSEGV, "only for as long as it was lent"


def test_child_of_a_child_has_the_page_too() -> None:
    """A sender of the agent that it was lent to."""
    page = Scoreboard()

    def sender() -> int:
        page.cells[scoreboard.SENDERS] = 7
        return 0

    with page.lent():
        assert exit_code(lambda: exit_code(sender)) == 0
    assert page.cells[scoreboard.SENDERS] == 7


def test_each_cell_and_each_reason_has_a_place_of_its_own() -> None:
    page = Scoreboard()
    names = [name for name in dir(scoreboard) if name.isupper() and not name.startswith("_")]
    numbers = [getattr(scoreboard, name) for name in names]
    assert len(set(numbers)) == len(numbers)
    for cell in range(len(page.cells)):
        page.cells[cell] = (1 << 64) - 1 - cell
    page.set_reason("out", "a" * 4000)
    page.set_reason("in", "b" * 4000)
    assert list(page.cells) == [(1 << 64) - 1 - cell for cell in range(len(page.cells))]
    assert page.reason("out") == "a" * LONGEST
    assert page.reason("in") == "b" * LONGEST


def test_a_shorter_reason_overwrites_the_whole_longer_one() -> None:
    page = Scoreboard()
    page.set_reason("out", "a long reason")
    page.set_reason("out", "short")
    assert page.reason("out") == "short"
    page.set_reason("out", "")
    assert page.reason("out") == ""


@given(st.text())
@example("\udcff")
@example("ä" * LONGEST)
def test_any_reason_can_be_written_and_read(text: str) -> None:
    page = Scoreboard()
    page.set_reason("out", text)
    whole = text.encode("utf-8", "surrogateescape")
    if len(whole) <= LONGEST and "\0" not in text:
        assert page.reason("out") == whole.decode("utf-8", "backslashreplace")


@given(st.binary(max_size=1500))
def test_any_bytes_in_the_place_of_a_reason_are_read_as_text(hostile: bytes) -> None:
    page = Scoreboard()
    start = scoreboard._REASON_AT["out"]
    page._page[start : start + len(hostile)] = hostile
    assert len(page.reason("out")) <= 4 * (LONGEST + 1)
    page.reason("out").encode()  # no surrogates: it can be logged


# -- the control channel


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_what_is_sent_is_received(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    assert control.send(theirs, report="log", level="info", text="ä\udcff\n")
    assert control.parse(ours.recv(control.MAX_SIZE)) == {"report": "log", "level": "info", "text": "ä\udcff\n"}


def test_a_full_channel_blocks_nobody(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    sent = 0
    while control.send(theirs, report="ready"):
        sent += 1
    assert sent > 10
    ours.recv(control.MAX_SIZE)
    assert control.send(theirs, report="ready")


def test_a_channel_that_nobody_reads_any_more_is_no_error(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    ours.close()
    assert not control.send(theirs, report="ready")


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b'"ready"',
        b"null",
        b"[" * 8000,
        b'{"a":' * 1600,
        b"1" * 8000,
        b'{"report": "log"}',
        b'{"report": "log", "level": "fatal"}',
        b'{"report": "log", "level": []}',
        b'{"report": "log", "level": {}}',
        b'{"report": "log", "level": "info"}',
        b'{"report": "log", "level": "info", "text": ["a"]}',
        b'{"report": "error", "text": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"report": "error"}',
        b'{"report": "ready", "uid": "\\u001b[2J", "gid": 0, "ns_inode": 1}',
        b'{"report": "ready", "uid": 0, "gid": 1.5, "ns_inode": 1}',
        b'{"report": "ready", "uid": true, "gid": 0, "ns_inode": 1}',
    ],
)
def test_what_the_protocol_does_not_know_is_nothing(datagram: bytes) -> None:
    assert control.parse(datagram) == {}
