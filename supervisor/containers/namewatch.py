"""Asks an engine from time to time about the name of a container that is served: the agent leaves if it must.

* A configuration names a container, and an engine may give that name to another one (`docker rename web old; docker run
  --name web`). The agent serves the container that it has entered, under any name, until another *running* container
  has the configured name. Then it leaves the first and enters the second, as after a restart (NameWatch).
* A label may match several containers. If a second one starts (a service is scaled to two), each would get a part of
  the messages. So the agent leaves, and waits until only one matches (MatchWatch).

An engine's events would be faster, but need a permanent child. All watches of an engine ask at the same moments, so
that their questions share a child (asker.py). An engine that does not answer is ignored: the served container still
runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Ambiguous, Found


class ServedName(ABC):
    """Watches the name of one served container; calls `moved` with the reason once its agent must leave."""

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

    @abstractmethod
    def _ask(self) -> None:
        """Ask the engine; the last answer calls `_wait` or `_moved`."""

    def _wait(self) -> None:
        """Set a timer for the next multiple of the period, so that all watches ask together."""
        period = engine_of(self._container.kind).name_checked_every
        self._timer = self._loop.call_at((self._loop.now() // period + 1) * period, self._ask)

    def _inquire(self, container: Container, on_answer: Callable[[Located], None]) -> None:
        def answered(answer: Located) -> None:
            self._inquiry = None
            on_answer(answer)

        self._inquiry = self._arrivals.ask(container, answered, seen=False)


class NameWatch(ServedName):
    """Leaves once another container has the name. It asks by the container's id, and by name if that was renamed."""

    def _ask(self) -> None:
        self._inquire(Container(self._container.kind, self._found.engine_id), self._named)

    def _named(self, answer: Located) -> None:
        """Handle the answer by id: the container's present name."""
        if not isinstance(answer, Found) or not answer.is_same(self._found):
            self._wait()
        elif answer.engine_name == self._container.name:
            self.serves = ""
            self._wait()
        else:
            self.serves = f"{self._container.kind}:{answer.engine_name}"
            self._inquire(self._container, self._owned)

    def _owned(self, answer: Located) -> None:
        """Handle the answer by name: the name's new owner, if there is one that runs."""
        if isinstance(answer, Found) and not answer.is_same(self._found):
            self._moved(f"names another container now (pid {answer.pid}): the previous one is {self.serves}")
        else:
            self._wait()


class MatchWatch(ServedName):
    """Leaves once others match as well. `serves` stays empty: labels do not change."""

    def _ask(self) -> None:
        self._inquire(self._container, self._answered)

    def _answered(self, answer: Located) -> None:
        match answer:
            case Ambiguous():
                self._moved(f"is not the only one any more: {answer}")
            case Found() if not answer.is_same(self._found):
                self._moved(f"does not match any more: {answer.serves} does")
            case _:
                self._wait()


def watch_name(
    loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
) -> ServedName | None:
    """Return a watch if the name may later lead to another container. None if it cannot, as with a container's id."""
    engine = engine_of(container.kind)
    if engine.matches_several:
        return MatchWatch(loop, arrivals, container, found, moved)
    if not engine.name_checked_every or not found.engine_id or found.engine_name != container.name:
        return None
    return NameWatch(loop, arrivals, container, found, moved)
