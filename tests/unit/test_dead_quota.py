"""The quota of dead letters as an agent keeps it: counted, waited for, dropped; across kills and other hands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents.dead.letters import DeadLetters, NoRoomError
from nsbridge.agents.journal.sinkjournal import DEAD, DEAD_DROPPED, SinkJournal, open_sink
from nsbridge.agents.statefiles import stem
from nsbridge.config.schema import DeadConfig
from tests.dead_box import EPOCH, OLDEST, THREE, Clock, kept, message, put, take_out
from tests.kills import killed_at


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkJournal]:
    made = open_sink(str(tmp_path / "sink"))
    made.adopt(EPOCH, 0)
    yield made
    made.close()


# Counted


def test_full_box_refuses_and_leaves_nothing_behind(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    letters = DeadLetters(box, sink, THREE)
    put(letters, 1, 2, 3)
    before = sorted(os.listdir(box))
    with pytest.raises(NoRoomError, match="3 letters"):
        letters.add(message(4), "here", "why")
    assert sorted(os.listdir(box)) == before
    assert sink.cells[DEAD] == 3


def test_bytes_of_body_and_note_count(box: int, sink: SinkJournal) -> None:
    letters = DeadLetters(box, sink, DeadConfig(max_bytes=20_000))
    put(letters, 1, 2, body=b"x" * 9800)
    with pytest.raises(NoRoomError, match="20 kB"):
        letters.add(message(3, b""), "here", "w" * 200)
    assert not letters.add(message(2), "again", "it is there already")


def test_restarted_agent_counts_what_is_there(box: int, sink: SinkJournal) -> None:
    put(DeadLetters(box, sink, THREE), 1, 2)
    letters = DeadLetters(box, sink, THREE)
    put(letters, 3)
    with pytest.raises(NoRoomError):
        letters.add(message(4), "here", "why")


def test_start_does_not_read_the_directory(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """Ten thousand letters must not delay the first message after a kill."""
    (tmp_path / "box" / f".{stem(EPOCH, 9)}.body").write_bytes(b"left by a kill; counting would remove it")
    letters = DeadLetters(box, sink, THREE)
    assert len(os.listdir(box)) == 1
    put(letters, 1)
    assert len(os.listdir(box)) == 2


def test_letter_taken_out_by_hand_makes_room(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """The agent gets no order: it sees that the directory has changed."""
    letters = DeadLetters(box, sink, THREE)
    put(letters, 1, 2, 3)
    for seq in (4, 5, 6):
        for _ in range(2):
            with pytest.raises(NoRoomError):
                letters.add(message(seq), "here", "why")
        take_out(tmp_path, seq - 3)
        put(letters, seq)
    assert kept(tmp_path) == [4, 5, 6]


def test_full_box_that_did_not_change_is_not_counted_again(
    tmp_path: Path, box: int, sink: SinkJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter waits for days: its retries, one a second, cost a look at the directory's time of change."""
    letters = DeadLetters(box, sink, THREE)
    put(letters, 1, 2, 3)
    os.utime(tmp_path / "box", (1, 1))
    with pytest.raises(NoRoomError):
        letters.add(message(4), "here", "why")
    listings: list[Any] = []
    monkeypatch.setattr(os, "listdir", lambda *args: listings.append(args))
    with pytest.raises(NoRoomError):
        letters.add(message(4), "here", "why")
    assert listings == []


