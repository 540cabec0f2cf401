"""Notices that an engine's container was renamed: status shows it, and the agent follows the name's new owner.

A configuration names a container, and an engine may give that name to another one (`docker rename web old; docker run
--name web`). The agent serves the container that it has entered, under any name, until another *running* container has
the configured name. Then it leaves the one and enters the other, as after a restart of a container.

An engine's events would be faster, but need a permanent child. So the engine is polled by the container's id, and by
the name only if it has changed. Questions that are due at the same time share a child (asker.py).
"""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Found
from nsbridge.supervisor.containers.matchwatch import MatchWatch


class NameWatch:
    """Watches the name of one served container; calls `moved` with the reason once another one has the name."""

    def __init__(
        self, loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
    ) -> None:
        self.serves = ""  # the container's present name, in the form of a configuration; empty: as configured
        self._loop = loop
        self._arrivals = arrivals
        self._container = container
        self._found = found
        self._moved = moved
        self._inquiry: Inquiry | None = None
        self._timer: Timer | None = None
        self._wait()

    @property
    def note(self) -> str:
        """Return the note for status; empty if the name is unchanged."""
        if not self.serves:
            return ""
        return f"serves {self.serves}, which was {self._container}; no other container of that name runs"

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._inquiry is not None:
            self._inquiry.cancel()

    def _wait(self) -> None:
        """Set a timer for the next multiple of the period, so that all watches ask together."""
        period = engine_of(self._container.kind).name_checked_every
        self._timer = self._loop.call_at((self._loop.now() // period + 1) * period, self._ask)

    def _ask(self) -> None:
        served = Container(self._container.kind, self._found.engine_id)
        self._inquiry = self._arrivals.ask(served, self._named, seen=False)

    def _named(self, answer: Located) -> None:
        """Handle the answer by id: the container's present name. Ignore an engine that does not answer."""
        self._inquiry = None
        if not isinstance(answer, Found) or not answer.is_same(self._found):
            self._wait()
        elif answer.engine_name == self._container.name:
            self.serves = ""
            self._wait()
        else:
            self.serves = f"{self._container.kind}:{answer.engine_name}"
            self._inquiry = self._arrivals.ask(self._container, self._owned, seen=False)

    def _owned(self, answer: Located) -> None:
        """Handle the answer by name: the name's new owner, if there is one that runs."""
        self._inquiry = None
        if isinstance(answer, Found) and not answer.is_same(self._found):
            self._moved(f"names another container now (pid {answer.pid}): the previous one is {self.serves}")
        else:
            self._wait()


def watch_name(
    loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
) -> NameWatch | MatchWatch | None:
    """Return a watch if the name can come to mean another container: an engine's, and not configured by its id."""
    engine = engine_of(container.kind)
    if engine.matches_several:
        return MatchWatch(loop, arrivals, container, found, moved)
    if not engine.name_checked_every or not found.engine_id or found.engine_name != container.name:
        return None
    return NameWatch(loop, arrivals, container, found, moved)
