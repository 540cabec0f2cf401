"""Keeps in a journal what makes the kernel's count (agents/counter.py) show, after a kill, what the agent had done.

Before each batch of calls, while nothing is in flight, one store of eight bytes says: "when the journal was at `seq`,
the kernel's count was `count`". After a kill the count has grown by what the batch had done. Both numbers are kept
modulo 2^24; no batch is that long. Nothing is noted for each message.

A source also keeps where in its ring the first message of the batch lands; the others follow it without a gap, and
the kernel kept their lengths. `life` names the counter: after a reboot, or if its pins were removed, the count is of
another life and says nothing. A kill then leaves the batch in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

from nsbridge.agents.counter import LENGTHS, Counts
from nsbridge.agents.journal.journalfile import VALUE, is_sealed, seal
from nsbridge.agents.journal.records import ALIGN, RECORD_SIZE
from nsbridge.agents.journal.sinkjournal import INTENT, PLACE, SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal

COUNT_AT, COUNT_LIFE, COUNT_SKIPS, LANDING = 40, 41, 42, 43  # cells of both kinds of journal
LONGEST = 47  # of a source: bytes of the longest message that it keeps, and 1 more; 0 if it keeps all that land
NO_LIFE = 1  # the life of no counter, where a place that the kernel puts messages into is noted without one
_BITS = 24
_MASK = (1 << _BITS) - 1


def _statement(seq: int, count: int) -> int:
    return seal((seq & _MASK) << _BITS | count & _MASK)


def _grown(now: int, before: int) -> int:
    """Return the difference of two numbers of which the second is known modulo 2^24; it may be negative."""
    difference = (now - before) & _MASK
    return difference - (_MASK + 1) if difference > _MASK >> 1 else difference


def behind(at: int, length: int) -> int:
    """Return the place behind a record at `at` whose body has that length."""
    return at + RECORD_SIZE + length + ALIGN - 1 & -ALIGN


class Recovered(NamedTuple):
    """The work that a killed agent had done beyond what its journal shows: for certain, and perhaps."""

    certain: int = 0
    doubtful: int = 0


class SentCount:
    """The statements of a sink that sends with one system call per message."""

    def __init__(self, journal: SinkJournal, counter: Counts) -> None:
        self.journal = journal
        self._cells = journal.cells
        self._counter = counter

    def recover(self) -> Recovered:
        """Bring the journal up to what the former agent had sent. To be called once, before anything is sent.

        `doubtful` messages after those may have been sent. The journal is left before them.
        """
        journal, cells = self.journal, self._cells
        result = Recovered()
        in_flight = max(0, cells[INTENT] - journal.handed)
        if in_flight and cells[COUNT_LIFE]:
            result = self._judge(in_flight)
            if result.certain:
                journal.sent(journal.handed + result.certain, journal.last_sender)
        if not result.doubtful:
            self.settled(journal.handed)
        return result

    def _judge(self, in_flight: int) -> Recovered:
        cells, statement = self._cells, self._cells[COUNT_AT]
        if cells[COUNT_LIFE] != seal(self._counter.life) or not is_sealed(statement):
            return Recovered(doubtful=in_flight)
        seq, count = (statement & VALUE) >> _BITS, statement & _MASK
        sent = _grown(seq + _grown(self._counter.sent, count), self.journal.handed)
        if sent > in_flight:
            return Recovered(doubtful=in_flight)  # another process got the agent's pid before the counter dropped it
        certain = max(0, sent)
        skipped = (self._counter.skips - (cells[COUNT_SKIPS] & VALUE)) & VALUE
        return Recovered(certain, min(in_flight - certain, skipped))

    def settled(self, upto: int) -> None:
        """Note that the doubt up to that seq is decided."""
        self.journal.hand(upto)
        self._cells[INTENT] = 0
        self._cells[COUNT_LIFE], self._cells[COUNT_SKIPS] = seal(self._counter.life), seal(self._counter.skips)

    def begin(self, last: int) -> None:
        """State where the journal and the count are, before messages up to seq `last` are sent."""
        self._cells[COUNT_AT] = _statement(self.journal.handed, self._counter.sent)
        self._cells[INTENT] = last


def forget_count(journal: SinkJournal) -> int:
    """Return how many messages a counted agent left in flight, all in doubt without the count; forget them."""
    cells = journal.cells
    doubtful = max(0, cells[INTENT] - journal.handed)
    cells[INTENT] = cells[PLACE] = cells[COUNT_LIFE] = 0
    return doubtful


class Landing:
    """Places in a source's ring, into which the kernel puts messages whose lengths are unknown before.

    The first is at `at`; `most` messages may land there and behind it, as long as they begin at most at `last`.
    """

    def __init__(self, journal: SourceJournal, counter: Counts, blank: int = 0, longest: int | None = None) -> None:
        """Take the type of a place in which nothing has landed: 0, or records.BLANK if 0 may be a type.

        A message that lands with more than `longest` bytes ends its batch, and is not kept.
        """
        self._journal = journal
        self._counter = counter
        self._blank = blank
        self._cells = journal.cells
        self._begins_at = 0  # the first place, in the ring
        self._begun = (-1, 0)  # for what: the last seq taken before, and the size
        self.at = self.last = self.most = 0
        self._cells[LANDING] = 0
        self._cells[LONGEST] = 0 if longest is None else longest + 1
        self._cells[COUNT_LIFE] = seal(counter.life)

    def begin(self, size: int) -> int:
        """Return the address of a msgbuf for up to `size` bytes, the first of a batch. Raises FullError."""
        journal = self._journal
        if self._begun == (journal.taken, size):
            return self.at  # nothing has landed there
        self._begun = (-1, 0)
        at, end, most = journal.reserve(size, self._blank)
        self._begins_at = at
        self._cells[LANDING] = seal(at)
        self._cells[COUNT_AT] = _statement(journal.taken, self._counter.received)
        self.at = journal.address + at
        self.last = journal.address + end - RECORD_SIZE - size
        self.most = min(most, LENGTHS)
        self._begun = (journal.taken, size)
        return self.at

    def forget(self) -> None:
        """Have the next `begin` state the count anew: a message was received that is not kept."""
        self._begun = (-1, 0)

    def clear(self, address: int) -> None:
        """Make a place behind the first one blank, before a message lands there. `address` is that of its msgbuf."""
        self._journal.set_type(address - self._journal.address, self._blank)

    def landed(self, lengths: Sequence[int]) -> int:
        """Publish the messages that have landed; return the last one's seq."""
        return self._journal.landed_in_a_row(self._begins_at, lengths)


