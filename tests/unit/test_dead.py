"""Dead letters on the agents' side: put aside once, taken again once, whatever was killed between two steps."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents.dead.letters import DeadLetters
from nsbridge.agents.dead.retries import DeadLetterRetries
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import DEAD, NOT_DELIVERED, SinkJournal, open_sink
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.loop import Loop
from nsbridge.agents.wire import Message, Run

STEM = f"{0xABC:016x}-{7:020d}"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SourceJournal]:
    made = open_source(str(tmp_path / "journal"), 35, 4096)
    yield made
    made.close()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkJournal]:
    made = open_sink(str(tmp_path / "sink"))
    made.adopt(0xABC, 6)
    yield made
    made.close()


def inside(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "box").iterdir())}


# Put aside


@pytest.mark.parametrize("bait", ["loop", "dangling", "directory"])
def test_what_an_agent_put_in_a_letter_s_place_is_none(tmp_path: Path, box: int, sink: SinkJournal, bait: str) -> None:
    """Its successor neither ends of it nor takes the message for one that is put aside."""
    place = tmp_path / "box" / f"{STEM}.json"
    place.mkdir() if bait == "directory" else place.symlink_to(place.name if bait == "loop" else "nowhere")
    letters = DeadLetters(box, sink)
    assert sink.handed == 6
    if bait == "directory":
        with pytest.raises(OSError, match="directory"):
            letters.add(Run(0xABC, 7, 1, (b"body",)), "here", "why")
    else:
        assert letters.add(Run(0xABC, 7, 1, (b"body",)), "here", "why")
        assert place.is_file()
        assert not place.is_symlink()


@pytest.mark.parametrize("bait", ["FIFO", "link"])
def test_writing_a_letter_waits_for_nothing_and_follows_nothing(
    tmp_path: Path, box: int, sink: SinkJournal, bait: str
) -> None:
    """In the place of the hidden part: the writer of a FIFO waits for a reader."""
    part, other = tmp_path / "box" / f".{STEM}.body", tmp_path / "other"
    other.write_bytes(b"kept")
    os.mkfifo(part) if bait == "FIFO" else part.symlink_to(other)
    letters = DeadLetters(box, sink)
    assert letters.add(Run(0xABC, 7, 1, (b"body",)), "here", "why")
    assert other.read_bytes() == b"kept"


def test_a_letter_is_its_bytes_and_a_note_of_why(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    letters = DeadLetters(box, sink)
    assert letters.add(Run(0xABC, 7, -3, (b"\0body\xff",)), "queue 0x4d2", "too long")
    found = inside(tmp_path)
    assert list(found) == [f"{STEM}.body", f"{STEM}.json"]
    assert found[f"{STEM}.body"] == b"\0body\xff"
    note = json.loads(found[f"{STEM}.json"])
    assert note.pop("time") > 1_600_000_000
    assert note == {"epoch": 0xABC, "seq": 7, "type": -3, "bytes": 6, "where": "queue 0x4d2", "why": "too long"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "box").iterdir()} == {0o600}


def test_the_same_message_again_is_the_same_letter(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """An agent that was killed after it wrote a letter and before that was confirmed gets the message once more."""
    letters = DeadLetters(box, sink)
    arrived = Run(0xABC, 7, 1, (b"body",))
    assert letters.add(arrived, "here", "why")
    before = inside(tmp_path)
    assert not letters.add(arrived, "there", "another reason")
    assert inside(tmp_path) == before


def test_a_letter_not_noted_before_a_kill_is_not_also_delivered(box: int, sink: SinkJournal) -> None:
    """The endpoint's present limit does not matter; and the letter is counted once."""
    DeadLetters(box, sink).add(Run(0xABC, 7, 1, (b"body",)), "here", "why")
    assert (sink.handed, sink.cells[DEAD], sink.delivered) == (6, 1, -1)
    sink.cells[DEAD] = sink.cells[NOT_DELIVERED] = 0  # killed between the letter and the counters
    for _ in range(2):
        DeadLetters(box, sink)
        assert (sink.handed, sink.cells[DEAD], sink.delivered) == (7, 1, 0)


