"""Journals as files: damage of every kind, versions, the lock, a full file system, sizes at their limits."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.file import NOTE
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal import journalfile, opensource, sinkjournal
from nsbridge.agents.journal import sourcejournal as journal
from nsbridge.agents.journal.journalfile import PAGE, FullError, NewerVersionError
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.wire import Message
from tests import child
from tests.journals import ENTRIES, ONE, RING, THREE, TWO, content, hear, receive_into, sink, source, used

# What a journal keeps


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 8192])
def test_messages_are_there_after_closing_and_opening(tmp_path: Path, length: int) -> None:
    messages = [Message(1, bytes(length)), Message((1 << 63) - 1, b"\xff" * length)]
    opened = source(tmp_path / "a", ring=1 << 16)
    epoch = opened.epoch
    for message in messages:
        opened.append(message)
    opened.close()
    again = source(tmp_path / "a", ring=1 << 16)
    assert content(again) == (epoch, 0, messages)
    assert again.pending_bytes == 2 * length
    again.close()


def test_the_index_and_the_ring_wrap_around(tmp_path: Path) -> None:
    """Records of all lengths pass the ring's end many times; opened again, it continues in the same place."""
    chance = random.Random(1)
    opened = source(tmp_path / "a")
    model: list[Message] = []
    for number in range(2000):
        message = Message(1 + number, chance.randbytes(chance.randint(0, 200)))
        try:
            opened.append(message)
            model.append(message)
        except FullError:
            count = chance.randint(1, len(model))
            opened.confirm(opened.confirmed + count)
            del model[:count]
        if not number % 50:
            opened.close()
            opened = source(tmp_path / "a")
        assert content(opened)[2] == model
    opened.close()


def test_a_message_fits_the_ring_exactly_and_one_byte_more_fails(tmp_path: Path) -> None:
    opened = source(tmp_path / "a", ring=256)
    longest = Message(1, b"x" * (256 - 16))
    for _ in range(3):
        with pytest.raises(FullError, match="no room for a message of 241 bytes"):
            opened.append(Message(1, b"x" * (256 - 15)))
        opened.append(longest)
        with pytest.raises(FullError):
            opened.append(Message(1, b""))
        assert content(opened)[2] == [longest]
        opened.confirm(opened.taken)
    opened.close()


def test_seqs_continue_at_the_top_of_their_range(tmp_path: Path) -> None:
    """47 bits: at a million messages a second that is four years. The sink keeps a bit for the sender beside it."""
    start = (1 << 47) - 5
    opened = source(tmp_path / "a")
    for cell in (journal.CONFIRMED, journal.TAKEN):
        opened.cells[cell] = journalfile.seal(start)
    opened.close()
    opened = source(tmp_path / "a")
    assert [opened.append(ONE), opened.append(TWO)] == [start + 1, start + 2]
    opened.confirm(start + 1)
    opened.close()
    opened = source(tmp_path / "a")
    assert content(opened)[1:] == (start + 1, [TWO])
    opened.close()
    handing = sink(tmp_path / "b")
    handing.adopt(1 << 62, start)
    handing.sent(start + 1, 1)
    handing.close()
    handing = sink(tmp_path / "b")
    assert (handing.epoch, handing.handed, handing.last_sender, handing.delivered) == (1 << 62, start + 1, 1, 1)
    handing.close()


@pytest.mark.parametrize(("entries", "ring"), [(4, 64), (64, 1 << 14)])
def test_another_window_keeps_pending_epoch_and_notes(tmp_path: Path, entries: int, ring: int) -> None:
    """Also a smaller one than what is pending needs."""
    used(tmp_path / "a")
    opened = source(tmp_path / "a")
    before = content(opened)
    opened.cells[NOTE], opened.cells[NOTE + 1] = 11, 22
    opened.close()
    again = source(tmp_path / "a", entries, ring)
    assert content(again) == before
    assert (again.cells[NOTE], again.cells[NOTE + 1]) == (11, 22)
    again.confirm(again.taken)
    again.append(ONE)
    again.close()
    once_more = source(tmp_path / "a", entries, ring)
    assert content(once_more)[2] == [ONE]
    once_more.close()
    assert os.listdir(tmp_path) == ["a"]


