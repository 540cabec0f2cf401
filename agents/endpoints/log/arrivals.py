"""Counts the files that arrive at a log's path, from inotify's events. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.watch import CREATED, DELETED, MOVED_IN, MOVED_OUT, Change

EVENTS = CREATED | MOVED_IN | MOVED_OUT | DELETED  # watched in a log's directory
_FORMER = 64  # names that are remembered


class News(NamedTuple):
    """The meaning of some changes for the log."""

    concerns_path: bool
    arrivals: int
    moved_to: frozenset[bytes]  # new names of files that were at the path
    concerns_file: bool  # the open file itself changed


_NOTHING = News(False, 0, frozenset(), False)
_WRITTEN = News(False, 0, frozenset(), True)


class LogArrivals:
    """Counts arrivals. A file that was renamed away and comes back under the log's name does not count."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._former: dict[bytes, None] = {}

    def take(self, changes: Sequence[Change]) -> News:
        """Return what these changes mean. The two halves of a rename follow each other."""
        if not any(change.name for change in changes):
            return _WRITTEN if changes else _NOTHING
        arrivals, concerns_path, concerns_file = 0, False, False
        moved: set[bytes] = set()
        before = Change(b"", 0)
        for change in changes:
            name, mask = change
            if not name:
                concerns_file = True
            elif name == self._name:
                concerns_path = True
                returns = before.mask & MOVED_OUT and before.name in self._former
                arrivals += bool(mask & (CREATED | MOVED_IN)) and not (mask & MOVED_IN and returns)
            elif mask & MOVED_IN and before.mask & MOVED_OUT and (before.name == self._name or before.name in moved):
                moved.add(name)
                self._remember(name)
            before = change if name else before
        return News(concerns_path, arrivals, frozenset(moved), concerns_file)

    def _remember(self, name: bytes) -> None:
        self._former[name] = None
        if len(self._former) > _FORMER:
            del self._former[next(iter(self._former))]
