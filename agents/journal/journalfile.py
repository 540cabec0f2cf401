"""A journal's file: found or made, locked, checked, mapped into memory. What is in it is for sourcejournal.py.

* The file is locked by its open file description, which sender processes inherit. So a new agent has it only when
  the old one and all its senders are dead, and none of them can still do what the new one has decided about.
* A journal is data. It is checked when it is opened; a damaged one is moved aside and reported, one of a newer version
  is refused and left alone.
* A new journal appears whole, by rename.
* A former agent may have been compromised and could write anything into the file. So every number is checked before
  use: sizes against the configuration (`check_size`) before anything is mapped.

The file: a header of one page, then for a source the index and the ring. Numbers are little-endian.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nsbridge.agents import linux
from nsbridge.agents.fork import release_first
from nsbridge.agents.wire import MAX_EPOCH

VERSION = 2  # 1: before the kernel's counter and names of files; docs/upgrading.md
SOURCE, SINK = 1, 2
PAGE = 4096
MOST_ENTRIES = 1 << 20  # of an index that is for a larger window than the configured one: 16 MB of memory
MOST_RING = 256 << 20  # bytes of a ring, likewise
MOST_ASIDE = 4  # damaged journals of one side of an agent that are kept
_GROW = 256 << 10  # bytes that a ring's file gets at a time
PATIENCE = 30.0  # seconds for an earlier agent, which has been killed, to be gone
_MAGIC = b"nsbridge"
_HEADER = struct.Struct("<8sII4Q")  # magic, version, kind, epoch, entries of the index, bytes of the ring, reserved
_HEADER_CHECK = struct.Struct("<I")
_CELLS_AT = 128
CELL_COUNT = 192  # 48, then 64 in earlier versions, which left the rest of the page 0
CELLS = slice(_CELLS_AT, _CELLS_AT + 8 * CELL_COUNT)  # where they are in the header's page


CHECK = 48  # where in a sealed cell the checksum begins
VALUE = (1 << CHECK) - 1  # the number in a sealed cell; valid if the cell was found sealed on opening


class DamagedError(Exception):
    """The file is no journal that can be used; it is to be moved aside."""


class LeftAloneError(Exception):
    """The file may be correct, but cannot be used. It is left alone, and the operator decides."""


class NewerVersionError(LeftAloneError):
    """The file was written by a later nsbridge."""


class TooLargeError(LeftAloneError):
    """The file has a far larger window than the configured one. A compromised agent may have written that."""


class FullError(OSError):
    """The file system of the journal has no room; nothing was written."""


class Header(NamedTuple):
    """The values that never change in a journal's life."""

    kind: int
    epoch: int  # a source's; 0 for a sink
    entries: int
    ring: int

    def after(self, damaged: Header | None) -> Header:
        """Return the header with an epoch after that of the journal it replaces, even if the clock was set back."""
        return self._replace(epoch=max(self.epoch, damaged.epoch + 1)) if damaged and self.epoch else self


def new_epoch() -> int:
    """Return a number greater than that of every earlier journal of this host: nanoseconds of wall time."""
    return time.time_ns()


def seal(value: int) -> int:
    """Return eight bytes that hold a number of up to 48 bits and its checksum, so that one store writes both."""
    return value | ((value ^ value >> 16 ^ value >> 32) & 0xFFFF) << CHECK


def is_sealed(cell: int) -> bool:
    """True if `seal` can have made the cell. It detects every single damaged byte."""
    return cell == seal(cell & VALUE)


def _pack_header(header: Header) -> bytes:
    fixed = _HEADER.pack(_MAGIC, VERSION, header.kind, header.epoch, header.entries, header.ring, 0)
    return fixed + _HEADER_CHECK.pack(zlib.crc32(fixed))


def is_journal(data: bytes) -> bool:
    """True if a file that begins like this is a journal at all, of whatever version and however damaged."""
    return data.startswith(_MAGIC)


def parse_header(data: bytes) -> Header:
    """Read the header, which all versions begin with. Raises DamagedError, NewerVersionError."""
    fixed = data[: _HEADER.size]
    if len(data) < PAGE or not is_journal(data):
        raise DamagedError("it is no nsbridge journal")
    if _HEADER_CHECK.unpack_from(data, _HEADER.size)[0] != zlib.crc32(fixed):
        raise DamagedError("its header has a wrong checksum")
    _, version, kind, epoch, entries, ring, _ = _HEADER.unpack(fixed)
    if version > VERSION:
        raise NewerVersionError(
            f"it has version {version}, and this nsbridge knows up to {VERSION}; use the nsbridge that wrote it"
        )
    if epoch > MAX_EPOCH:
        raise DamagedError(f"it says that it was begun in epoch {epoch}, which no clock shows")
    return Header(kind, epoch, entries, ring)


def check_size(header: Header, wanted: Header) -> None:
    """Check the header's sizes before the file is mapped. Raises DamagedError, TooLargeError.

    After a change of the configuration the file may have another window, but only up to a limit.
    """
    if header.kind != wanted.kind:
        raise DamagedError("it is of the other kind")
    if header.kind == SINK and (header.entries or header.ring):
        raise DamagedError("it is a sink's and says that it has a ring")
    if header.entries > max(MOST_ENTRIES, wanted.entries) or header.ring > max(MOST_RING, wanted.ring):
        raise TooLargeError(
            f"it is for a window of {header.entries} messages and {header.ring} bytes, the configured one needs "
            f"{wanted.entries} and {wanted.ring}; if window was that large, set it back until all is handed over, "
            "else move the file away"
        )


def file_size(header: Header) -> int:
    """Return the bytes of a journal's file."""
    return PAGE + 8 * header.entries + header.ring


