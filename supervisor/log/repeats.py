"""Log texts that repeat a few times and then count them: no clock or file in here.

The same text about the same agent at the same level is written BURST times within WINDOW seconds of the first; further
ones are counted, and when the window has passed, one line reports their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 10.0  # seconds
BURST = 10
REMEMBERED = 1000  # different texts; beyond that nothing is held back


class LogText(NamedTuple):
    """Level (a number of logging), name of the agent and text of a record."""

    level: int
    name: str
    text: str


@dataclass(slots=True)
class _Run:
    since: float
    count: int = 0


class Repeats:
    """Texts logged within the last WINDOW seconds; times are of one monotonic clock."""

    def __init__(self) -> None:
        self._runs: dict[LogText, _Run] = {}  # in the order of `since`

    def admit(self, line: LogText, now: float) -> bool:
        """True if the text is to be written; call `over` first."""
        run = self._runs.get(line)
        if run is None:
            if len(self._runs) >= REMEMBERED:
                return True
            run = self._runs[line] = _Run(now)
        run.count += 1
        return run.count <= BURST

    def over(self, now: float | None = None) -> Iterator[tuple[LogText, int]]:
        """Yield what was held back and how often, for every window that has passed (None: all), and forget it."""
        while self._runs:
            line, run = next(iter(self._runs.items()))
            if now is not None and now - run.since < WINDOW:
                return
            del self._runs[line]
            if run.count > BURST:
                yield line, run.count - BURST
