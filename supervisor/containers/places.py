"""Calls back when something happens at a path that may not exist yet; all paths share one inotify instance.

A place is a directory, or one name in a directory. Two directories are watched for it: the last one of its path that
exists, for the next component to appear; and its parent, because a removed directory that a process still has open
gives no event. Each event leads to a new look at the path, so a place is found again however often its directories are
removed and made.

Other programs cause events in these directories (/run, /run/runc) as well: one look into a table drops them, and if
there are very many, they are read with pauses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.watch import LOST, PathEvent, PathWatch
from nsbridge.agents.loop import READABLE, Loop

MANY = 200  # events read at once
REST = 0.02  # seconds until further ones are read
_ANY = b""  # every name in the directory, and the directory itself
_TRIES = 8  # looks at a path that changes while it is looked at; then the next event or the next poll has to do


class WatchedPlace:
    """A caller waits for changes at a place; `callback` is called for each reason to look."""

    def __init__(self, places: Places, directory: str, name: str, callback: Callable[[], None]) -> None:
        self.directory = directory
        self.name = os.fsencode(name)
        self.callback = callback
        self.watches: dict[int, bytes] = {}  # for each watch the name that matters in it
        self._places = places

    @property
    def is_watched(self) -> bool:
        """True if changes give events; otherwise it must be polled."""
        return bool(self.watches)

    def cancel(self) -> None:
        """Stop waiting. Harmless when done before."""
        self._places.forget(self)


class Places:
    """All places that the process watches."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._watch: PathWatch | None = None
        self._index: dict[int, dict[bytes, set[WatchedPlace]]] = {}

    def expect(self, directory: str, name: str, callback: Callable[[], None]) -> WatchedPlace:
        """Wait for `name` in `directory`, both absolute; for anything there if it is empty. Raises Blocked."""
        if self._watch is None:
            self._watch = PathWatch()
            self._loop.watch(self._watch.fileno(), READABLE, self._read)
        place = WatchedPlace(self, directory, name, callback)
        self._settle(place)
        return place

    def forget(self, place: WatchedPlace) -> None:
        """See WatchedPlace.cancel."""
        self._watch_instead(place, {})

    def close(self) -> None:
        """Stop all waiting."""
        if self._watch is not None:
            self._loop.unwatch(self._watch.fileno())
            self._watch.close()
            self._watch = None
        self._index.clear()

    def _settle(self, place: WatchedPlace) -> None:
        """Watch what exists of its path now. Raises Blocked, and then it is not watched."""
        try:
            for _ in range(_TRIES):
                there, missing = self._deepest(place)
                if there == place.directory or not os.path.lexists(os.path.join(there, os.fsdecode(missing))):  # noqa: PTH118
                    return
        except Blocked:
            self._watch_instead(place, {})
            raise

    def _deepest(self, place: WatchedPlace) -> tuple[str, bytes]:
        """Watch the last existing directory of its path, and its parent; return it, and what is missing in it."""
        assert self._watch is not None  # noqa: S101  (there is a place)
        there, awaited = place.directory, place.name
        watches: dict[int, bytes] = {}
        while True:
            try:
                watches[self._watch.add(there)] = awaited
                above, own = os.path.split(there)
                watches.setdefault(self._watch.add(above), os.fsencode(own))
                break
            except FileNotFoundError:
                above, own = os.path.split(there)
                if above == there:
                    break  # a path that does not begin at the root
                there, awaited = above, os.fsencode(own)
        self._watch_instead(place, watches)
        return there, awaited

    def _watch_instead(self, place: WatchedPlace, watches: dict[int, bytes]) -> None:
        before, place.watches = place.watches, watches
        for watch, name in watches.items():
            self._index.setdefault(watch, {}).setdefault(name, set()).add(place)
        for watch, name in before.items():
            if watches.get(watch) != name:
                self._drop(place, watch, name)

    def _drop(self, place: WatchedPlace, watch: int, name: bytes) -> None:
        names = self._index.get(watch, {})
        waiting = names.get(name, set())
        waiting.discard(place)
        if not waiting:
            names.pop(name, None)
        if not names and self._index.pop(watch, None) is not None and self._watch is not None:
            self._watch.drop(watch)

    def _read(self, _events: int) -> None:
        assert self._watch is not None  # noqa: S101  (it is watched)
        events = self._watch.read()
        for place in self._concerned(events):
            if place.watches:  # not forgotten by an earlier one's callback
                try:
                    self._settle(place)
                except Blocked:
                    pass  # it says itself that it is not watched
                place.callback()
        if len(events) > MANY and self._watch is not None:
            self._loop.unwatch(self._watch.fileno())
            self._loop.call_later(REST, self._resume)

    def _resume(self) -> None:
        if self._watch is not None:
            self._loop.watch(self._watch.fileno(), READABLE, self._read)

    def _concerned(self, events: Iterable[PathEvent]) -> set[WatchedPlace]:
        concerned: set[WatchedPlace] = set()
        for watch, name, itself in events:
            if watch == LOST:
                return {place for names in self._index.values() for waiting in names.values() for place in waiting}
            names = self._index.get(watch)
            if names is None:
                continue
            if itself:
                concerned.update(*names.values())
            else:
                concerned.update(names.get(name, ()), names.get(_ANY, ()))
        return concerned
