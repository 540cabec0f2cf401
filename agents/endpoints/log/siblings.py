"""Finds and opens a log and its rotated files in their directory."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator, Sequence

from nsbridge.agents import linux
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log.model import LogFile, LogFileId
from nsbridge.agents.endpoints.log.names import Form, age, names_of
from nsbridge.config.descriptors import closing

_COMPARED = 64 << 10  # bytes in which a copy is like its original
_PROOF = 256  # bytes that must be equal: short logs may begin alike and be no copies
_LOOKS = 4  # at a directory in which files are being renamed
_EXCHANGES = 100  # files that may take the place of another while it is looked at; a FUSE server never ends
_CLOCK_REALTIME_COARSE = 5
_GZIP, _GZIP_LEAST = b"\x1f\x8b", 18  # how a file begins, and the bytes of an empty one


def now() -> int:
    """Return a time in ns of the wall clock that is before the birth of every file from now on.

    Files are stamped with the kernel's coarse clock, which stands still between ticks: 1 to 10 ms, and longer where
    a virtual machine does not run. clock_gettime(2).
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) - 1


class Siblings:
    """The log's path, and its directory."""

    def __init__(self, tree: Tree, directory: int, name: bytes) -> None:
        self._tree = tree
        self._directory = directory
        self._name = name
        self._names = names_of(name)

    def inode(self) -> int:
        """Return the inode at the log's path; 0 if nothing is there."""
        status = self._status(self._name)
        return status.st_ino if status else 0

    def at_path(self) -> LogFile | None:
        """Return the regular file at the log's path. Raises OSError."""
        return self._seen(self._name)

    def listing(self, moved_to: Collection[bytes] = ()) -> list[LogFile]:
        """Return the files whose names belong to this log or are in `moved_to`, each once. Raises OSError."""
        form = self._names.form
        found: dict[LogFileId, LogFile] = {}
        for names in self._looks():
            seen = map(self._seen, [name for name in names if name in moved_to or form(name) is not Form.OTHER])
            found |= {one.who: one for one in seen if one is not None}
        return list(found.values())

    def identify(self, fd: int) -> LogFileId:
        """Return the identity of an open file."""
        return LogFileId(*linux.birth(fd, b""))

    def open(self, name: bytes, flags: int = os.O_RDONLY) -> int:
        """Open a regular file of the directory. Raises OSError."""
        return self._tree.open_file(self._directory, name, flags)

    def open_seen(self, one: LogFile) -> int | None:
        """Open that same file, even if it has another name by now; None if it cannot be opened."""
        try:
            fd = self.open(one.name)
            if self.identify(fd) == one.who:
                return fd
            os.close(fd)
        except OSError:
            pass
        try:
            found = self.find(one.who.inode)
        except OSError:
            return None
        if found is not None and self.identify(found) != one.who:
            os.close(found)
            found = None
        return found

    def find(self, inode: int, flags: int = os.O_RDONLY) -> int | None:
        """Open the file with that inode, under any name. Raises OSError."""
        form = self._names.form
        for names in self._looks():
            for name in (self._name, *sorted(names, key=lambda name: form(name) is Form.OTHER)):
                status = self._status(name)
                if status and status.st_ino == inode and stat.S_ISREG(status.st_mode):
                    try:
                        fd = self.open(name, flags)
                    except FileNotFoundError:
                        continue
                    if os.fstat(fd).st_ino == inode:
                        return fd
                    os.close(fd)
        return None

    def rotated(self) -> Iterator[int]:
        """Yield each rotated file, open until the next is asked for. Raises OSError."""
        for one in self.listing():
            if one.form is Form.COMPRESSED:
                continue
            try:
                fd = self.open(one.name)
            except OSError:
                continue
            with closing(fd):
                yield fd

    def copied(self, one: LogFile, originals: Sequence[int]) -> bytes:
        """Return the file's first bytes if it is a copy: one of the open `originals` has the same. Otherwise empty."""
        if one.size < _PROOF:
            return b""
        fd = self.open_seen(one)
        if fd is None:
            return b""
        with closing(fd):
            head = os.pread(fd, _COMPARED, 0)
            is_copy = any(os.pread(original, len(head), 0) == head for original in originals)
            return head[:_PROOF] if is_copy else b""

    def unpacked_size(self, one: LogFile) -> int:
        """Return the size of a compressed file's content, 0 if unknown. gzip: RFC 1952, ISIZE."""
        fd = self.open_seen(one)
        if fd is None:
            return 0
        with closing(fd):
            if one.size < _GZIP_LEAST or os.pread(fd, 2, 0) != _GZIP:
                return 0
            return int.from_bytes(os.pread(fd, 4, one.size - 4), "little")

    def _seen(self, name: bytes) -> LogFile | None:
        for _ in range(_EXCHANGES):
            status = self._status(name)
            if status is None or not stat.S_ISREG(status.st_mode):
                return None
            try:
                who = LogFileId(*linux.birth(self._directory, name))
            except FileNotFoundError:
                return None
            if who.inode == status.st_ino:
                form, number = self._names.form(name), age(self._name, name)
                return LogFile(who, status.st_mtime_ns, status.st_size, form, number, name)
        return None

    def _looks(self) -> Iterator[list[bytes]]:
        """Yield the directory's names until two listings are equal: one may miss a file that is renamed meanwhile."""
        before: list[bytes] = []
        for _ in range(_LOOKS):
            names = [os.fsencode(name) for name in os.listdir(self._directory)]  # noqa: PTH208  (a descriptor)
            if sorted(names) == before:
                return
            yield names
            before = sorted(names)

    def _status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
