"""The events of one agent: queued, and served by one loop, one at a time. A deadline is an event too.

An event is served in the call that brings it. If another one is being served, it waits until the actions of that one
are done. What follows from an action (LOCATE finds the container at once) goes before what others ask meanwhile, so an
answer never meets a state that has not asked for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.supervisor.lifecycle.table import Event

Take = Callable[[Event, str], None]  # serves an event, which has a reason or ""


class Inbox:
    """Calls `take` for each event."""

    def __init__(self, loop: Loop, take: Take) -> None:
        self._loop = loop
        self._take = take
        self._happened: deque[tuple[Event, str]] = deque()
        self._asked: deque[tuple[Event, str]] = deque()
        self._is_serving = False
        self._timer: Timer | None = None

    def ask(self, event: Event, reason: str = "") -> None:
        """Add an event from outside the machine."""
        self._asked.append((event, reason))
        self._serve()

    def happened(self, event: Event, reason: str = "") -> None:
        """Add an event that follows from an action, or comes from the agent's process or container."""
        self._happened.append((event, reason))
        self._serve()

    def due_in(self, delay: float) -> None:
        """Have DUE happen in so many seconds, instead of at any earlier deadline."""
        self.cancel_deadline()
        self._timer = self._loop.call_later(delay, self._due)

    def cancel_deadline(self) -> None:
        """Have no deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Ignore all events from now on, and forget who served them."""
        self.cancel_deadline()
        self._take = lambda _event, _reason: None

    @property
    def left(self) -> float | None:
        """Return the seconds to the deadline; None if there is none."""
        return None if self._timer is None else max(0.0, self._timer.due - self._loop.now())

    def _due(self) -> None:
        self._timer = None
        self.happened(Event.DUE)

    def _serve(self) -> None:
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while waiting := self._happened or self._asked:
                self._take(*waiting.popleft())
        finally:
            self._is_serving = False