def largest(wanted: Header) -> int:
    """Return the bytes of the largest file that `check_size` accepts."""
    if wanted.kind == SINK:
        return PAGE
    return file_size(wanted._replace(entries=max(MOST_ENTRIES, wanted.entries), ring=max(MOST_RING, wanted.ring)))


class JournalFile:
    """A locked, mapped file with a checked header."""

    def __init__(self, fd: int, header: Header, path: str) -> None:
        self.fd = fd
        self.path = path
        self.header = header
        self.size = file_size(header)
        if os.fstat(fd).st_size != self.size:
            raise DamagedError(f"it has {os.fstat(fd).st_size} bytes, and should have {self.size}")
        self.map = mmap.mmap(fd, self.size)
        self.view = memoryview(self.map)
        self.cells = self.view[CELLS].cast("Q")

    def provide(self, start: int, upto: int) -> int:
        """Give the file pages from `start` to `upto`, and more if it can have them; return where they end.

        Raises FullError.
        """
        end = min(max(upto, start + _GROW), self.size)
        try:
            allocate(self.fd, start, end - start, self.path)
        except FullError:
            end = upto  # the rest of a nearly full file system is enough for some more
            allocate(self.fd, start, end - start, self.path)
        self._populate(start & -PAGE, end)
        return end

    def _populate(self, start: int, end: int) -> None:
        """Have the pages there when the kernel copies a message into them: a fault that a kill interrupts loses it."""
        with suppress(OSError):  # before Linux 5.14 they come one by one, as they are touched
            self.map.madvise(linux.MADV_POPULATE_WRITE, start, end - start)

    def close(self) -> None:
        """Unmap and unlock."""
        self.cells.release()
        self.view.release()
        self.map.close()
        os.close(self.fd)


def _lock(path: str, flags: int, patience: float) -> int:
    """Open and lock, when the holders are dead. Raises OSError: EWOULDBLOCK if they live for `patience` seconds."""
    fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise
            time.sleep(0.001)  # SIGKILL is on its way; there is no event for another's lock with a limit
        else:
            if os.fstat(fd).st_ino == _inode(path):
                return release_first(fd)
            os.close(fd)  # another journal has taken its place meanwhile
            fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _inode(path: str) -> int:
    try:
        return Path(path).stat().st_ino
    except FileNotFoundError:
        return 0


def create(path: str, header: Header, patience: float, *, publish: bool = True) -> JournalFile:
    """Make a new journal under another name, and rename it to `path` once it is whole.

    If not `publish`, the caller renames it. Raises OSError.
    """
    fresh = f"{path}.new"
    fd = _lock(fresh, os.O_CREAT | os.O_TRUNC, patience)
    size = file_size(header)
    try:
        _resize(fd, size, path)
        allocate(fd, 0, PAGE + 8 * header.entries, path)
        os.pwrite(fd, _pack_header(header), 0)
        if publish:
            Path(fresh).rename(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)  # whatever room it took is needed elsewhere
        os.close(fd)
        raise
    return JournalFile(fd, header, path)


def _resize(fd: int, size: int, path: str) -> None:
    """Set the file's length, which RLIMIT_FSIZE may forbid. Raises FullError."""
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise FullError(error.errno, f"journal {path} of {size} bytes: {os.strerror(error.errno or 0)}") from None


def allocate(fd: int, start: int, length: int, path: str) -> None:
    """Give the file pages of its own. Raises FullError."""
    try:
        os.posix_fallocate(fd, start, length)
    except OSError as error:
        raise FullError(error.errno, f"journal {path}: {os.strerror(error.errno or 0)}") from None


Report = Callable[[str], None]


def open_or_create(path: str, wanted: Header, patience: float, report: Report) -> JournalFile:
    """Open the journal at `path`, or make it as `wanted` if there is none. Move a damaged one aside first.

    Raises OSError, LeftAloneError.
    """
    try:
        fd = _lock(path, 0, patience)
    except FileNotFoundError:
        return create(path, wanted, patience)
    header: Header | None = None
    try:
        page = os.pread(fd, PAGE, 0)
        header = parse_header(page)
        check_size(header, wanted)
        _mark(fd, page, header)
        return JournalFile(fd, header, path)
    except DamagedError as error:
        _cut(fd, largest(wanted), path, report)
        move_aside(path, error, report)
        os.close(fd)
        return create(path, wanted.after(header), patience)
    except LeftAloneError as error:
        os.close(fd)
        raise type(error)(f"journal {path} is left alone: {error}") from None
    except BaseException:
        os.close(fd)
        raise


def _mark(fd: int, page: bytes, header: Header) -> None:
    """Give an older journal the current version: what it holds from now on, an older nsbridge would not understand."""
    marked = _pack_header(header)
    if not page.startswith(marked):
        os.pwrite(fd, marked, 0)


def _cut(fd: int, size: int, path: str, report: Report) -> None:
    """Cut a damaged journal to the longest that may be: only a compromised agent can have written what is behind."""
    if (found := os.fstat(fd).st_size) > size:
        os.ftruncate(fd, size)
        report(f"journal {path} had {found} bytes: cut to {size}")


def move_aside(path: str, error: DamagedError, report: Report) -> None:
    """Keep a damaged journal under another name, and report it.

    At most MOST_ASIDE are kept, the first ones and the last: a compromised agent can damage its journal in each life.
    """
    aside = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 10**9:09}"
    directory, name = os.path.split(path)
    former = sorted(Path(directory).glob(f"{name}.damaged-*"), key=lambda found: found.stat().st_ctime_ns)
    Path(path).rename(aside)
    for found in former[MOST_ASIDE - 1 :]:
        found.unlink(missing_ok=True)
    report(f"journal {path} is damaged ({error}); moved to {aside}, and begun anew")