def test_what_a_kill_left_of_a_letter_is_removed(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    put(DeadLetters(box, sink, THREE), 1)
    names = [f".{stem(EPOCH, 7)}.body", f"{stem(EPOCH, 8)}.body", f".{stem(EPOCH, 9)}.json", f"{stem(EPOCH, 10)}.json"]
    for name in (*names, "somebody's own"):
        (tmp_path / "box" / name).write_bytes(b"x")
    put(DeadLetters(box, sink, THREE), 2)
    assert kept(tmp_path) == [1, 2]
    assert len(os.listdir(box)) == 5
    assert (tmp_path / "box/somebody's own").exists()


def test_hostile_directory_neither_blocks_nor_counts(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """Links, FIFOs, directories and sparse files under a letter's names: a compromised agent left them."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 999)
    for seq, make in ((11, os.mkfifo), (12, os.mkdir), (13, lambda name: os.symlink(secret, name))):
        for suffix in ("json", "body"):
            make(f"{tmp_path}/box/{stem(EPOCH, seq)}.{suffix}")
    (tmp_path / "box/a\nb").write_bytes(b"")
    put(DeadLetters(box, sink, DeadConfig(max_letters=4)), 1)
    assert secret.read_bytes() == b"x" * 999


# Dropped


def test_drop_oldest_keeps_the_youngest_and_counts(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    dropped: list[str] = []
    letters = DeadLetters(box, sink, OLDEST, dropped=lambda letter: dropped.append(letter.name))
    put(letters, *range(1, 8))
    assert kept(tmp_path) == [5, 6, 7]
    assert len(os.listdir(box)) == 6
    assert dropped == [stem(EPOCH, seq) for seq in (1, 2, 3, 4)]
    assert (sink.cells[DEAD], sink.cells[DEAD_DROPPED]) == (7, 4)


def test_restarted_agent_knows_which_letter_is_oldest(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    letters = DeadLetters(box, sink, OLDEST)
    put(letters, 1, 2, 3)
    for age, seq in ((30, 2), (20, 1), (10, 3)):
        then = os.stat(tmp_path / "box").st_mtime - age
        os.utime(tmp_path / "box" / f"{stem(EPOCH, seq)}.json", (then, then))
    letters = DeadLetters(box, sink, OLDEST)
    put(letters, 4)
    assert kept(tmp_path) == [1, 3, 4]


def test_letter_dropped_by_others_is_not_counted_as_dropped(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    letters = DeadLetters(box, sink, OLDEST)
    put(letters, 1, 2, 3)
    take_out(tmp_path, 1)
    put(letters, 4)
    assert (kept(tmp_path), sink.cells[DEAD_DROPPED]) == ([2, 3, 4], 0)


def test_letters_older_than_max_age_are_dropped(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """A running agent uses the monotonic clock; the next agent uses the note's time."""
    clock, aging = Clock(), DeadConfig(max_age=60.0)
    letters = DeadLetters(box, sink, aging, clock)
    put(letters, 1)
    clock.now += 10
    put(letters, 2)
    assert letters.expire() == 1060.0
    clock.now = 1060.0
    assert letters.expire() == 1070.0
    assert kept(tmp_path) == [2]
    then = os.stat(tmp_path / "box").st_mtime - 50
    os.utime(tmp_path / "box" / f"{stem(EPOCH, 2)}.json", (then, then))
    letters = DeadLetters(box, sink, aging, clock)
    due = letters.expire()
    assert due is not None
    assert 1068 < due < 1071
    clock.now = due
    assert letters.expire() is None
    assert kept(tmp_path) == []


def test_letter_from_the_future_is_young(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """The wall clock was set back: the letter lives max_age from now on, neither longer nor shorter."""
    clock, aging = Clock(), DeadConfig(max_age=60.0)
    put(DeadLetters(box, sink, aging, clock), 1)
    later = os.stat(tmp_path / "box").st_mtime + 1e6
    os.utime(tmp_path / "box" / f"{stem(EPOCH, 1)}.json", (later, later))
    assert DeadLetters(box, sink, aging, clock).expire() == 1060.0


def test_no_kill_breaks_the_quota_or_loses_a_letter(tmp_path: Path, sink: SinkJournal) -> None:
    """Killed before every line of a life that drops and writes: the next one ends with the same three letters."""
    line = 0
    while True:
        line += 1
        directory = tmp_path / f"{line}"
        directory.mkdir()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        put(DeadLetters(fd, sink, OLDEST), 1, 2, 3)
        before = sink.handed
        sink.sent(3, 0)
        with killed_at(line, "agents/dead/letters.py", "agents/dead/quota.py") as ran:
            DeadLetters(fd, sink, OLDEST).add(message(4), "here", "why")
        sys.settrace(None)
        finished = ran[0] < line
        letters = DeadLetters(fd, sink, OLDEST)
        if sink.handed == 3:
            letters.add(message(4), "here", "why")  # it is offered again
        assert len(list(directory.glob("*.json"))) == 3
        bodies = [json.loads(path.read_bytes())["seq"] for path in sorted(directory.glob("*.json"))]
        assert bodies == [2, 3, 4]
        assert all(path.with_suffix(".body").read_bytes() == b"body" for path in directory.glob("*.json"))
        sink.sent(before, 0)
        letters = DeadLetters(fd, sink, DeadConfig(max_letters=9))
        put(letters, 5)
        assert len(list(directory.iterdir())) == 8, "what the kill left is gone when they are counted next"
        os.close(fd)
        if finished:
            break
    assert line > 50
