"""Reports, from a child of the supervisor, that directories appear or go, or that a file in one of them does.

A runtime makes a directory for each container, and removes a file in it when the container starts (statefiles.py). An
engine whose names match any of them needs all these changes: one child watches them for all agents that wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from nsbridge.agents.loop import Loop
from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.places import Places, WatchedPlace
from nsbridge.supervisor.containers.rows import names_in

REST = 0.02  # seconds between two reports


def follow_directories(roots: Sequence[str], file: str, writer: int) -> None:
    """Report changes until the process is killed. Raises Blocked, ContainerRefused. See Engine.follow."""
    loop = Loop()
    DirectoryFollower(loop, roots, file, writer)
    engine_events.report_watching(writer)
    loop.run()


class DirectoryFollower:
    """Watches `roots`, which need not exist yet, and `file` in each directory in them."""

    def __init__(self, loop: Loop, roots: Sequence[str], file: str, writer: int) -> None:
        self._loop = loop
        self._file = file
        self._writer = writer
        self._places = Places(loop)
        self._below: dict[str, WatchedPlace] = {}
        self._roots = roots
        self._rests = False
        self._is_due = False  # something changed since the last report
        for root in roots:
            self._places.expect(root, "", self._root_changed)
        self._look()

    def close(self) -> None:
        """Stop watching."""
        self._places.close()

    def _root_changed(self) -> None:
        self._look()
        self._report()

    def _look(self) -> None:
        """Watch each directory that is new below the roots, and no longer those that are gone."""
        there = {f"{root}/{name}" for root in self._roots for name in names_in(root)}
        for gone in self._below.keys() - there:
            self._below.pop(gone).cancel()
        for new in there - self._below.keys():
            self._below[new] = self._places.expect(new, self._file, self._report)

    def _report(self) -> None:
        self._is_due = True
        if not self._rests:
            self._rested()

    def _rested(self) -> None:
        self._rests = self._is_due
        if self._is_due:
            self._is_due = False
            os.write(self._writer, engine_events.SOMETHING + b"\n")
            self._loop.call_later(REST, self._rested)
