"""Decides whether a file of a spool is complete: no process writes to it any more.

The kernel refuses a read lease while a process has the file open for writing, or mapped for writing (fcntl(2),
F_SETLEASE). A lease has three limits:
* Only the file's owner may take one, and some file systems have none. There an event is trusted: the file was closed,
  or renamed into the directory. Without an event, a file counts once it has not changed for _QUIET seconds.
* The kernel reports a close just before it stops counting the writer. So after a close a refused lease is retried at
  once, and later files wait. Otherwise a program's files would be taken in another order.
* The kernel counts the creator of a file as its writer just after the event. So a new empty file is left alone for a
  while, and its close queues it again. A file with content, or with a second link, was complete before.
"""

from __future__ import annotations

import os
from enum import Enum

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.spool.names import CLOSED, CREATED, MOVED_IN
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, identity_of
from nsbridge.agents.loop import Clock

_QUIET = 10.0  # seconds
_ATTEMPTS = 4  # in a row


class Verdict(Enum):
    """The result of a look at a file."""

    WHOLE = 1
    NEARLY = 2  # its writer has closed it, but still counts for an instant
    WRITTEN = 3  # a process has it open for writing, or may have
    EMPTY = 4  # it was just created


class Completeness:
    """Decides whether a file is complete. Without leases, it records since when the file has not changed."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock
        self._unchanged: dict[bytes, tuple[SpoolFileId, float]] = {}

    def judge(self, fd: int, name: bytes, how: int, status: os.stat_result) -> Verdict:
        """Judge an open file; `how` is the event of its name (names.py). The lease ends when `fd` is closed."""
        held = files.lease(fd)
        if held and how != CREATED:
            return Verdict.WHOLE
        if held is False and how == CLOSED:
            held = self._ask_again(fd)
        if held is False:
            return Verdict.NEARLY if how == CLOSED else Verdict.WRITTEN
        if held is None and how not in (CLOSED, MOVED_IN):
            return Verdict.WHOLE if self._is_quiet(name, identity_of(status)) else Verdict.WRITTEN
        if how == CREATED and not status.st_size and status.st_nlink == 1:
            return Verdict.EMPTY
        return Verdict.WHOLE

    def clear(self) -> None:
        """Forget everything."""
        self._unchanged.clear()

    def _ask_again(self, fd: int) -> bool | None:
        for _ in range(_ATTEMPTS):
            os.sched_yield()
            held = files.lease(fd)
            if held is not False:
                return held
        return False

    def _is_quiet(self, name: bytes, identity: SpoolFileId) -> bool:
        now = self._now()
        before, since = self._unchanged.get(name, (None, now))
        if before != identity:
            self._unchanged[name] = (identity, now)
        if before != identity or now - since < _QUIET:
            return False
        del self._unchanged[name]
        return True
