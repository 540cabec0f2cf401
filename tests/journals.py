"""Journals in tests: how they are opened, and what a killed process leaves of them.

`states_of_a_kill` gives every state of the files that a SIGKILL during an operation can leave. The operation runs once,
traced opcode by opcode; whenever the files' bytes have changed, they are kept. One opcode can be a call that writes
more than a word (a slice of bytes), and the kill can fall inside of it: so between two states there are others, in
which only the first or only the last of the words that changed have. A word of eight aligned bytes is never torn.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nsbridge.agents.journal import journalfile, sinkjournal
from nsbridge.agents.journal import sourcejournal as journal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message

Files = dict[tuple[str, int], bytes]  # by name and inode: a rename changes what a name stands for, and tears nothing
ENTRIES, RING = 8, 1024
ONE, TWO, THREE = Message(7, b"one"), Message(1, b""), Message((1 << 63) - 1, bytes(range(100)))

_WATCHED = (journal.__file__, journalfile.__file__)


def read_all(directory: Path) -> Files:
    """Read every file of the directory."""
    found = {}
    for entry in os.scandir(directory):
        with open(entry.path, "rb") as file:
            found[entry.name, entry.inode()] = file.read()
    return found


def write_all(directory: Path, files: Files) -> None:
    """Make the directory have these files and no other: as new files, so that none is locked or mapped."""
    for name in os.listdir(directory):
        (directory / name).unlink()
    for (name, _), data in files.items():
        (directory / name).write_bytes(data)


def states_of_a_kill(look: Callable[[], Files], operation: Callable[[], object]) -> list[Files]:
    """Run the operation; every state that `look` can have found if a kill had fallen somewhere in it, in order."""
    states = [look()]

    def trace(frame: FrameType, _event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in _WATCHED:
            return None
        frame.f_trace_opcodes = True
        now = look()
        if now != states[-1]:
            states.extend(_torn(states[-1], now))
            states.append(now)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    finally:
        sys.settrace(before)
    if (now := look()) != states[-1]:
        states.extend(_torn(states[-1], now))
        states.append(now)
    return states


def _torn(before: Files, after: Files) -> list[Files]:
    """Return the files with the first half of the words that differ, and with the last half."""
    between = []
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        if len(old) != len(new):
            continue
        words = [at for at in range(0, len(old), 8) if old[at : at + 8] != new[at : at + 8]]
        for some in (words[: len(words) // 2], words[len(words) // 2 :]):
            if 0 < len(some) < len(words):
                mixed = bytearray(old)
                for at in some:
                    mixed[at : at + 8] = new[at : at + 8]
                between.append({**before, key: bytes(mixed)})
    return between


def receive_into(address: int, mtype: int, body: bytes) -> None:
    """Do as the kernel does in msgrcv: the type first, then the body."""
    ctypes.memmove(address, struct.pack("<q", mtype), 8)
    ctypes.memmove(address + 8, body, len(body))


def source(path: Path, entries: int = ENTRIES, ring: int = RING, said: list[str] | None = None) -> SourceJournal:
    """Open a source's."""
    return open_source(str(path), entries, ring, hear(said), patience=0)


def sink(path: Path, said: list[str] | None = None) -> SinkJournal:
    """Return the same for a sink's journal."""
    return sinkjournal.open_sink(str(path), hear(said), patience=0)


def hear(said: list[str] | None) -> Callable[[str], None]:
    """Return a `report` function: it appends to the given list, and fails the test without one."""

    def report(text: str) -> None:
        assert said is not None, f"reported: {text}"
        said.append(text)

    return report


def content(opened: SourceJournal) -> tuple[int, int, list[Message]]:
    """Return all that matters."""
    pending = [opened.get(seq) for seq in range(opened.confirmed + 1, opened.taken + 1)]
    return opened.epoch, opened.confirmed, pending


def used(path: Path) -> bytes:
    """Return the bytes of a closed journal with confirmed and pending messages that has wrapped around its index."""
    opened = source(path)
    for number in range(ENTRIES + 3):
        opened.confirm(opened.append(Message(1, b"%d" % number)))
    for message in (ONE, TWO, THREE):
        opened.append(message)
    opened.close()
    return path.read_bytes()


def aside(path: Path) -> list[Path]:
    """Return journals that were moved aside."""
    return [file for file in path.parent.iterdir() if ".damaged-" in file.name]


def was_moved_aside(path: Path, damaged: bytes, said: list[str]) -> None:
    """Assert that one line reported the journal and its new place, and that nothing of it was changed."""
    (kept,) = aside(path)
    assert kept.read_bytes() == damaged
    (line,) = said
    assert str(path) in line
    assert str(kept) in line
    assert "damaged" in line
    assert "\n" not in line
