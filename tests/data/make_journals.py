"""Makes tests/data/journals with the code of commit 41b66b5, for tests/unit/test_upgrade.py.

    git worktree add /tmp/old 41b66b5
    PYTHONPATH=/tmp/old/.typecheck python tests/data/make_journals.py tests/data/journals

Each kind of endpoint has a source with three messages taken and one confirmed, and a sink that has handed over two.
Each cell that belongs to a kind has its number as its value, or what CELLS of test_upgrade.py says.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path
from typing import Any

from nsbridge.agents import journal, sinkjournal, state
from nsbridge.agents.endpoints import log_notes, log_sink, log_tail, spool_notes
from nsbridge.agents.store import NoteStore
from nsbridge.agents.wire import Message
from nsbridge.config import schema as old

schema: Any = old
WINDOW = old.Window(messages=4, bytes=1000)
PATHS = {"out": "/srv/data/out", "in_": "/srv/data/in", "max_message": 1000}
ENDPOINTS = {
    "spool": schema.SpoolEndpoint(**PATHS),
    "log": schema.LogEndpoint(**PATHS),
    "file": schema.FileEndpoint(**PATHS),
    "queue": schema.QueueEndpoint(out=schema.QueueOut(1), in_=schema.QueueIn(2), max_message=1000),
}
BODIES = (b"confirmed", b"second", b"third \xff")
SINKS = {
    "spool": (sinkjournal.PLACE, sinkjournal.HIDDEN, sinkjournal.NAMED, sinkjournal.NAMED_FOR),
    "log": (),
    "file": (),
    "queue": (
        sinkjournal.PLACE,
        sinkjournal.SENDERS,
        sinkjournal.SENDERS + 1,
        sinkjournal.BASELINE,
        sinkjournal.PREDECESSOR,
        sinkjournal.LATEST,
        sinkjournal.LARGEST,
        sinkjournal.LARGEST_OF,
    ),
}


def take(kind: str, source: Any) -> None:
    """Take the messages as the kind's source does."""
    if kind in ("file", "queue"):
        for number, body in enumerate(BODIES, 1):
            if kind == "file":
                source.cells[journal.NOTE + (source.taken + 1) % 2] = 1000 + number
            source.append(Message(number if kind == "queue" else 0, body))
        return
    source.cells[journal.RECORDS] = journal.SPOOL_NOTES if kind == "spool" else journal.LOG_NOTES
    store, positions = NoteStore(source), log_tail.Positions(source)
    at = 0
    for number, body in enumerate(BODIES, 1):
        note = spool_notes.pack(spool_notes.Identity(number, 7, len(body)), b"name %d" % number)
        if kind == "log":
            end = at + len(body) + 1
            note = log_notes.Note(99, at, number, (end - at,), (8,)).pack()
            positions.miss(1, 10)
            positions.prepare(log_tail.Position(99, 5, at, end, 6, 77, 88))
            at = end
        store.note(0, (body,), note)


def hand(kind: str, sink: Any, epoch: int) -> None:
    """Hand over two messages as the kind's sink does."""
    sink.adopt(epoch, 0)
    sink.hand(2)
    sink.intent = 3
    sink.cells[sinkjournal.BYTES] = 20
    for cell in SINKS[kind]:
        sink.cells[cell] = cell
    if kind == "log":
        log_sink.Intents(sink).note(log_sink.Intent(epoch, 3, 3, 123, 99))


def main(directory: Path) -> None:
    """Make them."""
    assert Path(str(journal.__file__)).name == "journal.py", "this is not the code of 41b66b5"
    for kind, endpoint in ENDPOINTS.items():
        with tempfile.TemporaryDirectory() as top:
            agent = old.AgentConfig(f"r:{kind}", schema.Container(schema.ContainerKind.HOST, ""), endpoint)
            files = state.open_state(top, agent, WINDOW, print)
            take(kind, files.source)
            files.source.confirm(1)
            hand(kind, files.sink, files.source.epoch)
            for side in ("out", "in"):
                found = state.journal_path(top, agent.name, side).read_bytes()
                (directory / f"{kind}.{side}.gz").write_bytes(gzip.compress(found, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
