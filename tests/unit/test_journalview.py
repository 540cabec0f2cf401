"""`nsbridge journal FILE`: journals made by the real code, printed by the real command."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import journalreader
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.log.notes import Note
from nsbridge.agents.endpoints.spool import notes as spool_notes
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal import journalfile, sinkjournal
from nsbridge.agents.journal import sourcejournal as journal
from nsbridge.agents.journal.journalfile import PAGE
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal, open_sink
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.wire import Message
from nsbridge.supervisor.cli import nsbridge as cli

_ENTRIES = 103  # of a window of 100 messages
_RING = 1 << 16


@pytest.fixture
def source(tmp_path: Path) -> Any:
    made = open_source(str(tmp_path / "a.out"), _ENTRIES, _RING)
    yield made
    made.close()


@pytest.fixture
def sink(tmp_path: Path) -> Any:
    made = open_sink(str(tmp_path / "a.in"))
    yield made
    made.close()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["journal", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def as_json(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Any:
    code, out, err = printed(capsys, str(path), "--json", *words)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_source_shows_what_is_pending(
    tmp_path: Path, source: SourceJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    """While its agent holds the lock, which is neither waited for nor taken."""
    for number in range(5):
        source.append(Message(number, b"%d\n\x1b[2J\xff" % number))
    source.confirm(2)
    shown = as_json(capsys, tmp_path / "a.out")
    assert shown["messages"] == [
        {"seq": seq, "type": seq - 1, "bytes": 7, "shown": f"{seq - 1}\\n\\x1b[2J\\xff"} for seq in (3, 4, 5)
    ]
    expected = {
        "schema": 1,
        "file": str(tmp_path / "a.out"),
        "version": journalfile.VERSION,
        "kind": "source",
        "epoch": f"{source.epoch:016x}",
        "window": {"messages": 100, "ring_bytes": _RING},
        "taken": 5,
        "confirmed": 2,
        "pending": 3,
        "pending_bytes": 21,
        "omitted": 0,
    }
    assert {key: shown[key] for key in expected} == expected
    _, out, _ = printed(capsys, str(tmp_path / "a.out"))
    assert out.splitlines()[-4:] == [
        "SEQ  TYPE  BYTES  MESSAGE",
        "3    2     7      2\\n\\x1b[2J\\xff",
        "4    3     7      3\\n\\x1b[2J\\xff",
        "5    4     7      4\\n\\x1b[2J\\xff",
    ]


def test_what_is_printed_is_bounded_unless_all_is_asked_for(
    tmp_path: Path, source: SourceJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(50):
        source.append(Message(1, bytes([number]) * 500))
    shown = as_json(capsys, tmp_path / "a.out")
    assert ([message["seq"] for message in shown["messages"]], shown["omitted"]) == (list(range(1, 21)), 30)
    assert shown["pending_bytes"] == 25_000
    assert max(len(message["shown"]) for message in shown["messages"]) < 300
    assert printed(capsys, str(tmp_path / "a.out"))[1].endswith("and 30 more (--all shows them)\n")
    shown = as_json(capsys, tmp_path / "a.out", "--all")
    assert (len(shown["messages"]), shown["omitted"]) == (50, 0)


def test_a_spool_s_notes_show_the_file_and_its_size(
    tmp_path: Path, source: SourceJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that was kept whole among them is shown itself."""
    store = NoteStore(source, lambda _note, _seq: None)
    source.cells[journal.RECORDS] = SpoolEndpoint.notes
    store.note(0, (b"body",), struct.pack("<QqQ", 5, 6, 4) + "Grüße \n".encode() + b"\xff")
    store.append(Message(0, b"kept"))
    shown = as_json(capsys, tmp_path / "a.out")
    assert shown["messages"] == [
        {"seq": 1, "type": 0, "bytes": 4, "shown": "file Grüße \n\\xff"},
        {"seq": 2, "type": 0, "bytes": 4, "shown": "kept"},
    ]
    assert "file Grüße \\n\\xff" in printed(capsys, str(tmp_path / "a.out"))[1]
    assert spool_notes.described(store.note_of(1), 1)[0] == 4


