"""Journals and sink journals that a hostile agent has written: true checksums, false numbers.

The kind: a size, a count or a length out of a file that an agent may write, used before it is checked. Readers are the
successor (before it joins a namespace), the supervisor (status, dead retry) and `nsbridge journal`.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import journalreader
from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.journal import journalfile, sinkjournal, state
from nsbridge.agents.journal import sourcejournal as journal
from nsbridge.agents.journal.journalfile import PAGE, SINK, SOURCE, Header, LeftAloneError, TooLargeError, seal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.records import RECORD, checksum
from nsbridge.agents.journal.sinkjournal import open_sink
from nsbridge.agents.wire import Message
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import MAX_MESSAGE, AgentConfig, Container
from nsbridge.supervisor.containers import engines
from tests.child import in_child

ENTRIES, RING = 103, 64 << 10
GROWTH = 64 << 10  # KiB that a process may grow in reading one
QUICK = 20.0  # seconds for what takes a fraction of one


def forge(path: Path, entries: int, ring: int, taken: int, length: int | None = None) -> None:
    """Make a source journal: every second pending message is one record of that length, the others are empty.

    The file is a hole but for what is written here.
    """
    with path.open("wb") as file:
        file.truncate(PAGE + 8 * entries + ring)
        file.write(journalfile._pack_header(Header(SOURCE, 5, entries, ring)))
        for cell, value in ((journal.CONFIRMED, 0), (journal.TAKEN, taken), (journal.RELEASED, 0)):
            file.seek(journalfile.CELLS.start + 8 * cell)
            file.write(struct.pack("<Q", seal(value)))
        if length is None:
            return
        places = (PAGE + 8 * entries, PAGE + 8 * entries + RECORD.size + (length + 7 & -8))
        for start, size in zip(places, (length, 0), strict=True):
            file.seek(start)
            file.write(RECORD.pack(size, checksum(1, bytes(size)), 1))
        for seq in range(1, taken + 1):
            file.seek(PAGE + 8 * (seq % entries))
            file.write(struct.pack("<Q", seal(places[seq % 2])))


def bounded(work: Any) -> Any:
    """Do it in a child, which neither grows nor takes long; what it returns or why it failed."""

    def main() -> object:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            result = work()
        except (NsbridgeError, LeftAloneError) as error:
            result = f"{type(error).__name__}: {error}"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < GROWTH, f"{grown} KiB more"
        assert time.monotonic() - began < QUICK
        return result

    return in_child(main)


@pytest.mark.parametrize(("entries", "ring"), [(1 << 27, RING), (ENTRIES, 1 << 40), (1 << 30, 1 << 40)])
def test_successor_maps_no_more_than_its_configuration_may_need(tmp_path: Path, entries: int, ring: int) -> None:
    """It is FATAL with what to do: a journal may be a legal one of a window that was far larger. Nothing is lost."""
    path = tmp_path / "a.out"
    forge(path, entries, ring, 1)
    said = bounded(lambda: str(open_source(str(path), ENTRIES, RING)))
    assert said.startswith("TooLargeError: ")
    assert "is left alone" in said
    assert "set it back until all is handed over" in said
    assert path.stat().st_size == PAGE + 8 * entries + ring


def test_journal_of_a_larger_window_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.out"
    made = open_source(str(path), 50_003, 8 << 20)
    made.append(Message(1, b"kept"))
    made.close()
    again = open_source(str(path), ENTRIES, RING)
    assert again.get(1) == Message(1, b"kept")
    again.close()


def test_configured_size_has_no_limit(tmp_path: Path) -> None:
    wanted = Header(SOURCE, 1, 2 * journalfile.MOST_ENTRIES, 2 * journalfile.MOST_RING)
    journalfile.check_size(wanted, wanted)
    with pytest.raises(TooLargeError):
        journalfile.check_size(wanted, wanted._replace(entries=5))
    with pytest.raises(TooLargeError):
        journalfile.check_size(wanted, wanted._replace(ring=5))


def test_successor_checks_no_record_again_and_again(tmp_path: Path) -> None:
    """All messages in one record of 16 MB: their sum is more than the ring holds, so it is damaged."""
    path = tmp_path / "a.out"
    forge(path, 100_003, 17 << 20, 100_000, 16 << 20)
    reported: list[str] = []

    def take_over() -> list[str]:
        open_source(str(path), ENTRIES, RING, reported.append).close()
        return reported

    (said,) = bounded(take_over)
    assert "more than its ring holds" in said


def test_record_longer_than_any_message_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.out"
    with path.open("wb") as file:
        file.truncate(PAGE + 8 * ENTRIES + (200 << 20))
    forge_long(path)
    reported: list[str] = []
    open_source(str(path), ENTRIES, RING, reported.append).close()
    assert "which no message has" in reported[0]


def forge_long(path: Path) -> None:
    """Write one record whose length is beyond MAX_MESSAGE, into a file of that size."""
    forge(path, ENTRIES, 200 << 20, 1)
    with path.open("r+b") as file:
        file.seek(PAGE + 8)
        file.write(struct.pack("<Q", seal(PAGE + 8 * ENTRIES)))
        file.seek(PAGE + 8 * ENTRIES)
        file.write(RECORD.pack(MAX_MESSAGE + 1, 0, 1))


def test_sink_journal_with_a_ring_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.in"
    with path.open("wb") as file:
        file.truncate(PAGE + (1 << 40))
        file.write(journalfile._pack_header(Header(SINK, 0, 0, 1 << 40)))
    reported: list[str] = []
    bounded(lambda: open_sink(str(path), reported.append).close())
    open_sink(str(path), reported.append).close()


# -- what the supervisor and a person read


@pytest.mark.parametrize("length", [0, 1, 100, 128, 447, 448, PAGE - 1])
def test_cut_sink_journal_is_no_bug_of_the_supervisor(tmp_path: Path, length: int) -> None:
    """The agent has its descriptor, and may have made it shorter."""
    path = tmp_path / "a.in"
    open_sink(str(path)).close()
    os.truncate(path, length)
    assert journalreader.handed(str(path)) is None
    with pytest.raises(NsbridgeError, match=r"is no nsbridge journal|is damaged"):
        journalreader.read(str(path), None)


def test_viewer_reads_a_journal_of_many_entries_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "a.out"
    forge(path, 1 << 30, RING, (1 << 30) - 1)
    assert "is outside the ring" in bounded(lambda: journalreader.read(str(path), None))


def test_viewer_counts_what_it_does_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.out"
    made = open_source(str(path), 1003, 1 << 20)
    for number in range(900):
        made.append(Message(1, b"%d" % number))
    made.close()
    monkeypatch.setattr(journalreader, "MOST_LISTED", 100)
    facts = journalreader.read(str(path), 5)
    assert (facts["pending"], facts["confirmed"], facts["omitted"]) == (900, 0, 895)


def test_viewer_reads_long_messages_in_little_memory(tmp_path: Path) -> None:
    """Twenty of 60 MB each that share a hole, then one that is longer than any message."""
    path = tmp_path / "a.out"
    forge(path, ENTRIES, 70 << 20, 40, 60 << 20)
    facts = bounded(lambda: journalreader.read(str(path), None))
    assert (facts["pending"], facts["pending_bytes"]) == (40, 20 * (60 << 20))
    forge_long(path)
    assert "which cannot be" in bounded(lambda: journalreader.read(str(path), None))


# -- what an agent can make of its files


def test_agent_cannot_make_its_journal_longer(tmp_path: Path) -> None:
    """EFBIG, and no signal that kills. A log that an agent appends to may have any length."""
    made = open_source(str(tmp_path / "a.out"), ENTRIES, RING)
    sink = sinkjournal.open_sink(str(tmp_path / "a.in"))
    opened = state.AgentFiles(made, sink, -1, -1, -1)

    def grow(endpoint: Any) -> list[str]:
        state.bound_files(AgentConfig("r:a", Container(engines.host.KIND, ""), endpoint))
        outcomes = []
        for fd in (opened.source_fd, opened.sink_fd):
            for way in (
                lambda fd: os.ftruncate(fd, 1 << 30),
                lambda fd: os.pwrite(fd, b"x", 1 << 30),
                lambda fd: os.posix_fallocate(fd, 1 << 30, 1),
            ):
                try:
                    way(fd)
                    outcomes.append("done")
                except OSError as error:
                    outcomes.append(errno.errorcode[error.errno or 0])
        os.ftruncate(opened.sink_fd, MAX_MESSAGE)  # what a dead letter may have
        return outcomes

    assert in_child(lambda: grow(FileEndpoint(out="/a", in_="/b"))) == ["EFBIG"] * 6
    assert in_child(lambda: grow(LogEndpoint(out="/a"))) == ["EFBIG"] * 6
    assert in_child(lambda: grow(LogEndpoint(out="/a", in_="/b"))) == ["done"] * 6
    made.close()
    sink.close()


def test_bytes_behind_the_longest_journal_are_not_kept(tmp_path: Path) -> None:
    """An agent that appends to a log has no RLIMIT_FSIZE, and it holds its journal's descriptor."""
    path, said = tmp_path / "a.in", list[str]()
    open_sink(str(path)).close()
    os.truncate(path, 1 << 40)
    open_sink(str(path), said.append).close()
    (kept,) = tmp_path.glob("*.damaged-*")
    assert (path.stat().st_size, kept.stat().st_size) == (PAGE, PAGE)
    assert "had 1099511627776 bytes: cut to 4096" in said[0]


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(10)


@pytest.mark.parametrize("kind", ["in", "out"])
def test_damaged_journals_take_a_bounded_part_of_the_disk(tmp_path: Path, kind: str) -> None:
    """Each life of a compromised agent can damage its journal: neither their number nor their size is without limit."""
    path = tmp_path / f"a.{kind}"
    for life in range(10):
        path.write_bytes(b"nonsense %d" % life)
        os.truncate(path, 1 << 30)
        made = open_source(str(path), ENTRIES, RING) if kind == "out" else open_sink(str(path))
        made.close()
    kept = list(tmp_path.glob("*.damaged-*"))
    assert sorted(map(_begin, kept)) == [b"nonsense %d" % life for life in (0, 1, 2, 9)]
    assert max(one.stat().st_size for one in kept) <= (300 << 20 if kind == "out" else PAGE)
