"""The order in which a landing place is prepared: its type is zeroed BEFORE the index points to it (journal.py).

A kill is simulated by what it leaves: the mapped file's bytes, some from before an operation and some from after it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from nsbridge.agents.journal.journalfile import PAGE
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message

ENTRIES, RING = 8, 4096
RING_AT = PAGE + 8 * ENTRIES
OLD, LENGTH = Message(7, b"delivered long ago"), 18


def opened(path: Path) -> SourceJournal:
    return open_source(str(path), ENTRIES, RING, patience=0.0)


def after_a_kill(path: Path, head: bytes, ring: bytes) -> tuple[int, list[Message]]:
    """Return what a fresh agent finds: (1 if it recovered a message, all that is pending)."""
    path.write_bytes(head[:RING_AT] + ring[RING_AT:])
    fresh = opened(path)
    found = fresh.recovered, [fresh.get(seq) for seq in range(fresh.confirmed + 1, fresh.taken + 1)]
    fresh.close()
    return found


@pytest.fixture
def before_and_after(tmp_path: Path) -> tuple[bytes, bytes]:
    """Return the file before and after `land`, where a message lay that was taken, delivered and confirmed."""
    path = tmp_path / "running"
    running = opened(path)
    running.confirm(running.append(OLD))
    before = path.read_bytes()
    running.land([LENGTH])
    after = path.read_bytes()
    running.close()
    return before, after


def test_a_kill_before_the_index_is_written_recovers_nothing(
    tmp_path: Path, before_and_after: tuple[bytes, bytes]
) -> None:
    """The order as it is: first the ring, then the index. A kill may fall before, between and after."""
    before, after = before_and_after
    for head, ring in ((before, before), (before, after), (after, after)):
        assert after_a_kill(tmp_path / "killed", head, ring) == (0, [])


def test_the_other_order_would_recover_a_message_that_never_came(
    tmp_path: Path, before_and_after: tuple[bytes, bytes]
) -> None:
    """If the index pointed to a place whose old type is still there, an old message would be delivered again."""
    before, after = before_and_after
    assert after_a_kill(tmp_path / "killed", after, before) == (1, [OLD])


def test_a_kill_after_the_kernel_wrote_recovers_the_message(tmp_path: Path) -> None:
    """All of it, in the length that was announced; and only once."""
    path = tmp_path / "running"
    running = opened(path)
    running.confirm(running.append(OLD))
    (place,) = running.land([LENGTH])
    ctypes.memmove(place, (8).to_bytes(8, "little") + b"n" * LENGTH, 8 + LENGTH)  # as msgrcv does
    killed = path.read_bytes()
    running.close()
    assert after_a_kill(tmp_path / "killed", killed, killed) == (1, [Message(8, b"n" * LENGTH)])
    again = (tmp_path / "killed").read_bytes()
    assert after_a_kill(tmp_path / "killed", again, again) == (0, [Message(8, b"n" * LENGTH)])


def test_a_publication_leaves_no_landing_place_behind(tmp_path: Path) -> None:
    """The entry after the published one is a stale one of a lap before: it must not look like a place."""
    path = tmp_path / "running"
    running = opened(path)
    for _ in range(3 * ENTRIES):
        running.confirm(running.append(OLD))
        left = path.read_bytes()
        assert after_a_kill(tmp_path / "killed", left, left) == (0, [])
    running.close()
