"""Opens a source's journal: makes a missing one, moves a damaged one aside, copies one of another size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nsbridge.agents.journal.journalfile import (
    PATIENCE,
    SOURCE,
    DamagedError,
    Header,
    Report,
    create,
    move_aside,
    new_epoch,
    open_or_create,
    seal,
)
from nsbridge.agents.journal.records import RECORD
from nsbridge.agents.journal.sourcejournal import CONFIRMED, MESSAGES, RECORDS, RELEASED, TAKEN, SourceJournal
from nsbridge.agents.wire import Message


def open_source(
    path: str,
    entries: int,
    ring: int,
    report: Report = lambda _text: None,
    patience: float = PATIENCE,
    settle: Callable[[SourceJournal], None] = lambda _journal: None,
) -> SourceJournal:
    """Open the journal at `path`, made if it is missing. Another size is made by copying what is pending.

    `settle` is called before that, to take up what had landed. Raises OSError.
    """
    wanted = Header(SOURCE, new_epoch(), entries, ring)
    file = open_or_create(path, wanted, patience, report)
    try:
        journal = SourceJournal(file)
    except DamagedError as error:
        move_aside(path, error, report)
        file.close()
        return SourceJournal(create(path, wanted.after(file.header), patience))
    settle(journal)
    if (file.header.entries, file.header.ring) != (entries, ring):
        try:
            return _resized(path, journal, wanted, patience)
        finally:
            journal.close()
    return journal


def _resized(path: str, old: SourceJournal, wanted: Header, patience: float) -> SourceJournal:
    first = first_kept(old)
    kept = records(old, first)
    entries = max(wanted.entries, old.taken - first + 4)
    ring = max(wanted.ring, 2 * sum(len(message.body) + 2 * RECORD.size for message, _ in kept))
    header = wanted._replace(epoch=old.epoch, entries=entries, ring=ring)
    file = create(path, header, patience, publish=False)
    for cell in range(RELEASED, len(old.cells)):
        file.cells[cell] = old.cells[cell]
    file.cells[CONFIRMED] = file.cells[TAKEN] = seal(first - 1)
    journal = SourceJournal(file)
    for message, count in kept:
        journal.append(message, count)
    journal.confirm(old.confirmed)
    Path(f"{path}.new").rename(path)
    return journal


def first_kept(journal: SourceJournal) -> int:
    """Return the first seq whose record is still there.

    For notes, the records kept are some that are confirmed and not released, then those pending.

    A confirmed message's record is not: the next one may have taken its place.
    """
    first = journal.confirmed + 1
    has_room = journal.taken - journal.released < journal.reader.entries - 1
    keeps_notes = journal.cells[RECORDS] != MESSAGES and has_room
    with suppress(DamagedError):
        while keeps_notes and first - 1 > journal.released:
            journal.reader.check(first - 1)
            first -= 1
    return first


def records(journal: SourceJournal, first: int) -> list[tuple[Message, int]]:
    """Return the records of the seqs from `first` on, each with how many seqs it is for."""
    found, seq = [], first
    for count in journal.reader.repeats(first, journal.taken):
        found.append((journal.get(seq), count))
        seq += count
    return found
