"""The number of dead letters of each agent, counted again only after its directory has changed.

Callers ask for `status` and metrics often, and both show that number for every flow. So it costs one stat(2) at most.
Adding or removing a name changes the directory's mtime. The kernel's clock for it has a resolution of up to 10 ms, so
two changes can have the same mtime. A count is therefore kept only if the last change was longer ago than that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from nsbridge.agents.statefiles import dead_letters
from nsbridge.supervisor.control import deadletters

_SETTLED_NS = 100_000_000  # after so long without a change, the next one has another mtime
_KEPT = 10_000  # agents, also those that are gone; then it begins anew


class _Counted(NamedTuple):
    version: tuple[int, int, int]  # device, inode, mtime
    number: int | None


class LetterCounts:
    """Counts of the agents of a daemon. `now_ns` is the wall clock, as of files; `count` is deadletters.count."""

    def __init__(
        self,
        state_dir: str,
        now_ns: Callable[[], int] = time.time_ns,
        count: Callable[[str, str], int | None] = deadletters.count,
    ) -> None:
        self._state_dir = state_dir
        self._now_ns = now_ns
        self._count = count
        self._paths: dict[str, str] = {}
        self._counted: dict[str, _Counted] = {}
        self._none_at: dict[str, int] = {}  # what an agent had counted when it had no letter; -1: it has some

    def exact(self, agent: str, put_aside: int) -> int | None:
        """Return the number of letters of `agent` (ROUTE:AGENT) now; None if it cannot be read.

        `put_aside` is how many letters it has counted itself (scoreboard.DEAD), read before the call.
        """
        path = self._paths.get(agent) or self._new_path(agent)
        try:
            found = os.stat(path, follow_symlinks=False)  # noqa: PTH116  (a Path costs more than the call)
        except FileNotFoundError:
            self._none_at[agent] = put_aside
            return 0
        except OSError:
            return None
        version = (found.st_dev, found.st_ino, found.st_mtime_ns)
        counted = self._counted.get(agent)
        if counted is not None and counted.version == version:
            return counted.number
        number = self._count(self._state_dir, agent)
        self._none_at[agent] = put_aside if number == 0 else -1
        if self._now_ns() - found.st_mtime_ns > _SETTLED_NS:
            self._counted[agent] = _Counted(version, number)
        return number

    def quick(self, agent: str, put_aside: int) -> int | None:
        """Return the same without a system call where it can be 0 only.

        An agent writes a letter before it counts it. So where there was none, there is none until it counts one more.
        Letters that a person puts there by hand are not seen before `exact` is asked.
        """
        return 0 if self._none_at.get(agent) == put_aside else self.exact(agent, put_aside)

    def _new_path(self, agent: str) -> str:
        if len(self._paths) >= _KEPT:
            for kept in (self._paths, self._counted, self._none_at):
                kept.clear()
        path = self._paths[agent] = str(dead_letters(self._state_dir, agent))
        return path
