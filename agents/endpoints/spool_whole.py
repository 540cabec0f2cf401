"""How to tell that nobody is writing a file of a spool any more.

A read lease is refused while anybody has the file open for writing (fcntl(2), F_SETLEASE), mapped into memory for
writing too. Three things that a lease does not tell, and what is done about them:
* Only the file's owner may take one, and some file systems have none. There an event is believed: the file was closed,
  or renamed into the directory. Without an event, a file counts that has not changed for _QUIET seconds.
* The kernel tells of a close just before it counts the writer out. So after a close a refused lease is asked for again
  at once, and the files behind it wait: otherwise a program's files would be taken in another order.
* A program that creates a file is counted as its writer just after the event. So an empty file that was created is
  left alone for a while; its close brings it. A file with content, or with a second link, was complete before.
"""

from __future__ import annotations

import os
from enum import Enum

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.spool_names import CLOSED, CREATED, MOVED_IN
from nsbridge.agents.endpoints.spool_notes import Identity, identity_of
from nsbridge.agents.loop import Clock

_QUIET = 10.0  # seconds
_ATTEMPTS = 4  # in a row


class Verdict(Enum):
    """What a look at a file says."""

    WHOLE = 1
    NEARLY = 2  # its writer has closed it, and is about to be counted out
    WRITTEN = 3  # somebody has it open for writing, or may have
    EMPTY = 4  # it was just created


class Completeness:
    """Remembers since when the files did not change of which no lease tells."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock
        self._unchanged: dict[bytes, tuple[Identity, float]] = {}

    def judge(self, fd: int, name: bytes, how: int, status: os.stat_result) -> Verdict:
        """Judge an open file by how its name came (spool_names.py). A lease that is taken ends when `fd` is closed."""
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

    def _is_quiet(self, name: bytes, identity: Identity) -> bool:
        now = self._now()
        before, since = self._unchanged.get(name, (None, now))
        if before != identity:
            self._unchanged[name] = (identity, now)
        if before != identity or now - since < _QUIET:
            return False
        del self._unchanged[name]
        return True
