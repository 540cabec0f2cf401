"""inotify: on one directory and open files of it, or on several by their paths; the only user of inotify_simple.

Some facts about inotify, and what they mean here:
* Identical events that follow each other come as one, so an event says "look", never "how often".
* When the kernel's queue overflows, events are lost: the reader must scan the whole directory again. The kernel queues
  one overflow event at a time. Until a reader has read it, the kernel drops further events silently, so the events
  behind it have gaps. The reader discards all of them at once: they are older than the scan that follows.
* A removed directory that is still open, as in its agent, sends no event. So its parent is watched too, if it is
  readable. Each removal there is a reason to check how many links the directory has left.
* A watch is added by path. The path "." of an open directory cannot be replaced by another.
* Instances are limited for each user (128 by default), and all agents of one user share that. So the supervisor has
  one for all that it waits for, by PathWatch; an agent has one for its directory, by DirectoryWatch.
* A watch's number is not reused: events that are still read for a dropped watch are ignored.
* To report a close, the kernel first marks every file of the directory that is in its cache: 20 ms for 250,000.
  Events of names need no marks, so a watch may begin with them (DirectoryWatch.add).
* Other processes of the same user can use up all instances, or all watches. Then an agent polls every _PACE seconds
  (PollingWatch), reports that in log and status, and returns to inotify when it can.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

import inotify_simple
from inotify_simple import INotify, flags, parse_events

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import AgentApi, Blocked

CLOSED = int(flags.CLOSE_WRITE)
MOVED_IN = int(flags.MOVED_TO)
CREATED = int(flags.CREATE)
MOVED_OUT = int(flags.MOVED_FROM)
DELETED = int(flags.DELETE)
MODIFIED = int(flags.MODIFY)
NAMED_ONLY = int(flags.EXCL_UNLINK)  # nothing of a file that has lost its name: another may have it by now
_SELF_GONE = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED)
_OVERFLOW = int(flags.Q_OVERFLOW)
_NO_FILE = _SELF_GONE | _OVERFLOW | int(flags.ISDIR)
# struct inotify_event of inotify(7), and its name's bytes, read here: the library would make text of each name.
_EVENT = struct.Struct("iIII")
_EVENT_SIZE = _EVENT.size
_LONGEST_EVENT = 512  # bytes at least: NAME_MAX and the rest
_BUFFER = 1 << 16
_SHORT = 128  # bytes of events that may come again in the same form
_MOST_SEEN = 16
_MOST_READS = 1000  # in a row behind a loss
_PACE = 1.0  # seconds from one look to the next, without inotify
_RETURN = 10  # looks until inotify is retried
_NO_WATCH = -1  # what an overflow belongs to

# At its first use the library would look for libc: by running ldconfig, else the compiler, with a temporary file
# (ctypes.util.find_library). An agent would run the container's, and a pod with a read-only root has none of them.
inotify_simple._libc = linux.LIBC


class UsedUp(Blocked):
    """inotify has no instance or watch left for this user."""


class Change(NamedTuple):
    """One event: the file's name and the mask. The name is empty for a file that is watched itself."""

    name: bytes
    mask: int


class Changes(NamedTuple):
    """The changes that one read returned. `gone`: the directory itself was removed or renamed.

    `lost`: look at everything again, after `files`; what followed the loss is not among them, since it came later.
    """

    files: list[Change]
    gone: bool
    lost: bool


class _InotifyInstance:
    """An inotify instance."""

    def __init__(self) -> None:
        self._inotify = _instance()
        self._events = self._inotify.fileno()

    def drop(self, watch: int) -> None:
        """Watch it no more; harmless if it is gone."""
        try:
            self._inotify.rm_watch(watch)
        except OSError:
            pass

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._events

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    def _read(self) -> bytes:
        """Read events, _BUFFER bytes at most; return nothing if there are none."""
        try:
            return os.read(self._events, _BUFFER)
        except BlockingIOError:
            return b""


