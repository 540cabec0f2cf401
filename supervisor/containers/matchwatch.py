"""Notices that a name which may match several containers has come to do so while one of them is served.

A label does not name one container. While exactly one matches, its agent serves it. When another one that matches
starts (a service is scaled to two), each would get a part of the messages, so the agent leaves, and waits until one is
left. The engine is asked by the name, together with all others that are due at the same time (asker.py).
"""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Ambiguous, Found


class MatchWatch:
    """Watches the name of one served container; calls `moved` with the reason once others match as well."""

    def __init__(
        self, loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
    ) -> None:
        self.serves = ""  # a name that the container has got meanwhile; labels do not change
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
        """Return the note for status."""
        return ""

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
        self._inquiry = self._arrivals.ask(self._container, self._answered, seen=False)

    def _answered(self, answer: Located) -> None:
        """Handle the answer by name. Ignore an engine that does not answer: the served container still runs."""
        self._inquiry = None
        match answer:
            case Ambiguous():
                self._moved(f"is not the only one any more: {answer}")
            case Found() if not answer.is_same(self._found):
                self._moved(f"does not match any more: {answer.serves} does")
            case _:
                self._wait()