def recover_landed(journal: SourceJournal, counter: Counts | None) -> Recovered:
    """Publish what had landed when the former agent was killed. Without the count it may be lost: then it is doubtful.

    To be called once, when the journal is opened.
    """
    try:
        return _recovered(journal, counter)
    finally:
        journal.cells[LANDING] = 0


def _recovered_without(journal: SourceJournal, at: int, life: int) -> Recovered:
    """Publish the message at a landing place if its record is whole: the kill came just before it was published."""
    length = journal.reader.length_at(at)
    if length is not None and (journal.reader.has_type(at) or life == seal(NO_LIFE)):
        journal.landed_in_a_row(at, (length,))
        return Recovered(1)
    return Recovered(doubtful=int(journal.reader.has_type(at)))


def _recovered(journal: SourceJournal, counter: Counts | None) -> Recovered:
    cells = journal.cells
    landing, statement, life = cells[LANDING], cells[COUNT_AT], cells[COUNT_LIFE]
    if not life or not landing or not is_sealed(landing) or not is_sealed(statement):
        return Recovered()
    at = landing & VALUE
    already = _grown(journal.taken, (statement & VALUE) >> _BITS)
    if counter is None or life != seal(counter.life):
        return Recovered() if already else _recovered_without(journal, at, life)
    grown = _grown(counter.received, statement & _MASK)
    if grown <= already:
        return Recovered()
    lengths = counter.lengths(min(grown, LENGTHS))
    first = reduce(behind, lengths[:already], at)
    end = reduce(behind, lengths[already:], first)
    if grown > LENGTHS or not journal.reader.holds(at, end):
        return Recovered(doubtful=grown - already)  # another process got the agent's pid before the counter dropped it
    found = list(lengths[already:])
    if found and 0 < cells[LONGEST] <= found[-1]:
        found.pop()  # it was dropped: a part of it has landed
    if found:
        journal.landed_in_a_row(first, found)
    return Recovered(len(found))
