"""Reads the records of a source's journal that may be damaged. records.py has the crash rules of all journals."""

from __future__ import annotations

from itertools import groupby

from nsbridge.agents.journal.journalfile import PAGE, VALUE, DamagedError, JournalFile, is_sealed
from nsbridge.agents.journal.records import ALIGN, BLANK, LENGTH, RECORD, RECORD_SIZE, checksum
from nsbridge.config.schema import MAX_MESSAGE


class RecordReader:
    """Finds records by seq, and believes nothing that they say."""

    def __init__(self, file: JournalFile, index: memoryview[int]) -> None:
        self._file = file
        self._index = index
        self._ring_at = PAGE + 8 * file.header.entries
        self._end = self._ring_at + file.header.ring

    @property
    def entries(self) -> int:
        """Return how many messages the journal can hold, and one."""
        return len(self._index)

    def repeats(self, first: int, last: int) -> list[int]:
        """Return for each record of the seqs from `first` to `last` how many of these it is for."""
        entries = [self._index[seq % self.entries] for seq in range(first, last + 1)]
        return [len(list(same)) for _, same in groupby(entries)]

    def _find(self, seq: int) -> tuple[int, int, int, int]:
        """Return where the record of `seq` begins; its length, checksum and type. Raises DamagedError."""
        entry = self._index[seq % len(self._index)]
        at = entry & VALUE
        if not is_sealed(entry) or at % ALIGN or not self._ring_at <= at <= self._end - RECORD_SIZE:
            raise DamagedError(f"message {seq} is outside the ring")
        return at, *RECORD.unpack_from(self._file.map, at)

    def holds(self, at: int, end: int) -> bool:
        """Return True if both are within the ring."""
        return self._ring_at <= at <= end <= self._end

    def has_type(self, at: int) -> bool:
        """Return True if the kernel has put a message at a place, whose length may be unknown."""
        if not self.holds(at, at + RECORD_SIZE):
            return False
        length, check, mtype = RECORD.unpack_from(self._file.map, at)
        return bool(mtype != (BLANK if (length, check) == (BLANK, 0) else 0))

    def length_at(self, at: int) -> int | None:
        """Return the length of the message at a place, if its record is whole."""
        if not self.holds(at, at + RECORD_SIZE):
            return None
        length, check, mtype = RECORD.unpack_from(self._file.map, at)
        start = at + RECORD_SIZE
        if not self.holds(at, start + length) or checksum(mtype, self._file.view[start : start + length]) != check:
            return None
        return int(length)

    def check(self, seq: int) -> int:
        """Return the length of its message. Raises DamagedError."""
        at, length, check, mtype = self._find(seq)
        start = at + RECORD_SIZE
        if length > MAX_MESSAGE:
            raise DamagedError(f"message {seq} says that it has {length} bytes, which no message has")
        if start + length > self._file.size or checksum(mtype, self._file.view[start : start + length]) != check:
            raise DamagedError(f"message {seq} has a wrong checksum")
        return length

    def has_landed(self, seq: int) -> bool:
        """True if a message has come to the landing place, or was kept and not published. Raises DamagedError."""
        at, length, check, mtype = self._find(seq)
        if not mtype:
            return False
        if check != length ^ LENGTH or at + RECORD_SIZE + length > self._file.size:
            self.check(seq)
        return True
