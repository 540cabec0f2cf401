"""Defines what the journal keeps of messages that stay in a log: where they are, and proof that they are the same."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Self


class Note(NamedTuple):
    """The place of messages in a file: from byte `start` on, each `sizes` bytes with its framing, each with its CRC-32.

    A note without any message stands for a seq that is no message (VOID).
    """

    inode: int
    start: int
    first: int  # the seq of the first
    sizes: Sequence[int]
    checks: Sequence[int]

    def pack(self) -> bytes:
        """Return its bytes in the journal."""
        numbers = array("I", (*self.sizes, *self.checks)).tobytes()
        return _NOTE.pack(self.inode, self.start, self.first, len(self.sizes)) + numbers

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the note that `pack` made into these bytes. Raises struct.error."""
        inode, start, first, count = _NOTE.unpack_from(data)
        numbers = struct.unpack_from(f"={2 * count}I", data, _NOTE.size)
        return cls(inode, start, first, numbers[:count], numbers[count:])

    @classmethod
    def read(cls, data: bytes, seq: int) -> Self | None:
        """Return the note of message `seq`; None if it describes none. A compromised agent may have written it."""
        try:
            note = cls.unpack(data)
        except struct.error:
            return None
        return note if note.first <= seq < note.first + len(note.sizes) else None

    def extents(self, seq: int) -> list[tuple[int, int, int]]:
        """Start, end and checksum of the messages from `seq` on."""
        places = list(pairwise(accumulate(self.sizes, initial=self.start)))[seq - self.first :]
        return [
            (start, end, check) for (start, end), check in zip(places, self.checks[seq - self.first :], strict=True)
        ]


_NOTE = struct.Struct("<QQQI")  # inode, start, first, how many; then their sizes and checksums


def described(data: bytes, seq: int) -> tuple[int, str]:
    """Return a note in a form for people: the message's bytes with its framing, and where they are."""
    note = Note.unpack(data)
    for start, end, _ in note.extents(seq)[:1]:
        return end - start, f"bytes {start} to {end} of inode {note.inode}"
    return 0, f"from byte {note.start} of inode {note.inode}"