class DirectoryWatch(_InotifyInstance):
    """Watches one directory, which the caller keeps open."""

    polls = False

    def __init__(self, directory: int, mask: int) -> None:
        super().__init__()
        self._fd = directory
        self._is_elsewhere = False
        self.is_drained = True  # the last read took every event there was
        self._seen: dict[bytes, Changes] = {}  # what a file that is written again and again brings, by its bytes
        try:
            os.fchdir(directory)
            self._parent = self._watch_parent()  # first, for the root's parent is the root
            self._mask = mask | int(flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR)
            self._directory: int = self._inotify.add_watch(".", self._mask)
            if self._is_removed():
                raise FileNotFoundError(errno.ENOENT, "")  # before anything watched it
        except OSError as error:
            self._inotify.close()
            raise _no_watch(error) from None
        finally:
            os.chdir("/")

    def add(self, mask: int) -> bool:
        """Watch for more events; return False if it does already. Raises Blocked."""
        if not mask & ~self._mask:
            return False
        try:
            os.fchdir(self._fd)
            self._inotify.add_watch(".", self._mask | mask)  # it is the same watch
        except OSError as error:
            raise _no_watch(error) from None
        finally:
            os.chdir("/")
        self._mask |= mask
        return True

    def _watch_parent(self) -> int:
        try:
            watch: int = self._inotify.add_watch("..", int(flags.DELETE | flags.ONLYDIR))
        except PermissionError:
            return _NO_WATCH
        return watch

    def _is_removed(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0

    def add_file(self, own_fds: int, fd: int, mask: int) -> int:
        """Watch an open file itself, by whatever name it goes; returns what `drop` takes. Raises Blocked.

        `own_fds` is the host's /proc/self/fd: no path can lead elsewhere meanwhile.
        """
        try:
            os.fchdir(own_fds)
            watch: int = self._inotify.add_watch(str(fd), mask)
        except OSError as error:
            raise _no_watch(error) from None
        finally:
            os.chdir("/")
        return watch

    def has_left(self, is_there: Callable[[int], bool]) -> bool:
        """True if its path no longer leads there, as `is_there` decides for a descriptor.

        The directory then counts as gone, too.
        """
        self._is_elsewhere = not is_there(self._fd)
        return self._is_elsewhere

    def read(self, *, hidden: bool = True) -> Changes:
        """Return all that happened since the last read; without `hidden`, nothing of files whose name begins so."""
        data = self._read()
        changes = self._seen.get(data)
        if changes is not None and hidden and not self._is_elsewhere:
            self.is_drained = True
            return changes
        changes = self._parse(data, hidden)
        if hidden and len(data) <= _SHORT and not (changes.gone or changes.lost):
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen[data] = changes
        self.is_drained = changes.lost or len(data) <= _BUFFER - _LONGEST_EVENT
        for _ in range(_MOST_READS if changes.lost else 0):
            data = self._read()
            if not data:
                break
            changes = changes._replace(gone=self._parse(data, hidden).gone or changes.gone)
        return changes

    def _parse(self, data: bytes, hidden: bool) -> Changes:
        files: list[Change] = []
        gone, lost = self._is_elsewhere, False
        at, directory = 0, self._directory
        while at < len(data):
            wd, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT_SIZE + length
            if wd == directory and not mask & _NO_FILE:
                if not lost and (hidden or not data.startswith(b".", at - length)):
                    files.append(Change(data[at - length : at].rstrip(b"\0"), mask))
            elif wd not in (directory, self._parent, _NO_WATCH):
                files.append(Change(b"", mask))
            elif mask & _SELF_GONE and wd == directory:
                gone = True
            elif mask & _OVERFLOW:
                lost = True
            elif wd != directory:
                gone = gone or self._is_removed()
        return Changes(files, gone, lost)


class OpenFileWatch(_InotifyInstance):
    """Watches one open file that has no directory here, as a POSIX queue. It is readable once anything is changed.

    That is the owner, the mode, or whether the file has a name.
    """

    def __init__(self, own_fds: int, fd: int) -> None:
        """Begin to watch; `own_fds` is the host's /proc/self/fd. The file must be readable. Raises Blocked."""
        super().__init__()
        try:
            os.fchdir(own_fds)
            self._inotify.add_watch(str(fd), int(flags.ATTRIB))
        except OSError as error:
            self._inotify.close()
            raise _no_watch(error) from None
        finally:
            os.chdir("/")

    def read(self) -> None:
        """Take the events; they say no more than that something was changed."""
        self._read()


class PollingWatch:
    """Replaces a DirectoryWatch if inotify is used up: reports every _PACE seconds that everything may have changed."""

    polls = True
    is_drained = True

    def __init__(self, host: AgentApi, side: str, directory: int, mask: int) -> None:
        self._host = host
        self._side = side
        self._fd = directory
        self._mask = mask
        self._is_elsewhere = False
        self._looks = 0
        try:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise Blocked(f"eventfd: {os.strerror(error.errno or 0)}") from None
        self._timer = host.loop.call_later(_PACE, self._tick)

    def _tick(self) -> None:
        self._looks += 1
        os.eventfd_write(self._event, 1)
        self._timer = self._host.loop.call_later(_PACE, self._tick)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when it is time to look."""
        return self._event

    def close(self) -> None:
        """Stop looking."""
        self._timer.cancel()
        os.close(self._event)
        self._host.notice(self._side, "")

    def add_file(self, own_fds: int, fd: int, mask: int) -> int:  # noqa: ARG002  (as DirectoryWatch's)
        """Do nothing: every look includes the files."""
        return _NO_WATCH

    def add(self, mask: int) -> bool:  # noqa: ARG002  (as DirectoryWatch's)
        """Do nothing, like `add_file`."""
        return False

    def drop(self, watch: int) -> None:
        """Do nothing."""

    def has_left(self, is_there: Callable[[int], bool]) -> bool:
        """See DirectoryWatch."""
        self._is_elsewhere = not is_there(self._fd)
        return self._is_elsewhere

    def read(self, *, hidden: bool = True) -> Changes:  # noqa: ARG002  (as DirectoryWatch's)
        """Return `lost` once for each tick; also `gone` when inotify works again, to open the directory anew."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return Changes([], self._is_elsewhere, lost=False)
        gone = self._is_elsewhere or os.fstat(self._fd).st_nlink == 0
        return Changes([], gone or self._may_return(), lost=True)

    def _may_return(self) -> bool:
        if self._looks % _RETURN:
            return False
        try:
            DirectoryWatch(self._fd, self._mask).close()
        except Blocked:
            return False
        self._host.log("info", f"{self._side}: inotify can be used again")
        return True


AnyWatch = DirectoryWatch | PollingWatch


def watch_directory(host: AgentApi, side: str, directory: int, mask: int) -> AnyWatch:
    """Watch a directory for the `out` or `in` side; poll it if inotify is used up.

    Raises Blocked.
    """
    try:
        return DirectoryWatch(directory, mask)
    except UsedUp as reason:
        polling = PollingWatch(host, side, directory, mask)
        text = f"{reason}; meanwhile polls every {_PACE:g} s"
        host.log("warning", f"{side}: {text}")
        host.notice(side, text)
        return polling


class PathEvent(NamedTuple):
    """`watch` is what `PathWatch.add` returned, LOST if events were lost; `itself`: the directory itself changed."""

    watch: int
    name: bytes
    itself: bool


LOST = _NO_WATCH


class PathWatch(_InotifyInstance):
    """Watches directories by their paths, for the supervisor: what comes into them, is written there or goes."""

    _MASK = CREATED | MOVED_IN | CLOSED | DELETED | int(flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR)

    def add(self, path: str) -> int:
        """Watch one more; the same one gives the same number. FileNotFoundError if there is none, else Blocked."""
        try:
            watch: int = self._inotify.add_watch(path, self._MASK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise FileNotFoundError(error.errno, os.strerror(error.errno), path) from None
            raise _no_watch(error) from None
        return watch

    def read(self) -> list[PathEvent]:
        """Return what happened since the last read, _BUFFER bytes of it at most."""
        return [PathEvent(e.wd, os.fsencode(e.name), bool(e.mask & _SELF_GONE)) for e in parse_events(self._read())]


def _instance() -> INotify:
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise UsedUp(
                f"inotify instances of uid {os.getuid()} are used up: raise sysctl fs.inotify.max_user_instances"
            ) from None
        raise Blocked(f"inotify: {os.strerror(error.errno or 0)}") from None


def _no_watch(error: OSError) -> Blocked:
    if error.errno == errno.ENOSPC:
        return UsedUp(f"inotify watches of uid {os.getuid()} are used up: raise sysctl fs.inotify.max_user_watches")
    return Blocked(f"inotify: {os.strerror(error.errno or 0)}")
