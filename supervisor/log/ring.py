"""Keeps the last records of the log, or the last events, and calls subscribers for each new one.

The records concern all routes, and an agent is a fork of the supervisor. So they are bytes in memory that the kernel
wipes in every child (MADV_WIPEONFORK, Linux 4.14), not Python objects. A compromised agent does not find the records of
other routes in its memory.
"""

from __future__ import annotations

import marshal
import mmap
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from typing import Any, ClassVar, Generic, Protocol, TypeVar

_SIZE = 2 << 20  # bytes; a line of the log has some 150
_LONGEST = _SIZE // 8  # bytes of one that is kept
_WIPEONFORK = 18  # MADV_WIPEONFORK, asm-generic/mman-common.h; Python has no name for it


class Named(Protocol):
    """An entry of a ring: a dataclass of numbers and texts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def matches(self, name: str) -> bool:
        """True if it is about `name`: a route, an agent, or "" for everything."""
        ...

    def item(self) -> dict[str, str]:
        """Return the JSON object."""
        ...


T = TypeVar("T", bound=Named)


def concerns(about: str, name: str) -> bool:
    """True if a record about `about` ("" is the daemon) matches `name`: a route, an agent, "" for everything."""
    return name in ("", about) or about.startswith(name + ":")


class Ring(Generic[T]):
    """The last `kept` entries in order; fewer if they need more than `_SIZE` bytes.

    `make` restores an entry from its fields, as dataclasses.astuple returns them.
    """

    def __init__(self, kept: int, make: Callable[..., T]) -> None:
        self._make = make
        self._memory = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # an old kernel
            self._memory.madvise(_WIPEONFORK)
        self._places: deque[tuple[int, int]] = deque()  # where each begins and ends, oldest first
        self._kept = kept
        self._next = 0
        self._subscribers: dict[object, tuple[str, Callable[[T], None]]] = {}

    def add(self, entry: T) -> None:
        """Keep the record, and pass it to its followers."""
        self._keep(marshal.dumps(astuple(entry)))
        for name, subscriber in tuple(self._subscribers.values()):  # a subscriber may end its subscription
            if entry.matches(name):
                subscriber(entry)

    def recent(self, count: int | None = None, name: str = "", most: int = _SIZE) -> list[T]:
        """Return the last `count` about `name`, oldest first, of `most` bytes in all; None: all that are kept."""
        found: deque[T] = deque()
        for start, end in reversed(self._places):
            if count is not None and len(found) >= count:
                break
            entry = self._make(*marshal.loads(self._memory[start:end]))  # noqa: S302
            if entry.matches(name):
                most -= end - start
                if most < 0:
                    break
                found.appendleft(entry)
        return list(found)

    def _keep(self, data: bytes) -> None:
        if len(data) > _LONGEST:
            return
        start = self._next if self._next + len(data) <= _SIZE else 0
        end = start + len(data)
        if start < self._next:  # the oldest entries are behind the last one
            self._forget(self._next, _SIZE)
        self._forget(start, end)
        if len(self._places) == self._kept:
            self._places.popleft()
        self._memory[start:end] = data
        self._places.append((start, end))
        self._next = end

    def _forget(self, start: int, end: int) -> None:
        """Drop the oldest entries that begin between `start` and `end`."""
        while self._places and start <= self._places[0][0] < end:
            self._places.popleft()

    def subscribe(self, subscriber: Callable[[T], None], name: str = "") -> Callable[[], None]:
        """Call `subscriber` for each new entry about `name`; return a function that ends this."""
        key = object()
        self._subscribers[key] = (name, subscriber)

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe
