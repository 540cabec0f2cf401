"""Names of a spool that are set aside, because their files cannot be taken now: when to look at each of them again.

A name is looked at again with exponential backoff. Its delay is remembered until its file is taken or gone, so that the
next delay is longer. All names together have a limit of looks in a second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from nsbridge.agents.loop import Loop, Timer

_MOST = 1 << 17  # names that are remembered as set aside; about 20 MB
_FIRST_DELAY = 0.05  # seconds until a name is looked at again; doubled each time
_MAX_DELAY = 0.5
_LOOKS = 1000.0  # names that are looked at again in a second, at most


@dataclass(slots=True)
class _Aside:
    why: str  # empty if it only has to become ready
    delay: float  # seconds from one look to the next
    due: float
    waits: bool = True  # for its next look


class NamesAside:
    """The names that are set aside. `look` is called for each that is due, and `looked` after them."""

    def __init__(self, loop: Loop, look: Callable[[bytes], None], looked: Callable[[], None]) -> None:
        self.refused = 0  # names with a reason that the operator should know
        self._loop = loop
        self._look = look
        self._looked = looked
        self._names: dict[bytes, _Aside] = {}
        self.names = self._names.keys()  # those that are set aside
        self._due: list[tuple[float, bytes]] = []  # a heap
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    @property
    def is_full(self) -> bool:
        """True if another name can be added only in place of one."""
        return len(self._names) >= _MOST

    def oldest(self) -> bytes:
        """Return the name that was added first."""
        return next(iter(self._names))

    def add(self, name: bytes, why: str, delay: float) -> bool:
        """Set a name aside for at least `delay` seconds; return True if this reason is new for it."""
        before = self._names.get(name)
        self.drop(name)
        slowest = max(_MAX_DELAY, len(self._names) / _LOOKS)
        wait = max(delay, _FIRST_DELAY if before is None else min(2 * before.delay, slowest))
        due = self._loop.now() + wait
        self._names[name] = _Aside(why, wait, due)
        self.refused += bool(why)
        heapq.heappush(self._due, (due, name))
        self._arm()
        return (before.why if before is not None else "") != why

    def drop(self, name: bytes) -> None:
        """Forget that the name was set aside."""
        aside = self._names.pop(name, None)
        if aside is not None:
            self.refused -= bool(aside.why)

    def clear(self) -> None:
        """Forget all names."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._names.clear()
        self._due.clear()
        self.refused = 0

    def look_at_unready(self) -> None:
        """Look now at every name that only has to become ready."""
        for name in [name for name, aside in self._names.items() if aside.waits and not aside.why]:
            self._look_at(name)

    def _arm(self) -> None:
        due = self._due[0][0]
        if self._timer is None or self._timer.callback is None or self._timer.due > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._look_at_due)

    def _look_at_due(self) -> None:
        now = self._loop.now()
        while self._due and self._due[0][0] <= now:
            due, name = heapq.heappop(self._due)
            aside = self._names.get(name)
            if aside is not None and aside.waits and aside.due == due:
                self._look_at(name)
        if self._due:
            self._arm()
        self._looked()

    def _look_at(self, name: bytes) -> None:
        self._names[name].waits = False
        self._look(name)
