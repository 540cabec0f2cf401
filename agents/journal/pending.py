"""Shows how many messages of a source are pending, and since when the oldest has been: its cells of the scoreboard.

A message is pending from the time it is taken until its sink confirms it. The source keeps the time of a few of them,
its marks: the message `first` of a mark, and all up to the next mark, were taken at the mark's time or later. So:
* The age that is shown is never less than the true age of the oldest message.
* It is at most one grain more: the least time between two marks, GRAIN at first. More than MOST marks double the grain
  until half of them are left. Then it is at most 1/64 of the time for which messages have been pending.

The time of a message outlives its agent. The page keeps it while the supervisor lives. For the time after that, the
journal keeps the wall time, in seconds, with the number of its message: written at each heartbeat and at the end, so
that a message costs nothing more. If the journal's number is not that of the oldest message, the age counts anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from nsbridge.agents import scoreboard
from nsbridge.agents.journal.journalfile import VALUE, is_sealed, seal
from nsbridge.agents.journal.sourcejournal import OLDEST, SourceJournal
from nsbridge.agents.loop import Clock

GRAIN = 10_000_000  # ns
MOST = 256  # marks
_SECONDS = 32  # bits of the journal's cell; above them the message's number, modulo 2^16
_NUMBER = 0xFFFF


class PendingGauge:
    """The gauge of a source's agent. Times are ns of CLOCK_MONOTONIC, which `clock` returns in seconds."""

    def __init__(self, journal: SourceJournal, cells: memoryview[int], clock: Clock) -> None:
        self._journal = journal
        self._cells = cells
        self._clock = clock
        self._confirmed = journal.confirmed
        self._last = journal.taken
        self._grain = GRAIN
        self._marks: deque[tuple[int, int]] = deque()  # the first message, and when it was taken
        if self._last > self._confirmed:
            now = int(clock() * 1e9)
            known = cells[scoreboard.OLDEST] or noted_since(journal.cells, self._confirmed, now)
            self._marks.append((self._confirmed + 1, min(known or now, now)))
        self._show()

    def landed(self, seq: int, now: int) -> None:
        """Note that all up to `seq` have been taken."""
        cells, marks = self._cells, self._marks
        cells[scoreboard.TAKEN] = seq
        cells[scoreboard.PENDING] = seq - self._confirmed
        if not marks:
            cells[scoreboard.OLDEST] = now
            marks.append((self._last + 1, now))
        elif now - marks[-1][1] >= self._grain:
            marks.append((self._last + 1, now))
            if len(marks) > MOST:
                self._thin()
        self._last = seq

    def _thin(self) -> None:
        while len(self._marks) > MOST // 2:
            self._grain *= 2
            kept: deque[tuple[int, int]] = deque()
            for mark in self._marks:
                if not kept or mark[1] - kept[-1][1] >= self._grain:
                    kept.append(mark)
            self._marks = kept

    def confirmed(self) -> None:
        """Show what is pending after a confirmation, if one has come."""
        seq = self._journal.confirmed
        if seq == self._confirmed:
            return
        self._confirmed = seq
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= seq + 1:
            marks.popleft()
        if seq >= self._last:
            marks.clear()
        if len(marks) < MOST // 4:
            self._grain = max(GRAIN, self._grain // 2)
        self._show()

    def note(self) -> float:
        """Keep the time of the oldest message in the journal, as wall time. Return the time now (a Voucher)."""
        now = self._clock()
        if self._marks:
            since = int(time.time() - max(0.0, now - self._marks[0][1] / 1e9))
            number = (self._confirmed + 1) & _NUMBER
            self._journal.cells[OLDEST] = seal(number << _SECONDS | max(0, since) & (1 << _SECONDS) - 1)
        return now

    def _show(self) -> None:
        self._cells[scoreboard.PENDING] = self._last - self._confirmed
        self._cells[scoreboard.OLDEST] = self._marks[0][1] if self._marks else 0


def noted_since(cells: Sequence[int], confirmed: int, now: int) -> int:
    """Return since when the message after `confirmed` has been pending, by a source's journal; 0 if that is unknown.

    A wall clock that was set back makes it young, never younger than 0.
    """
    noted = cells[OLDEST]
    if not noted or not is_sealed(noted) or (noted & VALUE) >> _SECONDS != (confirmed + 1) & _NUMBER:
        return 0
    age = max(0.0, time.time() - (noted & (1 << _SECONDS) - 1))
    return max(1, now - int(age * 1e9))
