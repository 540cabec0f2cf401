"""Asks an engine from time to time about the name of a container that is served: the common part of two watches.

namewatch.py notices that the name means another container, matchwatch.py that it matches several. All watches of an
engine ask at the same moments, so that their questions share a child (asker.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Found


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
        return ""

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
