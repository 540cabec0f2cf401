"""A log as its reader sees it: how far one open file was read, and whether it is still the same.

Some facts about logs, and what they mean here:
* A file is identified by its inode and, because inodes are reused, by its first bytes and its last message. (The device
  number does not help: a container's overlay has another one each time it is mounted.)
* Bytes that were read change only if the file was truncated or rewritten. So each read begins a little before the
  current position, and compares. A rewrite with exactly the same bytes cannot be detected.
* A hole has no written bytes. At the end of a file it is room that a program made beforehand (fallocate, truncate,
  mmap) and will fill later. So reading stops before it, and before the zeros that fill its block. A hole before other
  data is skipped in one step: it may have 2^63 bytes, and reading it would take years.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.log.cells import LOG_MORE, LOG_MORE_SLOT, LOG_POSITION
from nsbridge.agents.endpoints.log.framing import Item, Splitter, Unended
from nsbridge.agents.endpoints.log.model import LogFileId
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.config.schema import MAX_MESSAGE

_CHUNK = 256 << 10  # bytes read at a time, more inside a long message
_LONGEST_CHUNK = 16 << 20
_HEAD = 256  # bytes of the beginning that are compared
_OVERLAP = 64  # bytes before the place that are read again
_ROOM = 512  # this many zeros at the end of a file count as room, even without other evidence
_LONGEST_EXTENT = MAX_MESSAGE + 16  # bytes of a message with its framing
_LAST_BYTE = (1 << 63) - 1  # of the longest file
_SLOT = 5  # cells of a Position at LOG_POSITION


class TruncatedError(Exception):
    """Raised when what was read before is no longer there."""


class Position(NamedTuple):
    """The place to continue, and the proof that the file is the same: its last message is from `start` to `end`.

    The last four are 0 in a journal of an earlier version.
    """

    inode: int
    head: int  # CRC-32 of the first bytes; above 32 bits, how many
    start: int
    end: int
    check: int  # CRC-32 of the last message; it proves nothing if `start` equals `end`
    born: int = 0  # the file's time of birth, ns
    begun: int = 0  # when its content began: its birth, or the truncation; ns
    missed: int = 0  # generations that could not be read, or not whole, since this journal was made
    missed_bytes: int = 0  # bytes of these, at least

    @property
    def who(self) -> LogFileId:
        """Return the file."""
        return LogFileId(self.inode, self.born)


_NOTHING: tuple[int, ...] = (0, 0, 0, 0, 0, 0)


class Positions:
    """The position in the journal: two alternating slots. The store that publishes a message also selects the slot.

    So a message and the position after it are published atomically, even if a kill interrupts. The counts of missing
    files are there too, so each file is counted once.
    """

    def __init__(self, journal: SourceJournal) -> None:
        self._journal = journal
        self._slots = [_NOTHING, _NOTHING]  # the fields that this process wrote last; they seldom change
        last = self.last()
        self.missed, self.missed_bytes = last.missed, last.missed_bytes

    def last(self) -> Position:
        """Return the one that counts; all zeros if there never was one."""
        which, cells = self._journal.taken % 2, self._journal.cells
        at, more = LOG_POSITION + which * _SLOT, LOG_MORE + which * LOG_MORE_SLOT
        return Position(*cells[at : at + _SLOT], *cells[more : more + LOG_MORE_SLOT])

    def read(self) -> Position | None:
        """Return the last; None if there never was one."""
        position = self.last()
        return position if position.inode else None

    def keep(self) -> None:
        """Keep the last position, so that it also counts once the next message is taken."""
        last = self.last()
        self.prepare(last, (last.missed, last.missed_bytes))

    def prepare(self, position: Position, missed: tuple[int, int] | None = None) -> None:
        """Write the position that takes effect with the next message, and the counts of `miss`, or `missed`."""
        which = (self._journal.taken + 1) % 2
        cells = self._journal.cells
        at = LOG_POSITION + which * _SLOT
        inode, head, cells[at + 2], cells[at + 3], cells[at + 4], born, begun, _, _ = position
        lost, lost_bytes = missed or (self.missed, self.missed_bytes)
        rest = (inode, head, born, begun, lost, lost_bytes)
        if rest != self._slots[which]:
            more = LOG_MORE + which * LOG_MORE_SLOT
            cells[at], cells[at + 1], cells[more], cells[more + 1], cells[more + 2], cells[more + 3] = rest
            self._slots[which] = rest

    def miss(self, files: int, size: int) -> None:
        """Count missing files; the count is published with the next position."""
        self.missed += files
        self.missed_bytes += size

    def publish_missed(self) -> None:
        """Publish the counts of `miss` now, because no position follows."""
        start = LOG_MORE + self._journal.taken % 2 * LOG_MORE_SLOT
        self._journal.cells[start + 2], self._journal.cells[start + 3] = self.missed, self.missed_bytes
        self._slots[self._journal.taken % 2] = _NOTHING


def missed(cells: Sequence[int], taken: int) -> tuple[int, int]:
    """Return the counts in a journal's cells: missing files, and at least how many bytes."""
    start = LOG_MORE + taken % 2 * LOG_MORE_SLOT + 2
    return cells[start], cells[start + 1]


