"""Handles the files that a spool's source refuses: counts and reports them, and moves them to `error`.

The count is for the life of the source's journal. If a refused file stays in its place, each new agent refuses it
again. So the journal keeps which files were counted last, by name, inode and time of birth. If more than _KEPT files
stay, the next agent counts the earlier ones again.

A file is counted before it is moved. So a kill in between neither counts it twice nor leaves it out.
"""

from __future__ import annotations

import os
import stat
import zlib
from enum import Enum

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.spool.cells import COUNTED
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.errordirectory import ErrorDirectory
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sourcejournal import REFUSED

_LINES = 30  # in each _WINDOW
_WINDOW = 10.0  # seconds
_KEPT = len(COUNTED) - 1  # files whose count is remembered; the slot of the next one may hold half a change
_MOST = 1 << 62  # that may have been counted


class Fate(Enum):
    """The fate of a refused file."""

    MOVES = 1  # it can never be taken: it goes to `error`
    WAITS = 2  # its owner may still change that: it goes there if it is refused again at the next look
    STAYS = 3  # it cannot be moved either
    PASSES = 4  # the reason will pass and the file will be taken: it is not counted as refused


class RefusedFiles:
    """The refused files of one source."""

    def __init__(self, host: AgentApi, tree: Tree, config: SpoolEndpoint, cells: memoryview[int]) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._path = os.fsencode(config.out)
        self._error = ErrorDirectory(tree, config.error, config.mode, host.name) if config.error is not None else None
        self._cells = cells
        if cells[REFUSED] > _MOST:
            cells[REFUSED] = 0  # a compromised agent wrote it
        total = cells[REFUSED]
        self._counted = {cells[_slot(number)] for number in range(max(0, total - _KEPT), total)}
        self._directory = -1
        self._failure = ""  # of the last move
        self._shown = (-1, -1)  # in status
        self._lines = 0  # in this window
        self._more = 0  # files that were not logged in it
        self.show(0)

    def open(self, directory: int) -> None:
        """Begin in this directory; `error` is opened and checked. Raises Blocked."""
        self._directory = directory
        if self._error is not None:
            self._error.open(directory, self._path)

    def close(self) -> None:
        """Close what is open."""
        self._directory = -1
        if self._error is not None:
            self._error.close()

    def refuse(self, name: bytes, why: str, fate: Fate, *, is_new: bool) -> bool:
        """Count, report and move a file that is refused, `is_new` for this reason. True if it was moved."""
        moves = self._error is not None and (fate is Fate.MOVES or (fate is Fate.WAITS and not is_new))
        if not is_new and not moves:
            return False
        try:
            status = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False  # it is gone, which the next look finds out
        counts = fate is not Fate.PASSES and self._count(name)
        place = self._move(name, why, status) if moves else b""
        if place:
            self._report(name, f"{why}; moved to {shown(place)}", counts, moved=True)
        elif is_new:
            self._report(name, f"{why}; left where it is", counts, moved=False)
        return bool(place)

    def show(self, count: int) -> None:
        """Show in status how many files are refused now, and how many ever were."""
        shown_now = (count, self._cells[REFUSED])
        if shown_now != self._shown:
            self._shown = shown_now
            self._host.refused(*shown_now)

    def _count(self, name: bytes) -> bool:
        """Count the file unless it was counted before; return True if it was not."""
        try:
            cells, key = self._cells, _key(name, *linux.birth(self._directory, name))
        except OSError:
            return False  # it is gone
        if key in self._counted:
            return False
        total = cells[REFUSED]
        cells[_slot(total)] = key
        cells[REFUSED] = total + 1
        self._counted.add(key)
        if total >= _KEPT:
            self._counted.discard(cells[_slot(total - _KEPT)])
        return True

    def _move(self, name: bytes, why: str, status: os.stat_result) -> bytes:
        """Move the file; return its path there, empty if it was not moved."""
        assert self._error is not None  # noqa: S101  (asked by refuse)
        if stat.S_ISDIR(status.st_mode):
            return b""  # programs make files ready in directories
        reason = f"{shown(self._path + b'/' + name)} {why}"
        try:
            place = self._error.move(self._directory, self._path, name, status.st_ino, reason, self._cells[REFUSED])
        except FileNotFoundError:
            return b""
        except (OSError, Blocked) as error:
            failure = str(error.strerror) if isinstance(error, OSError) else str(error)
            if failure != self._failure:
                self._host.log("warning", f"{shown(self._path + b'/' + name)} cannot be moved to error: {failure}")
            self._failure = failure
            return b""
        self._failure = ""
        return place

    def _report(self, name: bytes, text: str, counts: bool, *, moved: bool) -> None:
        """Report that a file is refused. After too many in a short time, only count it."""
        if not self._lines:
            self._host.loop.call_later(_WINDOW, self._end_window)
        self._lines += 1
        if self._lines > _LINES:
            self._more += 1
            return
        text = f"{shown(self._path + b'/' + name)} {text}"
        if counts:
            self._host.report_refused(text, moved=moved)
        else:
            self._host.log("warning", text)

    def _end_window(self) -> None:
        more, self._lines, self._more = self._more, 0, 0
        if more:
            self._host.log("warning", f"{shown(self._path)}: {more} more files were refused")


def _slot(number: int) -> int:
    """Return the cell that keeps which file was counted as that number, from 0."""
    return COUNTED[number % len(COUNTED)]


def _key(name: bytes, inode: int, born: int) -> int:
    """Return a number for a file; never 0."""
    return zlib.crc32(name) << 32 | zlib.crc32(b"%d %d" % (inode, born)) | 1
