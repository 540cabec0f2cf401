"""Moves the files that a spool's source has delivered into the `done` directory.

A file keeps its name if that is free. Otherwise its number is added, and then its journal's epoch, so that a number
that is reused after a lost journal does not block. A name that would be too long is cut before the suffix.
"""

from __future__ import annotations

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.spool.sidedirectory import SideDirectory, fitting
from nsbridge.agents.identity.walk import shown


class DoneDirectory(SideDirectory):
    """The `done` directory of one source."""

    def move(self, source: int, where: bytes, name: bytes, number: tuple[int, int]) -> None:
        """Move a file there; `number` is its message's (epoch, seq). The directory is made again if it is gone.

        Raises OSError, Blocked.
        """
        if self._directory < 0:
            self.open(source, where)
        epoch, seq = number
        for suffix in (b"", b".%d" % seq, b".%016x-%d" % (epoch, seq)):
            try:
                self._rename(source, where, name, fitting(name, suffix))
            except FileExistsError:
                continue
            return
        raise Blocked(f"{shown(self._path)} has other files under every name for {shown(name)}: remove them")