def test_a_log_s_notes_show_where_the_message_is(
    tmp_path: Path, source: SourceJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note of nothing but a position, and one that is no such note, are shown too."""
    store = NoteStore(source, lambda _note, _seq: None)
    source.cells[journal.RECORDS] = LogEndpoint.notes
    store.note(0, (b"body", b"longer"), Note(99, 100, 1, (5, 7), (1, 2)).pack())
    store.note(-1, (b"",), Note(99, 112, 3, (), ()).pack())
    store.note(0, (b"body",), b"nonsense")
    shown = as_json(capsys, tmp_path / "a.out")
    assert [(message["bytes"], message["shown"]) for message in shown["messages"]] == [
        (5, "bytes 100 to 105 of inode 99"),
        (7, "bytes 105 to 112 of inode 99"),
        (0, "from byte 112 of inode 99"),
        (8, "nonsense"),
    ]


def test_a_sink_shows_how_far_it_is(tmp_path: Path, sink: SinkJournal, capsys: pytest.CaptureFixture[str]) -> None:
    shown = as_json(capsys, tmp_path / "a.in")
    assert (shown["kind"], shown["epoch"], shown["begun"], shown["handed"]) == ("sink", None, None, 0)
    sink.adopt(1_700_000_000_000_000_000, 7)
    sink.hand(12)
    sink.intent = 13
    sink.cells[sinkjournal.DEAD], sink.cells[sinkjournal.NOT_DELIVERED], sink.cells[sinkjournal.IN_DOUBT] = 2, 2, 1
    shown = as_json(capsys, tmp_path / "a.in")
    assert shown == {
        "schema": 1,
        "version": journalfile.VERSION,
        "kind": "sink",
        "epoch": "17979cfe362a0000",
        "begun": "2023-11-14T22:13:20Z",
        "handed": 12,
        "intended": 13,
        "delivered": 3,
        "bytes": 0,
        "repeats_dropped": 0,
        "in_doubt": 1,
        "dead": 2,
        "file": str(tmp_path / "a.in"),
    }
    lines = printed(capsys, str(tmp_path / "a.in"))[1].splitlines()
    assert "handed           12" in lines
    assert "dead             2" in lines


def _flipped(at: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_bytes(b""), "is no nsbridge journal"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" * 1000), "is no nsbridge journal"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged: it is no nsbridge journal"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is damaged: it has 9000 bytes, and should have"),
        (_flipped(20), "is damaged: its header has a wrong checksum"),
        (_flipped(130), "is damaged: its numbers have a wrong checksum"),
        (_flipped(PAGE + 8 * 2 + 4), "is damaged: message 2 is outside the ring"),
        (_flipped(PAGE + 8 * _ENTRIES + 20), "is damaged: message 1 has a wrong checksum"),
        (lambda path: path.unlink(), "cannot be read: No such file or directory; journals are STATE_DIR/"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    tmp_path: Path, damage: Callable[[Path], None], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.out"
    made = open_source(str(path), _ENTRIES, _RING)
    for _ in range(3):
        made.append(Message(1, b"hello"))
    made.close()
    damage(path)
    before = path.read_bytes() if path.exists() else None
    code, out, err = printed(capsys, str(path))
    assert (code, out) == (1, "")
    assert err.startswith(f"nsbridge: {path} {complaint}")
    assert err.count("\n") == 1
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_newer_version_is_named_and_so_is_what_is_known(
    tmp_path: Path, sink: SinkJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sink.handed == 0
    with (tmp_path / "a.in").open("r+b") as file:
        header = bytearray(file.read(48))
        header[8:12] = struct.pack("<I", 9)
        file.seek(0)
        file.write(header + struct.pack("<I", zlib.crc32(header)))
    code, out, err = printed(capsys, str(tmp_path / "a.in"))
    assert (code, out) == (1, "")
    assert err == (
        f"nsbridge: {tmp_path}/a.in cannot be read: it has version 9, "
        f"and this nsbridge knows up to {journalfile.VERSION}; use the nsbridge that wrote it\n"
    )


def test_neither_a_fifo_nor_a_directory_holds_it_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        code, out, err = printed(capsys, str(path))
        assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_journal_that_is_being_written_is_never_called_damaged(tmp_path: Path) -> None:
    """A thread takes and confirms as fast as it can while the journal is read again and again."""
    path = tmp_path / "a.out"
    writer = (
        "import sys\n"
        "from nsbridge.agents.journal.opensource import open_source\n"
        "from nsbridge.agents.wire import Message\n"
        f"journal = open_source(sys.argv[1], {_ENTRIES}, 4096)\n"
        "print('begun', flush=True)\n"
        "while True:\n"
        "    seq = journal.append(Message(journal.taken + 1, b'%d ' % (journal.taken + 1) * (journal.taken % 50)))\n"
        "    if journal.taken - journal.confirmed > 3:\n"
        "        journal.confirm(seq - 2)\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            looks: list[dict[str, object]] = []
            deadline = time.monotonic() + 60
            while len({look["taken"] for look in looks}) < 100:
                assert time.monotonic() < deadline, "the writer does not get on"
                looks.append(journalreader.read(str(path), None))
            with path.open("rb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            process.kill()
    numbers = [int(str(look["taken"])) for look in looks]
    assert numbers == sorted(numbers)
    for look in looks:
        messages = look["messages"]
        assert isinstance(messages, list)
        assert [message["type"] for message in messages] == [message["seq"] for message in messages]
