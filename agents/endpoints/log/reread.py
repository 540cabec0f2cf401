"""Reads unconfirmed messages of an earlier agent again, from their positions in the log."""

from __future__ import annotations

import os
from itertools import takewhile

from nsbridge.agents.endpoints.log.config import Framing
from nsbridge.agents.endpoints.log.framing import Splitter, splitter
from nsbridge.agents.endpoints.log.model import Missed
from nsbridge.agents.endpoints.log.notes import Note
from nsbridge.agents.endpoints.log.reports import Reports
from nsbridge.agents.endpoints.log.siblings import Siblings
from nsbridge.agents.endpoints.log.tail import body_at
from nsbridge.agents.wire import VOID


class Reread:
    """Reads messages again that an earlier agent noted; one file is open at a time.

    If the log was truncated or rewritten since, a copy of it may have them (copytruncate).
    """

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._fd = -1
        self._inode = 0  # the inode in the notes; the open file may be a copy of it
        self._splitter: Splitter = splitter(Framing.LINE, 0)  # of the last note
        self._missing: set[int] = set()  # inodes that were looked for: a directory may have very many names
        self._counted: set[int] = set()  # inodes of which something was missing

    def load(self, note: Note, seq: int, siblings: Siblings, framing: Splitter) -> tuple[int, list[bytes]]:
        """Return the type and the messages from `seq` on; VOID for each that is gone. Raises OSError."""
        if not note.sizes:
            return VOID.type, [VOID.body]
        bodies = self._bodies(note, seq, siblings, framing)
        if bodies:
            return 0, bodies
        return VOID.type, [VOID.body] * self._reports.gone_messages(*self._gone(note, seq))

    def _bodies(self, note: Note, seq: int, siblings: Siblings, framing: Splitter) -> list[bytes]:
        """Return the messages from `seq` on, up to the first that is missing. Raises OSError."""
        extents = note.extents(seq)
        if note.inode in self._missing:
            return []
        if self._inode != note.inode:
            self._open(siblings.find(note.inode), note.inode)
        is_there = self._fd >= 0 and body_at(self._fd, framing, *extents[0]) is not None
        if not is_there and note.inode not in self._counted:
            self._find_copy(extents[0], note.inode, siblings, framing)
        if self._fd < 0:
            return []
        self._splitter = framing
        found = (body_at(self._fd, framing, *extent) for extent in extents)
        return [body for body in takewhile(lambda body: body is not None, found) if body is not None]

    def _gone(self, note: Note, seq: int) -> tuple[int, int, Missed]:
        """Return how many messages from `seq` on are missing, at which byte they were, and what to count."""
        extents = note.extents(seq)
        count = len(extents)
        if self._fd >= 0:
            count = next(
                (at for at, e in enumerate(extents) if body_at(self._fd, self._splitter, *e) is not None), count
            )
        else:
            self._missing.add(note.inode)
        files = int(note.inode not in self._counted)
        self._counted.add(note.inode)
        return count, extents[0][0], Missed(files, extents[count - 1][1] - extents[0][0])

    def close(self) -> None:
        """Close the file."""
        self._open(None, 0)

    def forget(self) -> None:
        """Forget which files were missing, because the directory has changed."""
        self.close()
        self._missing.clear()

    def _open(self, fd: int | None, inode: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode = -1 if fd is None else fd, inode

    def _find_copy(self, extent: tuple[int, int, int], inode: int, siblings: Siblings, framing: Splitter) -> None:
        for fd in siblings.rotated():
            if body_at(fd, framing, *extent) is not None:
                self._open(os.dup(fd), inode)
                return
