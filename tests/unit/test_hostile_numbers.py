"""Numbers that a container, its agent or the other agent chooses, beyond what their place in a journal can keep.

The kind: a number of somebody hostile goes into eight bytes, or into a system call, and what does not fit raises there.
The journal keeps it, so each successor would end in the same way, also after the writer has gone.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents import linux, wire
from nsbridge.agents.endpoints.log.config import Framing
from nsbridge.agents.endpoints.log.framing import splitter
from nsbridge.agents.endpoints.log.notes import Note
from nsbridge.agents.endpoints.log.tail import body_at
from nsbridge.agents.endpoints.spool import notes
from nsbridge.agents.endpoints.spool.cells import NAMED, NAMED_FOR
from nsbridge.agents.endpoints.spool.epochs import NameEpochs
from nsbridge.agents.endpoints.spool.notes import SpoolFileId
from nsbridge.agents.journal import journalfile, sinkjournal
from nsbridge.agents.journal.journalfile import SOURCE, Header
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import open_sink
from nsbridge.agents.scoreboard import HANDED, Scoreboard
from nsbridge.agents.wire import Hello, WireError
from tests.frames import parsed
from tests.log_life import Make as MakeLog
from tests.spool_life import Make

MOST = (1 << 64) - 1
TIMES = {"before 1970": -86_400, "1600": -11_676_096_000, "2400": 13_569_465_600, "the last": (1 << 63) - 1}


@pytest.mark.parametrize("seconds", TIMES.values(), ids=TIMES)
def test_a_spool_s_note_keeps_a_file_of_any_time(seconds: int) -> None:
    """touch(1) sets it; ext4 has years up to 2446, tmpfs any."""
    status = os.stat_result((0, 7, 0, 0, 0, 0, 3, 0, 0, 0), {"st_mtime_ns": seconds * 10**9})
    identity = notes.identity_of(status)
    assert notes.unpack(notes.pack(identity, b"name")) == (identity, b"name")


def test_a_spool_takes_files_of_any_time(make_spool: Make) -> None:
    life = make_spool()
    for number, seconds in enumerate(TIMES.values()):
        odd = life.out.parent / f".{number}"
        odd.write_bytes(b"%d" % number)
        os.utime(odd, ns=(0, seconds * 10**9))
        odd.rename(life.out / f"{number}")
    life.expect(b"0", b"1", b"2", b"3")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../x", b"/etc/passwd", b"a\0b", b"x" * 5000, None])
def test_a_spool_s_forged_note_is_of_no_file(name: bytes | None) -> None:
    """A name with NUL raised at each look, and one with a slash is not in the spool."""
    note = b"short" if name is None else notes.pack(SpoolFileId(7, 8, 9), name)
    identity, shown = notes.unpack(note)
    assert identity.inode == 0
    assert b"/" not in shown


@pytest.mark.parametrize("note", [b"", b"short", Note(1, 0, 7, [1], [2]).pack()[:-1], Note(1, 0, 5, [1], [2]).pack()])
def test_a_log_s_forged_note_is_of_no_message(note: bytes) -> None:
    """Too short, or for other messages than the one that it is the record of."""
    assert Note.read(note, 7) is None
    assert Note.read(Note(1, 0, 7, [1], [2]).pack(), 7) is not None


@pytest.mark.parametrize("epoch", [1 << 63, MOST])
@pytest.mark.parametrize("direction", ["out_epoch", "in_epoch"])
def test_an_epoch_that_no_clock_shows_is_refused(epoch: int, direction: str) -> None:
    """Else the sink would keep it, and could name no message of an honest source after it."""
    hello = Hello(1, 0, 5, 0, 5, 0)._replace(**{direction: epoch})
    with pytest.raises(WireError):
        parsed(wire.pack_hello(hello))


def test_names_after_the_last_epoch_begin_with_it(tmp_path: Path) -> None:
    cells = memoryview(bytearray(8 * 40)).cast("Q")
    cells[NAMED] = cells[NAMED_FOR] = MOST
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    said: list[str] = []
    assert NameEpochs(cells, said.append).named(5, directory) == MOST
    os.close(directory)
    assert len(said) == 1


def write_cell(path: Path, cell: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(journalfile.CELLS.start + 8 * cell)
        file.write(struct.pack("<Q", value))


COUNTERS = ("BYTES", "REPEATS", "IN_DOUBT", "DEAD", "NOT_DELIVERED", "DEAD_DROPPED")


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("value", [1 << 63, MOST], ids=hex)
def test_a_counter_that_nothing_counted_begins_anew(tmp_path: Path, name: str, value: int) -> None:
    """Keep what was handed over: the counters are for people only."""
    path, cell, said = tmp_path / "a.in", getattr(sinkjournal, name), list[str]()
    sink = open_sink(str(path))
    sink.adopt(5, 0)
    sink.hand(3)
    sink.close()
    write_cell(path, cell, value)
    sink = open_sink(str(path), said.append)
    sink.cells[cell] += 1
    page = Scoreboard()
    sink.show(page.cells)
    assert (sink.epoch, sink.handed, len(said)) == (5, 3, 1)
    assert page.cells[HANDED] in (2, 3)
    sink.close()


def test_more_undelivered_than_handed_begins_anew(tmp_path: Path) -> None:
    path, said = tmp_path / "a.in", list[str]()
    open_sink(str(path)).close()
    write_cell(path, sinkjournal.NOT_DELIVERED, 4)
    sink = open_sink(str(path), said.append)
    sink.show(Scoreboard().cells)
    assert (sink.delivered, len(said)) == (0, 1)
    sink.close()


@pytest.mark.parametrize("epoch", [1 << 63, MOST])
def test_a_journal_of_an_impossible_epoch_is_moved_aside(tmp_path: Path, epoch: int) -> None:
    """Its successor's epoch would be one more, which eight bytes do not hold."""
    path, said = tmp_path / "a.out", list[str]()
    open_source(str(path), 103, 64 << 10).close()
    with path.open("r+b") as file:
        file.write(journalfile._pack_header(Header(SOURCE, epoch, 103, 64 << 10)))
    write_cell(path, 0, 1)
    source = open_source(str(path), 103, 64 << 10, said.append)
    assert 0 < source.epoch < 1 << 63
    assert len(said) == 1
    source.close()


