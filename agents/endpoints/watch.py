"""inotify on one directory: the only module that uses inotify_simple.

Some facts about inotify, and what they mean here:
* Identical events that follow each other come as one, so an event says "look", never "how often".
* When the kernel's queue overflows, events are lost: whoever reads must look at the whole directory again.
* A watch is added by path; the path "." of a directory that was opened before cannot be exchanged for another.
* Instances are limited for each user (128 by default), and all agents of one user share that.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from inotify_simple import INotify, flags, parse_events

from nsbridge.agents.endpoints.base import Blocked

CLOSED = int(flags.CLOSE_WRITE)
MOVED_IN = int(flags.MOVED_TO)
CREATED = int(flags.CREATE)
_SELF_GONE = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED)
_OVERFLOW = int(flags.Q_OVERFLOW)
_IS_DIRECTORY = int(flags.ISDIR)
_BUFFER = 1 << 16


# The library looks for libc at its first use, and does so by running ldconfig (ctypes.util.find_library): an agent
# would run the container's. This module is imported by the supervisor, so the first use is here and now, on the host.
INotify().close()


class Change(NamedTuple):
    """One event: the file's name and the mask."""

    name: bytes
    mask: int


class Changes(NamedTuple):
    """What was read at once. `gone`: the directory itself was removed or renamed. `lost`: look at everything again."""

    files: list[Change]
    gone: bool
    lost: bool


class DirectoryWatch:
    """Watches one directory, which the caller keeps open."""

    def __init__(self, directory: int, mask: int) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise Blocked(
                    f"inotify instances of uid {os.getuid()} are used up: raise sysctl fs.inotify.max_user_instances"
                ) from None
            raise Blocked(f"inotify: {os.strerror(error.errno or 0)}") from None
        try:
            os.fchdir(directory)
            self._inotify.add_watch(".", mask | int(flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR))
        except OSError as error:
            self._inotify.close()
            if error.errno == errno.ENOSPC:
                raise Blocked(
                    f"inotify watches of uid {os.getuid()} are used up: raise sysctl fs.inotify.max_user_watches"
                ) from None
            raise Blocked(f"inotify: {os.strerror(error.errno or 0)}") from None
        finally:
            os.chdir("/")

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._inotify.fileno()

    def read(self) -> Changes:
        """All that happened since the last read; nothing if nothing did."""
        files: list[Change] = []
        gone = lost = False
        try:
            data = os.read(self._inotify.fileno(), _BUFFER)
        except BlockingIOError:
            return Changes(files, gone, lost)
        for event in parse_events(data):
            mask = event.mask
            if mask & _SELF_GONE:
                gone = True
            elif mask & _OVERFLOW:
                lost = True
            elif not mask & _IS_DIRECTORY:
                files.append(Change(os.fsencode(event.name), mask))
        return Changes(files, gone, lost)

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()
