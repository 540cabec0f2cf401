"""What is said again and again is logged a few times and then counted: no clock or file in here.

The same text about the same agent at the same level is written BURST times within WINDOW seconds of the first; further
ones are counted, and when the window has passed, one line tells how many there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 10.0  # seconds
BURST = 10
REMEMBERED = 1000  # different texts; beyond that nothing is held back


class Said(NamedTuple):
    """A record's level as logging has it, the agent's name, the text."""

    level: int
    name: str
    text: str


@dataclass(slots=True)
class _Run:
    since: float
    count: int = 0


class Repeats:
    """What was said within the last WINDOW seconds; times are of one monotonic clock."""

    def __init__(self) -> None:
        self._runs: dict[Said, _Run] = {}  # in the order of `since`

    def admit(self, said: Said, now: float) -> bool:
        """Whether it is to be written; `over` comes first."""
        run = self._runs.get(said)
        if run is None:
            if len(self._runs) >= REMEMBERED:
                return True
            run = self._runs[said] = _Run(now)
        run.count += 1
        return run.count <= BURST

    def over(self, now: float | None = None) -> Iterator[tuple[Said, int]]:
        """What was held back and how often, of every window that has passed (None: of all), which is then forgotten."""
        while self._runs:
            said, run = next(iter(self._runs.items()))
            if now is not None and now - run.since < WINDOW:
                return
            del self._runs[said]
            if run.count > BURST:
                yield said, run.count - BURST
