"""Keeps the names that wait in a directory in a file, so that a restarted agent need not list and sort them again.

STATE_DIR/journal/ROUTE/AGENT.waiting holds a header and then names, each with a NUL behind it, in the order in which
they will be taken. A cell of the agent's journal keeps how many bytes of names were passed. A name is passed when its
message is in the journal, or when the name was set aside.

* The list is only a hint. Each name is looked up in the directory, and a scan follows when the list ends. So a stale,
  damaged or forged list costs time, and neither loses nor repeats a message.
* A list is replaced in place: it is made invalid, written, and made valid again. A kill in between leaves no list.
* List and cell have the same number. The journal of another endpoint (belonging.py), or a new one, has another number.
* If the disk is full, there is no list.
* The file's size is limited, so it may hold only the first names.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from nsbridge.agents.journal.journalfile import VALUE, is_sealed, seal

_HEADER = struct.Struct("<8sIIQQ")  # magic, number, checksum of the names, their bytes, inode of the directory
_MAGIC = b"nsb-wait"
NAMES_AT = 64  # bytes
_CHUNK = 1 << 13  # bytes of names in one read: to take up 10,000 names takes 5 ms
_CHECKED = 1 << 17  # bytes that are read at once to check them
_AT_BITS = 32  # of the cell: the place; the list's number is above
_AT = (1 << _AT_BITS) - 1
_NUMBERS = (VALUE >> _AT_BITS) + 1


class Header(NamedTuple):
    """The header's numbers."""

    number: int
    checksum: int
    length: int
    inode: int


class WaitingList:
    """The list in the open file `fd`, of up to `size` bytes; `cells[cell]` keeps how far it was passed."""

    def __init__(self, fd: int, size: int, cells: memoryview[int], cell: int) -> None:
        self._fd = fd
        self._size = size
        self._cells = cells
        self._cell = cell
        self._number = self._length = 0  # of a valid list
        self._passed = 0  # bytes
        self._read = 0  # bytes that were read, or are in memory

    def has_more(self) -> bool:
        """True if `read` would return more names."""
        return self._read < self._length

    def bytes_left(self) -> int:
        """Return the bytes of the names that `read` would still return, each with its NUL."""
        return max(0, self._length - self._read)

    def open(self, inode: int) -> bool:
        """Use the list of an earlier agent for the directory of that inode; False if there is none or it is damaged."""
        self._length = 0
        try:
            header = self._valid_header()
        except OSError:
            return False
        kept = self._cells[self._cell]
        at = kept & _AT
        if header is None or not is_sealed(kept) or (kept & VALUE) >> _AT_BITS != header.number:
            return False
        if header.inode != inode or at > header.length:
            return False
        self._number, self._length, self._passed, self._read = header.number, header.length, at, at
        return self.has_more()

    def read(self) -> list[bytes]:
        """Return the next names. Empty if there are none, or the list turns out to be damaged."""
        try:
            data = os.pread(self._fd, min(_CHUNK, self._length - self._read), NAMES_AT + self._read)
        except OSError:
            data = b""
        end = data.rfind(b"\0") + 1
        names = data[:end].split(b"\0")[:-1]
        if not names or b"/" in data or b"" in names:
            self._length = 0
            return []
        self._read += end
        return names

    def passed(self, name: bytes) -> None:
        """Note that the next name of the list was taken or set aside."""
        self._passed += len(name) + 1
        self._note()

    def write(self, names: Sequence[bytes], in_memory: int, inode: int) -> int:
        """Replace the list; return how many of the names it holds, from the first on: 0 if it cannot be written.

        `read` then returns those behind the first `in_memory` names.
        """
        ends = list(accumulate(len(name) + 1 for name in names))
        count = bisect_right(ends, self._size)
        data = b"\0".join([*names[:count], b""])
        self._length = 0
        self._number = ((self._cells[self._cell] & VALUE) >> _AT_BITS) % (_NUMBERS - 1) + 1
        try:
            self._put(0, bytes(NAMES_AT))
            self._put(NAMES_AT, data)
            self._passed = 0
            self._note()
            self._put(0, _HEADER.pack(_MAGIC, self._number, zlib.crc32(data), len(data), inode))
        except OSError:
            return 0
        self._length = len(data)
        self._read = min(ends[in_memory - 1], self._length) if in_memory else 0
        return count

    def _valid_header(self) -> Header | None:
        """Return the header of the list in the file; None if there is none, or it is damaged. Raises OSError."""
        page = os.pread(self._fd, _HEADER.size, 0)
        if len(page) < _HEADER.size or not page.startswith(_MAGIC):
            return None
        header = Header(*_HEADER.unpack(page)[1:])
        if not 0 < header.length <= self._size:
            return None
        checksum, at = 0, 0
        while at < header.length:
            data = os.pread(self._fd, min(_CHECKED, header.length - at), NAMES_AT + at)
            if not data:
                return None
            checksum, at = zlib.crc32(data, checksum), at + len(data)
        return header if checksum == header.checksum else None

    def _put(self, at: int, data: bytes) -> None:
        """Write at this place of the file. Raises OSError."""
        os.lseek(self._fd, at, os.SEEK_SET)
        with memoryview(data) as left:
            done = 0
            while done < len(left):
                done += os.write(self._fd, left[done:])

    def _note(self) -> None:
        self._cells[self._cell] = seal(self._number << _AT_BITS | self._passed)
