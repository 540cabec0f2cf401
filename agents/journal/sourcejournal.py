"""A source's journal: what was taken and is not yet confirmed. records.py has the crash rules of all journals."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby

from nsbridge.agents import linux
from nsbridge.agents.journal.journalfile import (
    CELL_COUNT,
    PAGE,
    VALUE,
    DamagedError,
    FullError,
    JournalFile,
    allocate,
    is_sealed,
    seal,
)
from nsbridge.agents.journal.records import ALIGN, LENGTH, NOWHERE, RECORD, RECORD_SIZE, TYPE_AT, checksum
from nsbridge.agents.wire import MAX_PACKET, Message, Run
from nsbridge.config.schema import MAX_MESSAGE

_GROW = 256 << 10  # bytes allocated at a time
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
        self._view = file.view
        self._allocated = 0
        self._places: list[int] = []  # where messages may land, or one is being appended: the next seqs
        self._next_at = self._ring_at  # where the last record ends that was published
        self.fd = file.fd
        self.waiting_fd = -1  # of the list of names that wait (waitinglist.py)
        self.address = linux.address_of(file.view) + TYPE_AT  # of a place's msgbuf, if the place were 0
        self.epoch = file.header.epoch
        self.confirmed = file.cells[CONFIRMED] & VALUE  # the last seq that the sink has confirmed
        self.taken = file.cells[TAKEN] & VALUE  # the last seq that was given out
        self.pending_bytes = 0
        self._totals = array("Q", bytes(8 * self._entries))  # bytes of all records up to each, by seq
        self._total = 0
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

    @property
    def cells(self) -> memoryview[int]:
        """Return the cells, in which an endpoint keeps values of its own."""
        return self._file.cells

    def append(self, message: Message, count: int = 1) -> int:
        """Keep the message under `count` seqs, all of which it describes; return the last. Raises FullError."""
        first, last, index, entries = self.taken + 1, self.taken + count, self._index, self._entries
        at = self._place(last, (len(message.body),))[0]
        index[first % entries] = index[(last + 1) % entries] = NOWHERE  # no places, which a type would make messages
        RECORD.pack_into(self._file.map, at, len(message.body), checksum(message.type, message.body), message.type)
        start = at + RECORD_SIZE
        self._file.map[start : start + len(message.body)] = message.body
        entry = seal(at)
        for seq in range(last, first - 1, -1):
            index[seq % entries] = entry
        self._total += len(message.body)
        self.pending_bytes += len(message.body)
        for seq in range(first, last + 1):
            self._totals[seq % entries] = self._total
        self._publish(last, start + len(message.body))
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
        words, view, totals, entries = self._words, self._view, self._totals, self._entries
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

    def reserve(self, size: int) -> tuple[int, int]:
        """Prepare a place for a message of up to `size` bytes; return it, and where the free room behind it ends.

        Nothing points to the place (journal/counted.py). Raises FullError.
        """
        seq, index, entries = self.taken + 1, self._index, self._entries
        (at,) = self._place(seq, (size,))
        index[seq % entries] = index[(seq + 1) % entries] = NOWHERE
        self._words[(at >> 3) + 1] = 0
        first = index[(self.confirmed + 1) % entries] & VALUE if self.confirmed != self.taken else -1
        return at, first if first >= at else self._end

    def extend(self, at: int, size: int, limit: int, count: int) -> bool:
        """Return True if a message of up to `size` bytes fits at a place that follows `count` unpublished ones."""
        upto = at + RECORD_SIZE + size
        if upto > limit or self.taken + count + 1 - self.confirmed >= self._entries - 1:
            return False
        if upto > self._allocated:
            self._allocate(upto)
        return True

    def landed_at(self, places: Sequence[int], lengths: Sequence[int]) -> int:
        """Publish messages that have come to these places, in these lengths; return the last one's seq.

        The index points to a record only once that is whole, and to the first one last: see `_recover`.
        """
        last, end = self._complete(places, lengths)
        index, entries, seq = self._index, self._entries, last
        for seq in range(last, self.taken, -1):
            index[seq % entries] = seal(places[seq - self.taken - 1])
        self._publish(last, end)
        return last

    def has_type(self, at: int) -> bool:
        """Return True if the kernel has put a message at a place, whose length may be unknown."""
        return self.holds(at, at + RECORD_SIZE) and bool(self._words[(at >> 3) + 1])

    def holds(self, at: int, end: int) -> bool:
        """Return True if both are within the ring."""
        return self._ring_at <= at <= end <= self._end

    def get(self, seq: int) -> Message:
        """Return the message `seq`, which must be pending."""
        at = self._index[seq % self._entries] & VALUE
        length, _, mtype = RECORD.unpack_from(self._file.map, at)
        start = at + RECORD_SIZE
        return Message(mtype, self._file.map[start : start + length])

    def run(self, seq: int) -> Run:
        """Pending messages from `seq` on, of one type; as many as a packet may hold."""
        index, entries, words, data = self._index, self._entries, self._words, self._file.map
        bodies: list[bytes] = []
        first_type, size = -1, 0
        for at in (index[n % entries] & VALUE for n in range(seq, min(self.taken + 1, seq + _RUN))):
            length, mtype = words[at >> 3] & LENGTH, words[(at >> 3) + 1]
            if bodies and mtype != first_type:
                break
            first_type = mtype
            start = at + RECORD_SIZE
            bodies.append(data[start : start + length])
            size += length
            if size > MAX_PACKET:
                break
        return Run(self.epoch, seq, first_type - (first_type >> 63 << 64), bodies)

    def confirm(self, seq: int) -> None:
        """Release all messages up to `seq`, which must be pending."""
        self.pending_bytes = self._total - self._totals[seq % self._entries]
        self._file.cells[CONFIRMED] = seal(seq)
        self.confirmed = seq

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
        self._file.cells[TAKEN] = seal(seq)
        self._next_at = end + ALIGN - 1 & -ALIGN
        self.taken = seq

    def _place(self, seq: int, lengths: Sequence[int]) -> list[int]:
        """Return where to put the records of `seq` and more.

        They go after the last record, or at the start of the ring where one does not fit the end.
        """
        start, end, confirmed, upto = self._ring_at, self._end, self.confirmed, self._allocated
        at, room = self._next_at, self._entries - 1 - (seq - confirmed)
        first = self._index[(confirmed + 1) % self._entries] & VALUE if confirmed != self.taken else -1
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
            self._allocate(upto)
        self._places = places
        return places

    def _allocate(self, upto: int) -> None:
        start = max(self._allocated, self._ring_at)
        end = min(max(upto, start + _GROW), self._file.size)
        try:
            allocate(self._file.fd, start, end - start, self._file.path)
        except FullError:
            end = upto  # the rest of a nearly full file system is enough for some more
            allocate(self._file.fd, start, end - start, self._file.path)
        self._populate(start & -PAGE, end)
        self._allocated = end

    def _populate(self, start: int, end: int) -> None:
        """Have the pages there when the kernel copies a message into them: a fault that a kill interrupts loses it."""
        with suppress(OSError):  # before Linux 5.14 they come one by one, as they are touched
            self._file.map.madvise(linux.MADV_POPULATE_WRITE, start, end - start)

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
                before, length = entry, self._check_record(seq)
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
            if entry in (0, NOWHERE) or not self._has_landed(seq):
                break
            self._places.append(entry & VALUE)
            left -= RECORD_SIZE + (self._words[self._places[-1] >> 3] & LENGTH)
            if left < 0:
                raise DamagedError(f"what has landed up to message {seq} is more than its ring holds")
        if self._places:
            self.recovered = len(self._places)
            self.landed([self._words[at >> 3] & LENGTH for at in self._places])

    def _record(self, seq: int) -> tuple[int, int, int, int]:
        """Return where the record of `seq` begins; its length, checksum and type. Raises DamagedError."""
        entry = self._index[seq % self._entries]
        at, end = entry & VALUE, self._end
        if not is_sealed(entry) or at % ALIGN or not self._ring_at <= at <= end - RECORD_SIZE:
            raise DamagedError(f"message {seq} is outside the ring")
        length, check, mtype = RECORD.unpack_from(self._file.map, at)
        return at, length, check, mtype

    def _check_record(self, seq: int) -> int:
        """Return the length of its message. Raises DamagedError."""
        at, length, check, mtype = self._record(seq)
        start = at + RECORD_SIZE
        if length > MAX_MESSAGE:
            raise DamagedError(f"message {seq} says that it has {length} bytes, which no message has")
        if start + length > self._file.size or checksum(mtype, self._file.view[start : start + length]) != check:
            raise DamagedError(f"message {seq} has a wrong checksum")
        return length

    def _has_landed(self, seq: int) -> bool:
        """True if a message has come to the landing place, or was kept and not published. Raises DamagedError."""
        at, length, check, mtype = self._record(seq)
        if not mtype:
            return False
        if check != length ^ LENGTH or at + RECORD_SIZE + length > self._file.size:
            self._check_record(seq)
        return True

    def records(self, first: int) -> list[tuple[Message, int]]:
        """Return the records of the seqs from `first` on, each with how many seqs it is for."""
        entries = [self._index[seq % self._entries] for seq in range(first, self.taken + 1)]
        found, seq = [], first
        for _, same in groupby(entries):
            count = len(list(same))
            found.append((self.get(seq), count))
            seq += count
        return found

    def first_kept(self) -> int:
        """Return the first seq whose record is still there.

        For notes, the records kept are some that are confirmed and not released, then those pending.

        A confirmed message's record is not: the next one may have taken its place.
        """
        first = self.confirmed + 1
        keeps_notes = self._file.cells[RECORDS] != MESSAGES and self.taken - self.released < self._entries - 1
        with suppress(DamagedError):
            while keeps_notes and first - 1 > self.released:
                self._check_record(first - 1)
                first -= 1
        return first
