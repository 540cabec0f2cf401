"""Measures processes' own memory in a child with a deadline, because a hostile process can make its reader hang.

/proc/PID/smaps_rollup takes the process's mmap_lock. A process that holds it (an mmap(MAP_FIXED) over a dirty mapping
of a FUSE file, whose server does not answer) makes the reader wait in state D, where not even SIGKILL ends it. So:
* One child measures several processes and reports each on a line. If a line does not come within LIMIT, the child is
  killed and the process that it was reading counts as unreadable. Another child measures the others.
* An unreadable process is not measured again while that child still exists: at most one child hangs for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nsbridge.agents.loop import Loop, Timer
from nsbridge.supervisor.health import processes as health
from nsbridge.supervisor.host.spawn import LineChild

LIMIT = 1.0  # seconds for one process; it takes about a millisecond

Found = dict[int, int | None]  # bytes by pid; None if it has ended or cannot be read
Learn = Callable[[Found], None]
Measure = Callable[[int], int | None]


class Measurer:
    """The measurements of a daemon. `own_memory` runs in the child."""

    def __init__(self, loop: Loop, own_memory: Measure = health.own_memory) -> None:
        self._loop = loop
        self._own_memory = own_memory
        self._unreadable: set[int] = set()  # their children hang
        self._reading: set[_Reading] = set()

    def ask(self, pids: Iterable[int], learn: Learn) -> None:
        """Measure these processes, then call `learn` once with the results; never before this returns."""
        wanted = list(dict.fromkeys(pids))
        found: Found = {pid: None for pid in wanted if pid in self._unreadable}
        self._begin([pid for pid in wanted if pid not in found], found, learn)

    def is_unreadable(self, pid: int) -> bool:
        """True if a child still hangs while reading the process."""
        return pid in self._unreadable

    def close(self) -> None:
        """End the children; `learn` is not called any more."""
        for reading in tuple(self._reading):
            reading.abandon()
        self._reading.clear()

    def _begin(self, pids: Sequence[int], found: Found, learn: Learn) -> None:
        if pids:
            try:
                self._reading.add(_Reading(self, pids, found, learn))
            except OSError:  # no process or descriptor is free: it is measured another time
                found |= dict.fromkeys(pids)
            else:
                return
        self._loop.call_later(0, lambda: learn(found))

    def start_child(self, pids: Sequence[int], reading: _Reading) -> LineChild:
        """Start the child of a reading; only a reading calls this. Raises OSError."""
        return LineChild(self._loop, partial(_measure, self._own_memory, tuple(pids)), reading)

    def deadline(self, callback: Callable[[], None]) -> Timer:
        """Set the deadline of a reading; only a reading calls this."""
        return self._loop.call_later(LIMIT, callback)

    def give_up(self, suspect: int, rest: Sequence[int], found: Found, learn: Learn) -> None:
        """Give up `suspect`, at which the child hangs, and continue with the `rest`; only a reading calls this."""
        self._unreadable.add(suspect)
        found[suspect] = None
        self._begin(rest, found, learn)

    def ended(self, reading: _Reading, suspect: int | None) -> None:
        """Note that the child of a reading is gone; only a reading calls this."""
        self._reading.discard(reading)
        if suspect is not None:
            self._unreadable.discard(suspect)


class _Reading:
    """One child and the processes that it measures, in order."""

    def __init__(self, measurer: Measurer, pids: Sequence[int], found: Found, learn: Learn) -> None:
        self._measurer = measurer
        self._left = list(pids)
        self._found = found
        self._learn: Learn | None = learn
        self._suspect: int | None = None
        self._child = measurer.start_child(pids, self)
        self._limit = measurer.deadline(self._too_late)

    def abandon(self) -> None:
        """End it."""
        self._learn = None
        self._limit.cancel()
        self._child.abandon()

    def line_received(self, line: bytes) -> None:
        """See LineListener."""
        if self._learn is None or not self._left:
            return
        self._limit.cancel()
        self._found[self._left.pop(0)] = int(line) if line.isdigit() else None
        self._limit = self._measurer.deadline(self._too_late)

    def child_ended(self, code: int) -> None:  # noqa: ARG002  (any code)
        """See LineListener."""
        self._limit.cancel()
        self._measurer.ended(self, self._suspect)
        learn, self._learn = self._learn, None
        if learn is not None:
            learn(self._found | dict.fromkeys(self._left))

    def _too_late(self) -> None:
        self._child.kill()
        learn, self._learn = self._learn, None
        if learn is None:
            return
        if self._left:
            self._suspect, *rest = self._left
            self._measurer.give_up(self._suspect, rest, self._found, learn)
        else:  # it has reported everything, and does not end
            learn(self._found)


def _measure(own_memory: Measure, pids: Sequence[int], writer: int) -> int:
    """Be the child."""
    for pid in pids:
        memory = own_memory(pid)
        os.write(writer, b"-\n" if memory is None else b"%d\n" % memory)
    return 0
