"""Waits for containers to start: calls back when to look, and asks engines, both without blocking.

An engine either has events, which a child reads (engine_watch.py), or names places in the file system, which inotify
watches (places.py), or neither: then its container does not come back, or has never been away.

No report is relied on alone: attachment.py polls as well, rarely where starts are reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.asker import Asker, Inquiry, Located
from nsbridge.supervisor.containers.engine_watch import ANY, EngineWatch
from nsbridge.supervisor.containers.engines import all_engines, engine_of
from nsbridge.supervisor.containers.places import Places
from nsbridge.supervisor.log.log import Log


class Expectation(Protocol):
    """A caller waits for a container."""

    @property
    def is_watched(self) -> bool:
        """True if its start is reported; otherwise it must be polled."""
        ...

    def cancel(self) -> None:
        """Stop waiting. Harmless when done before."""


class Arrivals:
    """All that the daemon waits for. Callbacks come from the loop, and a callback may find nothing."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._places = Places(loop)
        with_events = [engine for engine in all_engines() if engine.has_events]
        self._watches = {engine.kind: EngineWatch(loop, log, engine.kind, engine.follow) for engine in with_events}
        self._askers = {engine.kind: Asker(loop, engine.kind) for engine in all_engines() if engine.blocks}
        self._complaint = ""  # why inotify does not work, as it was logged

    def expect(self, container: Container, callback: Callable[[], None]) -> Expectation:
        """Call `callback` when the container may have started, and once as soon as no start can be missed."""
        engine = engine_of(container.kind)
        if heard := engine.heard_through():
            return _Several([self._watches[each.kind].expect(ANY, callback) for each in heard])
        if engine.has_events:
            return self._watches[container.kind].expect(container.name, callback)
        places = []
        try:
            places = [self._places.expect(*place, callback) for place in engine.places(container.name)]
            self._complaint = ""
        except Blocked as blocked:
            self._complain(str(blocked))
        if places:
            self._loop.call_later(0, callback)
        return _Several(places)

    def watch(self, path: str, callback: Callable[[], None]) -> bool:
        """Call `callback` whenever `path` changes, from now on; return False if it cannot be watched."""
        try:
            place = self._places.expect(*os.path.split(path), callback)
        except Blocked as blocked:
            self._complain(str(blocked))
            return False
        return place.is_watched

    def ask(self, container: Container, on_answer: Callable[[Located], None], *, seen: bool) -> Inquiry:
        """Ask an engine for its container; see Asker.ask."""
        return self._askers[container.kind].ask(container, on_answer, seen=seen)

    def close(self) -> None:
        """Stop all waiting."""
        self._places.close()
        for watch in self._watches.values():
            watch.close()
        for asker in self._askers.values():
            asker.close()

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            self._log.warning("", f"containers are polled, because nothing can report their start: {reason}")


class _Several:
    """All that reports the start of one container; an empty list means that it is polled."""

    def __init__(self, places: Sequence[Expectation]) -> None:
        self._places = places

    @property
    def is_watched(self) -> bool:
        """See Expectation."""
        return bool(self._places) and all(place.is_watched for place in self._places)

    def cancel(self) -> None:
        """See Expectation."""
        for place in self._places:
            place.cancel()