def test_held_records_stay_until_they_are_released(tmp_path: Path) -> None:
    """Also behind a restart at which nothing is pending."""
    opened = source(tmp_path / "a")
    opened.hold()
    bodies = [b"%d" % number for number in range(opened.room())]
    for body in bodies:
        opened.append(Message(1, body))
    assert opened.room() == 0
    opened.confirm(opened.taken)
    opened.released = 2
    assert opened.room() == 2
    opened.close()
    opened = source(tmp_path / "a")
    opened.hold()
    assert (opened.released, opened.room()) == (2, 2)
    opened.append(ONE)
    assert [opened.get(seq).body for seq in range(3, len(bodies) + 1)] == bodies[2:]
    opened.append(TWO)
    with pytest.raises(FullError):
        opened.append(ONE)
    opened.close()


def test_damaged_held_records_count_as_released(tmp_path: Path) -> None:
    opened = source(tmp_path / "a")
    for _ in range(4):
        opened.append(ONE)
    opened.confirm(4)
    opened._index[2] = 0
    opened.hold()
    assert opened.released == 2
    opened.close()


def test_another_window_keeps_notes_of_confirmed_unremoved_files(tmp_path: Path) -> None:
    """A kill can fall between the two; without its note the file would be taken, and delivered, again."""
    store = NoteStore(source(tmp_path / "a"), lambda _note, _seq: None)
    store.journal.cells[journal.RECORDS] = SpoolEndpoint.notes
    for number in range(4):
        store.note(0, (b"body",), b"note %d" % number)
    store.confirm(3)
    store.journal.released = 1
    store.journal.close()
    again = NoteStore(source(tmp_path / "a", ENTRIES + 5, 2 * RING), lambda _note, _seq: None)
    assert again.journal.released == 1
    assert [again.note_of(seq) for seq in (2, 3, 4)] == [b"note 1", b"note 2", b"note 3"]
    assert (again.confirmed, again.taken) == (3, 4)
    again.journal.close()


# Versions


@pytest.mark.parametrize(("kind", "open_it"), [(journalfile.SOURCE, source), (journalfile.SINK, sink)])
def test_a_journal_of_a_newer_version_is_refused_and_untouched(
    tmp_path: Path, kind: int, open_it: Callable[[Path], object]
) -> None:
    path = tmp_path / "a"
    fixed = struct.pack("<8sII4Q", b"nsbridge", journalfile.VERSION + 1, kind, 1, ENTRIES, RING, 0)
    data = (fixed + struct.pack("<I", zlib.crc32(fixed))).ljust(PAGE, b"\0") + b"what later versions know"
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(NewerVersionError, match=f"version {journalfile.VERSION + 1}") as caught:
            open_it(path)
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == data


# The lock


def test_a_second_opener_waits_until_all_holders_are_dead(tmp_path: Path) -> None:
    """A sender process can still note what it sent after its agent was killed."""
    path = tmp_path / "a"
    child.be_subreaper(yes=True)
    try:
        family = _Holders(path)
        with pytest.raises(BlockingIOError):
            sink(path)
        os.kill(family.parent, signal.SIGKILL)
        child.wait(family.parent)
        with pytest.raises(BlockingIOError):
            sinkjournal.open_sink(str(path), hear(None), patience=0.2)
        waiting = child.fork(lambda: _open_and_say(path))
        os.kill(family.child, signal.SIGKILL)
        child.wait(family.child)
        assert child.wait(waiting) == 5
    finally:
        child.be_subreaper(yes=False)


class _Holders:
    """A process that has opened the journal and handed over 4, and its child, which notes the 5th when it can."""

    def __init__(self, path: Path) -> None:
        reader, writer = os.pipe()

        def main() -> int:
            held = sink(path)
            held.adopt(1, 4)
            pid = child.fork(lambda: _note_and_wait(held))
            os.write(writer, b"%d" % pid)
            signal.pause()
            return 98

        self.parent = child.fork(main)
        os.close(writer)
        self.child = int(os.read(reader, 100))
        os.close(reader)


def _note_and_wait(held: SinkJournal) -> int:
    held.hand(5)
    signal.pause()
    return 98


def _open_and_say(path: Path) -> int:
    opened = sinkjournal.open_sink(str(path), hear(None), patience=child.LIMIT)
    return opened.handed


