"""A log as its reader sees it: how far one open file was read, whether it is still the same, and which file comes next.

Some facts about logs, and what they mean here:
* A file is known by its inode, and because an inode is used again, by what was read of it: its first bytes and its last
  message. (The device's number says nothing: a container's overlay has another one each time it is mounted.)
* Whatever was read can only change if the file was truncated or written anew; so each read begins a little before the
  place that was reached, and compares. Nothing tells where a file is written anew with exactly the same bytes.
* A rotated log goes by NAME and a number or a date. Which of several came next is told by their times of change.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.files import Tree, shown
from nsbridge.agents.endpoints.log_framing import Item, Splitter, TooLong, Unended
from nsbridge.agents.journal import LOG_POSITION, SourceJournal

_CHUNK = 256 << 10  # bytes read at a time, more inside a long message
_LONGEST_CHUNK = 16 << 20
_HEAD = 256  # bytes of the beginning that are compared
_OVERLAP = 64  # bytes before the place that are read again
_COMPARED = 64 << 10  # bytes in which a copy is like its original
_SLOT = 5  # cells of a Position
_ROTATED = re.compile(rb"[.\-_][0-9][0-9T:.\-_]*")  # after NAME; nothing that is compressed


class TruncatedError(Exception):
    """What was read before is no longer there."""


class Position(NamedTuple):
    """Where to go on, and what proves that the file is the same: its last message is from `start` to `end`."""

    inode: int
    head: int  # CRC-32 of the first bytes; above 32 bits, how many
    start: int
    end: int
    check: int  # CRC-32 of the last message; nothing is said where `start` is `end`


class Positions:
    """The position in the journal: two slots by turns, of which the store that publishes a message says which counts.

    So a message and the place after it are one fact, whatever is killed when.
    """

    def __init__(self, journal: SourceJournal) -> None:
        self._journal = journal
        self._files = [(0, 0), (0, 0)]  # what the slots have of the file itself, in this process

    def read(self) -> Position | None:
        """The last; None if there never was one."""
        at = LOG_POSITION + self._journal.taken % 2 * _SLOT
        position = Position(*self._journal.cells[at : at + _SLOT])
        return position if position.inode else None

    def keep(self) -> None:
        """The last also counts once the next message is taken."""
        self.prepare(self.read() or Position(0, 0, 0, 0, 0))

    def prepare(self, position: Position) -> None:
        """It counts once the next message is taken."""
        which = (self._journal.taken + 1) % 2
        at = LOG_POSITION + which * _SLOT
        cells = self._journal.cells
        inode, head, cells[at + 2], cells[at + 3], cells[at + 4] = position
        if self._files[which] != (inode, head):
            cells[at], cells[at + 1] = self._files[which] = (inode, head)


class Tail:
    """An open file that is followed from byte `at` on."""

    def __init__(self, fd: int, splitter: Splitter, at: int = 0) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.splitter = splitter
        self._reached = at
        self._head = os.pread(fd, min(at, _HEAD), 0)
        overlap = min(at, _OVERLAP)
        self._before = os.pread(fd, overlap, at - overlap)
        self._full_head = self._head_of(_HEAD)

    def read(self) -> Sequence[Item] | None:
        """What is complete after the next bytes; None if there are none. Raises TruncatedError, OSError."""
        before = self._before
        size = min(max(_CHUNK, self.splitter.kept), _LONGEST_CHUNK)
        data = os.pread(self.fd, len(before) + size, self._reached - len(before))
        if not data.startswith(before):
            raise TruncatedError
        if len(data) == len(before):
            return None
        self._before = data[-_OVERLAP:]
        data = data[len(before) :]
        if len(self._head) < _HEAD:
            self._head += data[: _HEAD - len(self._head)]
            self._full_head = self._head_of(_HEAD)
        self._reached += len(data)
        return self.splitter.feed(data)

    def has_grown(self) -> bool:
        """Whether there is more than was read."""
        return os.fstat(self.fd).st_size > self._reached

    def end(self) -> Unended | TooLong | None:
        """What is after the last message, if nothing will follow it."""
        return self.splitter.end()

    def position(self, start: int, end: int, check: int) -> Position:
        """After the message from `start` to `end`."""
        return Position(self.inode, self._full_head if end >= _HEAD else self._head_of(end), start, end, check)

    def _head_of(self, end: int) -> int:
        head = self._head[: min(end, _HEAD)]
        return zlib.crc32(head) | len(head) << 32


def is_at(fd: int, position: Position, splitter: Splitter) -> bool:
    """Whether the file still has all that was read of it."""
    _, head, start, end, check = position
    length = head >> 32
    if length > _HEAD or not start <= end <= os.fstat(fd).st_size:
        return False
    if zlib.crc32(os.pread(fd, length, 0)) != head & 0xFFFFFFFF:
        return False
    return start == end or body_at(fd, splitter, start, end, check) is not None


def body_at(fd: int, splitter: Splitter, start: int, end: int, check: int) -> bytes | None:
    """The message from `start` to `end`; None if it is another by now."""
    extent = os.pread(fd, end - start, start)
    body = splitter.body_of(extent) if len(extent) == end - start else None
    return body if body is not None and zlib.crc32(body) == check else None


class Siblings:
    """A log among the files of its directory, which its rotations leave there."""

    def __init__(self, tree: Tree, directory: int, name: bytes, report: Callable[[str], None]) -> None:
        self._report = report
        self._tree = tree
        self._directory = directory
        self._name = name

    def inode(self) -> int:
        """Of what is at the log's path; 0 if nothing is there."""
        status = self._status(self._name)
        return status.st_ino if status else 0

    def find(self, inode: int, flags: int = os.O_RDONLY) -> int | None:
        """Open the file with that inode, by whatever name it goes. Raises OSError."""
        for name in (self._name, *self._names()):
            status = self._status(name)
            if status and status.st_ino == inode and stat.S_ISREG(status.st_mode):
                try:
                    fd = self._tree.open_file(self._directory, name, flags)
                except FileNotFoundError:
                    continue
                if os.fstat(fd).st_ino == inode:
                    return fd
                os.close(fd)
        return None

    def open_next(self, after: int | None) -> int:
        """Open what came after the open file `after`: a rotated file, or the one at the path. Raises OSError."""
        for name in self._rotated_since(after) if after is not None else ():
            try:
                fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
            except OSError:
                continue
            if not self._is_copy(fd, after):
                return fd
            os.close(fd)
            self._report(f"{shown(name)} begins as another file of the log does: taken for a copy, not read")
        return self._tree.open_file(self._directory, self._name, os.O_RDONLY)

    def _rotated_since(self, after: int) -> list[bytes]:
        """Names of rotated files, oldest first."""
        old = os.fstat(after)
        found = []
        for name in self._names():
            if not name.startswith(self._name) or not _ROTATED.fullmatch(name, len(self._name)):
                continue
            status = self._status(name)
            if status and stat.S_ISREG(status.st_mode) and status.st_mtime_ns > old.st_mtime_ns and status.st_size:
                found.append((status.st_mtime_ns, name, status.st_ino))
        current = self.inode()
        return [name for _, name, inode in sorted(found) if inode not in (old.st_ino, current)]

    def _is_copy(self, fd: int, after: int | None) -> bool:
        """Whether it begins like the file before it or the one at the path, as a copy for keeping does."""
        head = os.pread(fd, _COMPARED, 0)
        if after is not None and os.pread(after, len(head), 0) == head:
            return True
        try:
            current = self._tree.open_file(self._directory, self._name, os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.pread(current, len(head), 0) == head
        finally:
            os.close(current)

    def _names(self) -> list[bytes]:
        return [os.fsencode(name) for name in os.listdir(self._directory)]  # noqa: PTH208  (a descriptor)

    def _status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