def test_a_letter_of_a_lost_journal_is_not_handed_over(box: int, sink: SinkJournal) -> None:
    """It counts as dead, and takes nothing from what was delivered."""
    DeadLetters(box, sink).add(Run(0xDEF, 7, 1, (b"body",)), "here", "why")
    assert (sink.cells[DEAD], sink.cells[NOT_DELIVERED]) == (1, 0)


@pytest.mark.parametrize("left", [[f".{STEM}.body"], [f"{STEM}.body"], [f"{STEM}.body", f".{STEM}.json"]])
def test_what_a_killed_agent_had_begun_is_done_anew(
    tmp_path: Path, box: int, sink: SinkJournal, left: list[str]
) -> None:
    """Without the note it is no letter yet; half a file of an earlier life is overwritten."""
    for name in left:
        (tmp_path / "box" / name).write_bytes(b"half of something that was longer")
    assert DeadLetters(box, sink).add(Run(0xABC, 7, 1, (b"body",)), "here", "why")
    found = inside(tmp_path)
    assert list(found) == [f"{STEM}.body", f"{STEM}.json"]
    assert found[f"{STEM}.body"] == b"body"


def test_a_full_disk_is_reported_and_leaves_no_letter(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """Nothing is confirmed then; it is tried again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            DeadLetters(box, sink).add(Run(0xABC, 7, 1, (b"x" * 5000,)), "here", "why")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert f"{STEM}.json" not in inside(tmp_path)
    assert DeadLetters(box, sink).add(Run(0xABC, 7, 1, (b"x" * 5000,)), "here", "why")


# Taken again


class Host:
    """The part of an agent that DeadLetterRetries uses."""

    def __init__(self, journal: SourceJournal, room: int = 100) -> None:
        self.journal = journal
        self.room = room
        self.full = False
        self.said: list[str] = []
        self.reason = ""
        self.loop = Loop()

    def flush(self) -> None:
        """Do nothing: there is no other agent."""

    def has_room(self) -> bool:
        return self.room > 0

    def take(self, message: Message) -> int:
        if self.full:
            raise Blocked("No space left on device")
        try:
            seq = self.journal.append(message)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        self.room -= 1
        return seq

    def blocked(self, side: str, reason: str) -> None:
        assert side == "out"
        self.reason = reason

    def log(self, _level: str, text: str) -> None:
        self.said.append(text)


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(journal: SourceJournal) -> Iterator[MakeHost]:
    """Yield a maker of hosts."""
    with ExitStack() as cleanup:

        def make(room: int = 100) -> Host:
            host = Host(journal, room)
            cleanup.callback(host.loop.close)
            return host

        yield make


def retries(box: int, host: Any) -> DeadLetterRetries:
    return DeadLetterRetries(box, host.journal, host, fsync=None)


def given(tmp_path: Path, seq: int, mtype: int, body: bytes, claim: str = "") -> str:
    name = f"{0xABC:016x}-{seq:020d}.{mtype}{claim}"
    (tmp_path / "box" / name).write_bytes(body)
    return name


def pending(journal: SourceJournal) -> list[Message]:
    return [journal.get(seq) for seq in range(journal.confirmed + 1, journal.taken + 1)]


def test_letters_are_taken_again_in_their_order_with_their_types(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    host = make_host()
    for seq, mtype, body in ((10, 0, b"second"), (9, 7, b"first"), (11, (1 << 63) - 1, b"")):
        given(tmp_path, seq, mtype, body)
    (tmp_path / "box/nonsense").write_bytes(b"no letter")
    for mtype in (-1, 1 << 63):
        given(tmp_path, 12, mtype, b"a type that no message has")
    taking = retries(box, host)
    taking.settle()
    taking.take(lambda: True)
    assert pending(journal) == [Message(7, b"first"), Message(0, b"second"), Message((1 << 63) - 1, b"")]
    assert len(inside(tmp_path)) == 3
    assert not taking.due


def test_the_window_and_the_source_are_asked_before_each(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    host = make_host(room=2)
    for seq in range(5):
        given(tmp_path, seq, 1, b"%d" % seq)
    taking = retries(box, host)
    taking.take(lambda: True)
    assert (len(pending(journal)), taking.due) == (2, True)
    host.room = 100
    taking.take(lambda: False)
    assert (len(pending(journal)), taking.due) == (2, True)
    taking.take(lambda: len(pending(journal)) < 4)
    assert (len(pending(journal)), len(inside(tmp_path))) == (4, 1)
    taking.take(lambda: True)
    assert [message.body for message in pending(journal)] == [b"0", b"1", b"2", b"3", b"4"]


def test_one_in_the_journal_at_a_kill_is_not_taken_twice(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    """Killed before the file was removed: also if it was confirmed since."""
    given(tmp_path, 7, 1, b"body", f"@{journal.epoch:016x}-{1:020d}")
    journal.append(Message(1, b"body"))
    host = make_host()
    taking = retries(box, host)
    taking.settle()
    taking.take(lambda: True)
    assert (len(pending(journal)), inside(tmp_path)) == (1, {})
    given(tmp_path, 7, 1, b"body", f"@{journal.epoch:016x}-{1:020d}")
    journal.confirm(1)
    retries(box, host).settle()
    assert inside(tmp_path) == {}


@pytest.mark.parametrize("epoch", ["own", "of a journal that was lost"])
def test_one_not_in_the_journal_at_a_kill_is_taken(
    tmp_path: Path, box: int, journal: SourceJournal, epoch: str, make_host: MakeHost
) -> None:
    """Killed after the file was renamed and before it was in the journal, or the journal has been lost since."""
    journal.append(Message(1, b"another"))
    claim = f"@{journal.epoch:016x}-{2:020d}" if epoch == "own" else f"@{journal.epoch - 1:016x}-{1:020d}"
    name = given(tmp_path, 7, 4, b"body", claim)
    host = make_host()
    taking = retries(box, host)
    taking.settle()
    assert list(inside(tmp_path)) == [name.partition("@")[0]]
    taking.take(lambda: True)
    assert pending(journal) == [Message(1, b"another"), Message(4, b"body")]
    assert inside(tmp_path) == {}


def test_one_that_the_journal_has_no_room_for_keeps_its_name(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    """Under another name it would count as taken once the journal has reached that number."""
    host = make_host()
    name = given(tmp_path, 7, 1, b"x" * 3000)
    journal.append(Message(1, b"y" * 2000))
    taking = retries(box, host)
    taking.take(lambda: True)
    assert (list(inside(tmp_path)), taking.due) == ([name], True)
    assert "no room" in host.reason
    journal.confirm(1)
    taking.take(lambda: True)
    assert pending(journal) == [Message(1, b"x" * 3000)]
    assert host.reason == ""


def test_retry_without_room_is_tried_again_by_itself(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    """A full disk: nothing is pending, so no confirmation comes that it could be tried after."""
    host = make_host()
    given(tmp_path, 7, 1, b"body")
    host.full = True
    taking = retries(box, host)
    taking.take(lambda: True)
    assert "No space left" in host.reason
    host.full = False
    deadline = host.loop.now() + 10
    while taking.due and host.loop.now() < deadline:
        host.loop.run_once(0.1)
    assert (pending(journal), host.reason, taking.due) == ([Message(1, b"body")], "", False)


def test_what_is_no_regular_file_is_reported_and_left(
    tmp_path: Path, box: int, journal: SourceJournal, make_host: MakeHost
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"secret")
    stems = [f"{0xABC:016x}-{number:020d}.1" for number in range(4)]
    os.mkfifo(tmp_path / "box" / stems[0])
    (tmp_path / "box" / stems[1]).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "box" / stems[2]).mkdir()
    (tmp_path / "box" / stems[3]).write_bytes(b"good")
    host = make_host()
    taking = retries(box, host)
    taking.settle()
    taking.take(lambda: True)
    assert pending(journal) == [Message(1, b"good")]
    assert len(host.said) == 4
    assert not taking.due