def test_a_second_opener_gets_the_journal_now_in_that_place(tmp_path: Path) -> None:
    """The first holder changed its size, or moved it aside, while the second waited."""
    path = tmp_path / "a"
    used(path)
    reader, writer = os.pipe()

    def first() -> int:
        held = source(path)
        os.write(writer, b"held")
        time.sleep(0.1)  # the other waits for the old file by then, or comes later: both are right
        again = opensource._resized(str(path), held, journalfile.Header(journalfile.SOURCE, 0, 20, 2048), 0)
        again.append(Message(9, b"new"))
        again.close()
        return 0

    pid = child.fork(first)
    os.read(reader, 4)
    opened = open_source(str(path), 20, 2048, hear(None), patience=child.LIMIT)
    assert content(opened)[2] == [ONE, TWO, THREE, Message(9, b"new")]
    opened.close()
    assert child.wait(pid) == 0
    os.close(reader)
    os.close(writer)


# A full file system


def _on_tmpfs(size: str, what: Callable[[Path], object]) -> Any:
    """Run it in a child with a file system of that size of its own."""

    def run() -> object:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("tmpfs", "/mnt", "tmpfs", 0, f"size={size}")
        return what(Path("/mnt"))

    return child.in_child(run)


def _fill(directory: Path) -> Path:
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        while _has_room(file):
            pass
    return filler


def _has_room(file: FileIO) -> bool:
    try:
        file.write(bytes(PAGE))
    except OSError:
        return False
    return True


def test_a_full_file_system_loses_no_message(tmp_path: Path) -> None:
    def run(directory: Path) -> list[object]:
        path = directory / "a"
        opened = source(path, 1000, 1 << 20)
        sent: list[Message] = []
        refused = ""
        while not refused:
            message = Message(1 + len(sent), bytes([len(sent)]) * 3000)
            try:
                opened.append(message)
                sent.append(message)
            except FullError as error:
                refused = str(error)
        with pytest.raises(FullError):
            opened.land([3000])
        assert content(opened)[2] == sent
        opened.close()
        opened = source(path, 1000, 1 << 20)  # an agent that was killed then comes back on the full file system
        assert content(opened)[2] == sent
        linux.mount("tmpfs", "/mnt", None, 32, "size=4m")  # MS_REMOUNT: there is room again
        receive_into(opened.land([3000])[0], 5, b"z" * 3000)
        opened.landed([3000])
        assert content(opened)[2] == [*sent, Message(5, b"z" * 3000)]
        opened.close()
        return [len(sent), refused]

    count, refused = _on_tmpfs("256k", run)
    assert count >= 70, "nearly all of the room is used before a message is refused"
    assert "No space left on device" in refused
    assert "/mnt/a" in refused


def test_a_journal_that_cannot_be_made_names_its_place(tmp_path: Path) -> None:
    def run(directory: Path) -> list[str]:
        path = directory / "a"
        data = used(path)
        filler = _fill(directory)
        said = []
        attempts: list[Callable[[], object]] = [
            lambda: source(directory / "b", 4000),
            lambda: sink(directory / "c"),
            lambda: source(path, 4000, 1 << 20),
        ]
        for attempt in attempts:
            with pytest.raises(FullError) as caught:
                attempt()
            said.append(str(caught.value))
        assert sorted(os.listdir(directory)) == ["a", "filler"]
        assert path.read_bytes() == data
        filler.unlink()
        opened = source(path, 4000, 1 << 17)
        assert content(opened)[2] == [ONE, TWO, THREE]
        opened.close()
        return said

    said = _on_tmpfs("256k", run)
    for line, name in zip(said, "bca", strict=True):
        assert f"/mnt/{name}" in line
        assert "No space left on device" in line


def test_an_overwritten_confirmed_message_is_left_on_resize(
    tmp_path: Path,
) -> None:
    """Both have the same place in the index, as the messages of one record have."""
    opened = source(tmp_path / "a", 8, 4096)
    opened.confirm(opened.append(Message(1, b"")))
    opened.append(Message(1, b"next"))
    opened.close()
    opened = source(tmp_path / "a", 16, 4096)
    assert content(opened)[2] == [Message(1, b"next")]
    assert opened.pending_bytes == 4
    opened.close()