@pytest.mark.parametrize(("start", "end"), [(MOST - 1, MOST), (1 << 63, (1 << 63) + 1), (0, 1 << 40), (5, 4)])
def test_no_forged_place_in_a_log_is_read(tmp_path: Path, start: int, end: int) -> None:
    """Read no gigabytes at once either: the container can make its log as long."""
    log = tmp_path / "log"
    log.write_bytes(b"line\n")
    os.truncate(log, 1 << 41)
    fd = os.open(log, os.O_RDONLY)
    assert body_at(fd, splitter(Framing.LINE, 1000), start, end, zlib.crc32(b"")) is None
    os.close(fd)


@pytest.mark.parametrize("seconds", [-1, (1 << 63) - 1, -(1 << 63)])
def test_a_time_of_birth_fits_its_place(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """A FUSE server says what it likes."""
    packed = linux._STATX.pack(linux._STATX_BTIME, 7, seconds, 5)

    class Library:
        """A C library whose kernel asks such a server."""

        @staticmethod
        def statx(_fd: int, _name: bytes, _flags: int, _mask: int, about: object) -> int:
            about.raw = packed  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(linux, "_libc", Library)
    inode, born = linux.birth(0, b"")
    assert inode == 7
    assert 0 <= born <= MOST


def test_a_file_with_another_inode_at_each_look_is_left_out(make: MakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FUSE server may say so; the agent asked again without end."""
    real, numbers = linux.birth, count(1 << 40)
    monkeypatch.setattr(linux, "birth", lambda fd, name: (next(numbers), 0) if name == b"app.log.1" else real(fd, name))
    life = make()
    life.append(b"old\n", to=life.directory / "app.log.1")
    life.append(b"one\n")
    life.start()
    life.kill()
    life.start()
    life.append(b"two\n")
    life.expect(b"one", b"two")


def test_a_copy_of_a_log_without_a_time_of_birth_is_skipped(make: MakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip it where the file system keeps no births: "just before its birth" was before 1970, and ended the agent."""
    real = linux.birth
    monkeypatch.setattr(linux, "birth", lambda *where: (real(*where)[0], 0))
    life = make()
    life.append(b"one\n")
    life.start()
    life.expect(b"one")
    life.kill()
    life.rotate("app.log.2")
    life.append(b"x" * 300 + b"\n")
    shutil.copyfile(life.log, life.directory / "app.log.1")
    life.start()
    life.expect(b"one", b"x" * 300)
    life.append(b"two\n")
    life.expect(b"one", b"x" * 300, b"two")
