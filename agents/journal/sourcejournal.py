"""A source's journal: what was taken and is not yet confirmed. records.py has the crash rules of all journals."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from zlib import crc32

from nsbridge.agents import linux
from nsbridge.agents.journal.journalfile import (
    CELL_COUNT,
    CHECK,
    PAGE,
    VALUE,
    DamagedError,
    FullError,
    JournalFile,
    is_sealed,
    seal,
)
from nsbridge.agents.journal.recordreader import RecordReader
from nsbridge.agents.journal.records import (
    ALIGN,
    LENGTH,
    NOWHERE,
    RECORD,
    RECORD_SIZE,
    TYPE_AT,
    checksum,
    checksum_of_none,
)
from nsbridge.agents.wire import MAX_PACKET, Message, Run

_RUN = 1024  # messages

# Cells of a source
CONFIRMED, TAKEN, RELEASED = 0, 1, 2
# What the source could not read, files and bytes, in two slots by the parity of TAKEN; kept as long as the journal.
MISSED, MISSED_SLOT = 18, 4
WHERE = 30  # from what kind of endpoint, and which place, the messages were taken (belonging.py)
OLDEST = 39  # since when the oldest message has been pending (agents/journal/pending.py); 0 if that was never noted
RECORDS = 31  # what the records are: MESSAGES, or the number of a kind's notes (Endpoint.notes)
MESSAGES = 0
REFUSED = 40  # files that the source refused, in the life of the journal
# These belong to the kind of the endpoint: each kind names its own, and they are wiped when another kind or place takes
# over. The range at the end has never been used: new kinds take theirs there.
KIND_CELLS = (*range(3, 18), 20, 21, *range(24, 30), *range(44, CELL_COUNT))


class SourceJournal:
    """The messages taken and not yet confirmed: a ring of records, found by seq through an index. A SourceStore."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._entries = file.header.entries
        self._index = file.view[PAGE : PAGE + 8 * self._entries].cast("Q")
        self._words = file.view[: file.size & -8].cast("Q")
        self._ring_at = PAGE + 8 * self._entries
        self._end = self._ring_at + file.header.ring
        self.reader = RecordReader(file, self._index)
        self._allocated = 0
        self._cells = file.cells
        self.keeps_fresh = True  # False if its user has what was appended last in memory itself
        self._holds = False
        self._fresh: Run | None = None  # what was taken last, if it is in memory; nothing of it is confirmed
        self._places: list[int] = []  # where messages may land, or one is being appended: the next seqs
        self._next_at = self._ring_at  # where the last record ends that was published
        self.fd = file.fd
        self.waiting_fd = -1  # of the list of names that wait (waitinglist.py)
        self.address = linux.address_of(file.view) + TYPE_AT  # of a place's msgbuf, if the place were 0
        self.epoch = file.header.epoch
        self.confirmed = file.cells[CONFIRMED] & VALUE  # the last seq that the sink has confirmed
        self.taken = file.cells[TAKEN] & VALUE  # the last seq that was given out
        self._totals = array("Q", bytes(8 * self._entries))  # bytes of all records up to each, by seq
        self._total = self.pending_bytes = 0
        self.recovered = 0  # messages that had landed and whose taking was not published
        try:
            self._check()
        except DamagedError:
            self._release()
            raise

    @property
    def released(self) -> int:
        """Return the last seq whose file was released, for a source that keeps notes; at most `confirmed`."""
        return self._file.cells[RELEASED] & VALUE

    @released.setter
    def released(self, seq: int) -> None:
        self._file.cells[RELEASED] = seal(seq)

    def hold(self) -> None:
        """Keep each record until it is released, and not only until it is confirmed."""
        first = self.confirmed + 1
        with suppress(DamagedError):  # a compromised agent may have written it
            while first - 1 > max(self.released, self.taken + 2 - self._entries):
                self.reader.check(first - 1)
                first -= 1
        self.released = first - 1
        if first <= self.taken == self.confirmed:  # nothing pending has shown where the last record ends
            at = self._index[self.taken % self._entries] & VALUE
            self._next_at = at + RECORD_SIZE + self.reader.check(self.taken) + ALIGN - 1 & -ALIGN
        self._holds = True

    def room(self) -> int:
        """Return how many messages may be appended after `hold`, if their bytes have room in the ring."""
        return self._entries - 2 - self.taken + self.released

    @property
    def cells(self) -> memoryview[int]:
        """Return the cells, in which an endpoint keeps values of its own."""
        return self._file.cells

    def append(self, message: Message, count: int = 1) -> int:
        """Keep the message under `count` seqs, all of which it describes; return the last. Raises FullError."""
        mtype, body = message
        first, last, index, entries = self.taken + 1, self.taken + count, self._index, self._entries
        data, length = self._file.map, len(body)
        at = self._place(last, (length,))[0]
        index[first % entries] = index[(last + 1) % entries] = NOWHERE  # no places, which a type would make messages
        RECORD.pack_into(data, at, length, checksum(mtype, body), mtype)
        start = at + RECORD_SIZE
        data[start : start + length] = body
        self._total += length
        self.pending_bytes += length
        entry = seal(at)
        if count > 1:
            self._assign(self._totals, first + 1, array("Q", (self._total,)) * (count - 1))
            self._assign(index, first + 1, array("Q", (entry,)) * (count - 1))
        self._totals[first % entries] = self._total
        index[first % entries] = entry
        self._publish(last, start + length)
        if self.keeps_fresh and count == 1 and length <= MAX_PACKET:
            self._fresh = Run(self.epoch, last, mtype, (body,), (), length)
        return last

    def land(self, lengths: Sequence[int]) -> list[int]:
        """Prepare the places where msgrcv puts messages of exactly these lengths; returns the addresses of msgbufs.

        There may be fewer than were asked for. Until `landed`, a type that is not 0 there proves that the message left
        the queue; they must land in this order. Raises FullError if there is room for none.
        """
        words, index, entries, seq = self._words, self._index, self._entries, self.taken + 1
        places = self._place(seq, lengths)
        index[seq % entries] = index[(seq + len(places)) % entries] = NOWHERE
        addresses, start = [], self.address
        for at, length in zip(places, lengths):  # noqa: B905  (there may be fewer places)
            word = at >> 3
            words[word + 1] = 0
            words[word] = length | (length ^ LENGTH) << 32
            addresses.append(start + at)
        seq += len(places)
        for at in reversed(places):
            seq -= 1
            index[seq % entries] = seal(at)
        return addresses

    def landed(self, lengths: Sequence[int]) -> int:
        """Note that messages of these lengths have come to the first landing places; return the seq of the last."""
        last, end = self._complete(self._places, lengths)
        self._publish(last, end)
        return last

    def _complete(self, places: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
        """Write the records' lengths and checksums; return the last one's seq and where it ends."""
        words, view, totals, entries = self._words, self._file.view, self._totals, self._entries
        last, total, end = self.taken, self._total, self._next_at
        for at, length in zip(places, lengths):  # noqa: B905  (more may be expected)
            word, start = at >> 3, at + RECORD_SIZE
            end = start + length
            words[word] = length | checksum(words[word + 1], view[start:end]) << 32
            last += 1
            total += length
            totals[last % entries] = total
        self.pending_bytes += total - self._total
        self._total = total
        return last, end

    def reserve(self, size: int, blank: int = 0) -> tuple[int, int, int]:
        """Prepare a place for a message of up to `size` bytes, which others may follow without a gap.

        Return it, where the room behind it ends, and how many messages may land there. Nothing points to any of them
        (journal/counted.py). Its type is `blank`: 0 or BLANK (records.py). Raises FullError.
        """
        seq, index, entries = self.taken + 1, self._index, self._entries
        (at,) = self._place(seq, (size,))
        index[seq % entries] = index[(seq + 1) % entries] = NOWHERE
        self._words[at >> 3] = self._words[(at >> 3) + 1] = blank
        first = index[(self.confirmed + 1) % entries] & VALUE if self.confirmed != self.taken else -1
        return at, min(first if first >= at else self._end, self._allocated), entries - 2 - self.taken + self.confirmed

    def set_type(self, at: int, mtype: int) -> None:
        """Store the type of a place that nothing points to."""
        self._words[(at >> 3) + 1] = mtype

    def landed_in_a_row(self, at: int, lengths: Sequence[int]) -> int:
        """Publish messages of these lengths, which have come to `at` and behind it; return the last one's seq.

        The index points to a record only once that is whole, nowhere behind the last one, and to the first one last:
        what it points to behind what was taken counts as landed (see `_recover`).
        """
        words, data, first_type = self._words, self._file.map, self._words[(at >> 3) + 1]
        before = seed = mtype = -1
        bodies, entries, is_one_type = [], [], True
        for length in lengths:
            word, start = at >> 3, at + RECORD_SIZE
            end = start + length
            if words[word + 1] != mtype or length != before:
                mtype, before = words[word + 1], length
                seed = checksum_of_none(mtype, length)
                is_one_type = is_one_type and mtype == first_type
            body = data[start:end]
            words[word] = length | crc32(body, seed) << 32
            bodies.append(body)
            entries.append(at | ((at ^ at >> 16 ^ at >> 32) & 0xFFFF) << CHECK)  # as `seal` does, without a call
            at = end + ALIGN - 1 & -ALIGN
        first, count = self.taken + 1, len(bodies)
        run = Run(self.epoch, first, first_type - (first_type >> 63 << 64), bodies)
        self._index[(first + count) % self._entries] = NOWHERE
        if count > 1:
            self._assign(self._index, first + 1, array("Q", entries[1:]))
            self._assign(self._totals, first, array("Q", accumulate(lengths, initial=self._total))[1:])
        else:
            self._totals[first % self._entries] = self._total + run.size
        self._total += run.size
        self.pending_bytes += run.size
        self._index[first % self._entries] = entries[0]
        self._publish(run.last, at)
        if is_one_type:
            self._fresh = run
        return run.last

    def _assign(self, ring: memoryview[int] | array[int], seq: int, values: array[int]) -> None:
        """Store values for `seq` and what follows it."""
        at = seq % self._entries
        left = self._entries - at
        ring[at : at + len(values)] = values[:left]
        if left < len(values):
            ring[: len(values) - left] = values[left:]

    def get(self, seq: int) -> Message:
        """Return the message `seq`, which must be pending."""
        at = self._index[seq % self._entries] & VALUE
        length, _, mtype = RECORD.unpack_from(self._file.map, at)
        start = at + RECORD_SIZE
        return Message(mtype, self._file.map[start : start + length])

    def run(self, seq: int) -> Run:
        """Pending messages from `seq` on, of one type; as many as a packet may hold."""
        if self._fresh is not None and self._fresh.first == seq:
            return self._fresh
        words, data = self._words, self._file.map
        bodies: list[bytes] = []
        first_type, size = -1, 0
        for entry in self._entries_from(seq, min(self.taken + 1 - seq, _RUN)):
            at = entry & VALUE
            length, mtype = words[at >> 3] & LENGTH, words[(at >> 3) + 1]
            if mtype != first_type:
                if bodies:
                    break
                first_type = mtype
            start = at + RECORD_SIZE
            bodies.append(data[start : start + length])
            size += length
            if size > MAX_PACKET:
                break
        return Run(self.epoch, seq, first_type - (first_type >> 63 << 64), bodies, (), size)

    def _entries_from(self, seq: int, count: int) -> list[int]:
        at = seq % self._entries
        found = self._index[at : at + count].tolist()
        return found if len(found) == count else found + self._index[: count - len(found)].tolist()

    def confirm(self, seq: int) -> None:
        """Release all messages up to `seq`, which must be pending."""
        self.pending_bytes = self._total - self._totals[seq % self._entries]
        self._cells[CONFIRMED] = seal(seq)
        self.confirmed = seq
        if self._fresh is not None and self._fresh.first <= seq:
            self._fresh = None

    def close(self) -> None:
        """Unmap and unlock."""
        self._release()
        self._file.close()

    def _release(self) -> None:
        self._index.release()  # or the file could not be unmapped
        self._words.release()

    def _publish(self, seq: int, end: int) -> None:
        """Make all up to `seq` a fact by one store.

        Clear the next index entry first: a stale one would look like a landing place.
        """
        self._index[(seq + 1) % self._entries] = NOWHERE
        self._cells[TAKEN] = seal(seq)
        self._next_at = end + ALIGN - 1 & -ALIGN
        self.taken = seq

    def _place(self, seq: int, lengths: Sequence[int]) -> list[int]:
        """Return where to put the records of `seq` and more.

        They go after the last record, or at the start of the ring where one does not fit the end.
        """
        start, end, upto = self._ring_at, self._end, self._allocated
        kept = self.released if self._holds else self.confirmed  # the last one that may be overwritten
        at, room = self._next_at, self._entries - 1 - (seq - kept)
        first = self._index[(kept + 1) % self._entries] & VALUE if kept != self.taken else -1
        places: list[int] = []
        for length in lengths:
            need = RECORD_SIZE + length + ALIGN - 1 & -ALIGN
            if first < 0:
                at = first = start
                limit = end
            elif first >= at:
                limit = first
            elif at + need > end:
                at, limit = start, first
            else:
                limit = end
            if at + need > limit or room <= 0:
                break
            room -= 1
            places.append(at)
            at += need
            if at > upto:  # noqa: PLR1730  (a call costs more)
                upto = at
        if not places:
            text = f"no room for a message of {lengths[0]} bytes beside what is pending"
            raise FullError(errno.ENOBUFS, f"journal {self._file.path}: {text}")
        if upto > self._allocated:
            self._allocated = self._file.provide(max(self._allocated, self._ring_at), upto)
        self._places = places
        return places

    def _check(self) -> None:
        """Believe what is published, if it is whole; and a landed message. Raises DamagedError."""
        numbers = (self.released, self.confirmed, self.taken)
        if not all(map(is_sealed, self._file.cells[: RELEASED + 1])):
            raise DamagedError("its numbers have a wrong checksum")
        if sorted(numbers) != list(numbers) or self.taken - self.confirmed >= self._entries:
            raise DamagedError(f"it says that {self.taken} were taken and {self.confirmed} confirmed")
        before = length = taken_up = 0
        for seq in range(self.confirmed + 1, self.taken + 1):
            entry = self._index[seq % self._entries]
            if entry != before:  # else one record is for both
                before, length = entry, self.reader.check(seq)
                self._total += length
                self.pending_bytes += length
                taken_up += length + RECORD_SIZE
                if taken_up > self._file.header.ring:
                    raise DamagedError(f"what is pending up to message {seq} is more than its ring holds")
            self._totals[seq % self._entries] = self._total
        if before:
            self._next_at = (before & VALUE) + RECORD_SIZE + length + ALIGN - 1 & -ALIGN
        self._recover()

    def _recover(self) -> None:
        """Recover messages that have landed: each is a fact.

        A note is no fact before it is published: its file is still there.
        """
        if self._file.cells[RECORDS] != MESSAGES:
            return
        left = self._file.header.ring
        for seq in range(self.taken + 1, self.confirmed + self._entries):
            entry = self._index[seq % self._entries]
            if entry in (0, NOWHERE) or not self.reader.has_landed(seq):
                break
            self._places.append(entry & VALUE)
            left -= RECORD_SIZE + (self._words[self._places[-1] >> 3] & LENGTH)
            if left < 0:
                raise DamagedError(f"what has landed up to message {seq} is more than its ring holds")
        if self._places:
            self.recovered = len(self._places)
            self.landed([self._words[at >> 3] & LENGTH for at in self._places])
