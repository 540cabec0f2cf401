"""Chooses the epoch of the names in a spool's `in`: the source's own, unless later names exist already.

A source's epoch is the time at which its journal was made. If the journals are lost and the clock was set back, it is
earlier than the epoch of existing names, and new names would sort before old ones. So each new epoch is compared with
the names in the directory, and with the last one in the sink's journal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from nsbridge.agents.endpoints.spool.cells import NAMED, NAMED_FOR

_NAME = re.compile(r"([0-9a-f]{16})-[0-9]{20}\.-?[0-9]+(\..+)?", re.DOTALL)  # with any `suffix`
_LAST = (1 << 64) - 1  # that a journal can keep; only a compromised agent can have written it there
_BEYOND = 1 << 63  # ns: the year 2262; a name beyond it is not ours, and nothing could follow it


class NameEpochs:
    """Keeps the epoch of the names for each source's epoch, in the sink's journal."""

    def __init__(self, cells: memoryview[int], report: Callable[[str], None]) -> None:
        self._cells = cells
        self._report = report

    def named(self, epoch: int, directory: int) -> int:
        """Return the epoch for the names of this source's epoch in the open directory. Raises OSError."""
        cells = self._cells
        if cells[NAMED_FOR] != epoch:
            cells[NAMED] = self._choose(epoch, directory)
            cells[NAMED_FOR] = epoch  # last: a kill before this chooses again
        return cells[NAMED]

    def _choose(self, epoch: int, directory: int) -> int:
        last, highest = self._cells[NAMED], _highest(directory)
        chosen = highest + 1 if highest > epoch else epoch
        chosen = min(max(chosen, last + 1), _LAST)
        if chosen != epoch:
            self._report(
                f"the source's epoch {epoch:016x} is older than existing names (was the clock set back?): new "
                f"names begin with {chosen:016x}, so that they sort last"
            )
        return chosen


def _highest(directory: int) -> int:
    """Return the latest epoch of the names in the directory, 0 if there is none. Raises OSError."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            found = (int(match[1], 16) for entry in entries if (match := _NAME.fullmatch(entry.name)))
            return max((epoch for epoch in found if epoch < _BEYOND), default=0)
    finally:
        os.close(fd)
