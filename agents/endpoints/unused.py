"""Reports a queue that nsbridge made and no program uses: with a wrong key and `create = true` all would look healthy.

The journal keeps which queue was made, so a restart does not end the report.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from nsbridge.agents.endpoints.base import AgentApi

AFTER = 15.0  # seconds that a message has waited for its first reader, or a queue for its first message


class Use(NamedTuple):
    """A queue, as the agent sees it."""

    id: int  # another queue with the same key or name has another
    messages: int
    is_used: bool  # True if a program has read from it (side `in`) or written to it (side `out`)


class WatchedQueue(Protocol):
    """The queue of one side."""

    found_by: str  # programs find it by its `key` or its `name`

    def made(self) -> int | None:
        """Return the id of the queue that the agent has made since the last call; None if it has made none."""
        ...

    def use(self) -> Use | None:
        """Return how the queue is used; None if there is none, or the agent may not look at it."""
        ...


class Journal(Protocol):
    """The part of a journal that is used here."""

    @property
    def cells(self) -> memoryview[int]:
        """Return the cells."""
        ...


class UnusedQueue:
    """The watch over the queue of one side. It looks at every heartbeat, which costs a few system calls."""

    def __init__(self, host: AgentApi, side: str, what: str, queue: WatchedQueue, journal: tuple[Journal, int]) -> None:
        """Begin. `what` names the queue for people; the cell of `journal` keeps which queue was made, as id + 1."""
        self._host = host
        self._side = side
        self._what = what
        self._queue = queue
        self._journal, self._cell = journal
        self._since: float | None = None  # since when it should have been used
        self._reported = ""
        self._is_logged = False
        host.vouch(self.look)

    def look(self) -> float:
        """Report, or end the report; return the time as a voucher does: nothing runs beside the loop."""
        made = self._queue.made()
        if made is not None:
            self._journal.cells[self._cell] = made + 1
            self._since, self._is_logged = None, False
        if self._journal.cells[self._cell] or self._reported:
            self._report()
        return self._host.loop.now()

    def _found(self) -> str:
        """Return what is to be reported; empty if nothing, or not yet."""
        now, found = self._host.loop.now(), self._queue.use()
        if found is None or found.id + 1 != self._journal.cells[self._cell]:
            self._since = None
            return ""
        if found.is_used:
            self._journal.cells[self._cell] = 0
            return ""
        if self._side == "in" and not found.messages:
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        return self._text(found.messages) if now - self._since >= AFTER else ""

    def _text(self, messages: int) -> str:
        if self._side == "out":
            return (
                f"{self._what} was made by nsbridge and nobody has written to it: is the {self._queue.found_by} right?"
            )
        waiting = f"{messages} message{'s wait' if messages > 1 else ' waits'}"
        return f"{self._what} was made by nsbridge and nobody has read from it: {waiting} there"

    def _report(self) -> None:
        text = self._found()
        if text and not self._is_logged:
            self._is_logged = True
            self._host.log("warning", text)
        if text != self._reported:
            self._reported = text
            self._host.notice(self._side, text)