class Tail:
    """An open file that is followed from byte `at` on. `begun`: see Position; by default the file's birth time."""

    def __init__(self, fd: int, who: LogFileId, splitter: Splitter, at: int = 0, begun: int = 0) -> None:
        self.fd = fd
        self.who = who
        self.begun = begun or who.born
        self.splitter = splitter
        self.unwritten = 0  # bytes at the end of the file that are room for what is still to be written
        self.reached = at
        self._head = os.pread(fd, min(at, _HEAD), 0)
        overlap = min(at, _OVERLAP)
        before = os.pread(fd, overlap, at - overlap)
        self._before = before if before.strip(b"\0") else b""  # a hole before it may be filled
        self._full_head = self._head_of(_HEAD)
        self._expected = b""
        self._size = at  # of the file, as it was seen last
        self._zeros = 0  # how many of these may be data all the same
        size = os.fstat(fd).st_size  # first: a file that grows meanwhile has no hole
        self._is_sparse = 0 < _seek(fd, at, os.SEEK_HOLE) < size

    def read(self) -> Sequence[Item] | None:
        """Return the items completed by the next bytes; None if there are none. Raises TruncatedError, OSError."""
        before = self._before
        size = min(max(_CHUNK, self.splitter.kept), _LONGEST_CHUNK)
        if self._is_sparse:
            end = _seek(self.fd, self.reached, os.SEEK_HOLE)
            if end == self.reached:
                return self._at_hole()
            size = min(size, end - self.reached) if end else size
        data = os.pread(self.fd, len(before) + size, self.reached - len(before))
        if not data.startswith(before) or (self._expected and not data.startswith(self._expected)):
            raise TruncatedError
        self._expected = b""
        fresh = data[len(before) :]
        self.unwritten = self._zeros = 0
        if not fresh:
            if not before and os.fstat(self.fd).st_size < self.reached:
                raise TruncatedError
            return None
        if len(fresh) == size:
            self.grows()  # there may be more, which a truncation may take
        if fresh[-1] == 0:
            return self._read_zeros(fresh)
        return self._feed(fresh)

    def expect(self, head: bytes) -> None:
        """Treat the file as truncated unless it begins with `head` at the first look: such a copy was skipped."""
        self._expected = head

    def _feed(self, fresh: bytes) -> Sequence[Item]:
        self._before = (self._before + fresh)[-_OVERLAP:] if len(fresh) < _OVERLAP else fresh[-_OVERLAP:]
        if len(self._head) < _HEAD and len(self._head) == self.reached:
            self._head += fresh[: _HEAD - len(self._head)]
            self._full_head = self._head_of(_HEAD)
        self.reached += len(fresh)
        self._size = max(self._size, self.reached)
        return self.splitter.feed(fresh)

    def _read_zeros(self, fresh: bytes) -> Sequence[Item] | None:
        """Handle bytes that end with zeros: data, or room for later data.

        Reading such room creates its pages, and then the kernel reports them as data. So only bytes after the zeros
        prove that the zeros are data.
        """
        end, size = self.reached + len(fresh), os.fstat(self.fd).st_size
        hole = _seek(self.fd, end, os.SEEK_HOLE) or size
        if hole < size:
            self._is_sparse = True
            is_room = hole == end and not _seek(self.fd, end, os.SEEK_DATA)
        else:
            is_room = (self._is_sparse or self.splitter.holds_zeros) and self._is_zero_from(end, size)
        if not is_room:
            return self._feed(fresh)
        solid = len(fresh.rstrip(b"\0"))
        items = self._feed(fresh[:solid]) if solid else None
        self.unwritten = size - self.reached
        if not self._is_sparse:
            self._zeros = self.unwritten
        return items

    def _is_zero_from(self, start: int, end: int) -> bool:
        """True if there are only zeros between; False also if there are too many bytes to check."""
        if end - start > _LONGEST_CHUNK:
            return False
        return all(not os.pread(self.fd, min(_CHUNK, end - at), at).strip(b"\x00") for at in range(start, end, _CHUNK))

    def _at_hole(self) -> Sequence[Item] | None:
        """Skip a hole, or stop before the one at the end. Raises TruncatedError."""
        size = os.fstat(self.fd).st_size
        if size < self.reached:
            raise TruncatedError
        data = _seek(self.fd, self.reached, os.SEEK_DATA)
        self._zeros = 0
        self.unwritten = 0 if data else size - self.reached
        if not data:
            before = os.pread(self.fd, len(self._before), self.reached - len(self._before))
            if before != self._before:
                raise TruncatedError
            return None
        items = self.splitter.skip(data - self.reached)
        self.reached, self._before = data, b""
        self._size = max(self._size, data)
        return items

    def is_anew(self) -> bool:
        """True if the file was truncated before, and now has unread bytes."""
        return not self.reached and self.begun > self.who.born and os.fstat(self.fd).st_size > 0

    def grows(self) -> None:
        """Note the file's size, so that the loss by a truncation is known."""
        self._size = max(self._size, os.fstat(self.fd).st_size)

    @property
    def unread(self) -> int:
        """Return how many unread bytes the file had."""
        return self._size - self.reached

    def has_changed(self) -> bool:
        """True if the file has another size than when its end was read."""
        return os.fstat(self.fd).st_size != self.reached + self.unwritten

    def end(self) -> Sequence[Item | Unended]:
        """Return the rest after the last message, if nothing will follow it."""
        items: list[Item | Unended] = []
        if 0 < self._zeros < _ROOM:
            items += self._feed(bytes(self._zeros))
            self.unwritten = 0
        self._zeros = 0
        last = self.splitter.end()
        return [*items, last] if last else items

    def continues_in(self, fd: int) -> bool:
        """True if the open file `fd` has all bytes read so far: it is a copy from before a truncation."""
        if not self.reached or os.fstat(fd).st_size < self.reached:
            return False
        at = self.reached - len(self._before)
        same = os.pread(fd, len(self._before), at) == self._before
        return same and os.pread(fd, len(self._head), 0) == self._head

    def has_all_of(self, fd: int) -> bool:
        """True if the open file `fd` begins like this one and is shorter than what was read."""
        size = os.fstat(fd).st_size
        head = os.pread(fd, len(self._head), 0)
        return size < self.reached and self._head.startswith(head)

    def position(self, start: int, end: int, check: int) -> Position:
        """Return the position after the message from `start` to `end`."""
        head = self._full_head if end >= _HEAD else self._head_of(end)
        return Position(self.who.inode, head, start, end, check, self.who.born, self.begun)

    def _head_of(self, end: int) -> int:
        head = self._head[: min(end, _HEAD)]
        return zlib.crc32(head) | len(head) << 32


def _seek(fd: int, start: int, what: int) -> int:
    """Return where the next data or hole from `start` on begins, 0 if there is none. lseek(2). Raises OSError.

    A file system without holes reports everything as data.
    """
    try:
        return os.lseek(fd, start, what)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EINVAL):
            return 0
        raise


def is_at(fd: int, position: Position, splitter: Splitter) -> bool:
    """True if the file still has all that was read of it."""
    _, head, start, end, check = position[:_SLOT]
    length = head >> 32
    if length > _HEAD or not start <= end <= os.fstat(fd).st_size:
        return False
    if zlib.crc32(os.pread(fd, length, 0)) != head & 0xFFFFFFFF:
        return False
    return start == end or body_at(fd, splitter, start, end, check) is not None


def body_at(fd: int, splitter: Splitter, start: int, end: int, check: int) -> bytes | None:
    """Return the message from `start` to `end`; None if it has changed since.

    The place is out of a journal, which a compromised agent may have written.
    """
    if not 0 <= end - start <= _LONGEST_EXTENT or end > _LAST_BYTE:
        return None
    extent = os.pread(fd, end - start, start)
    body = splitter.body_of(extent) if len(extent) == end - start else None
    return body if body is not None and zlib.crc32(body) == check else None
