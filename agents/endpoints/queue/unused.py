"""Reports a queue that nsbridge made and no program uses: with a wrong key and `create = true` all would look healthy.

The kernel keeps the time of a queue's last msgrcv and of its last msgsnd, 0 before the first. MSG_COPY, by which an
agent looks at messages, changes neither. The journal keeps which queue was made, so a restart does not end the report.
"""

from __future__ import annotations

from typing import Protocol

from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.queue.cells import MADE
from nsbridge.agents.endpoints.queue.queue import QueueOwner, QueueUse, shown, use_of

AFTER = 15.0  # seconds that a message has waited for its first reader, or a queue for its first message


class Journal(Protocol):
    """The part of a journal that is used here."""

    @property
    def cells(self) -> memoryview[int]:
        """Return the cells."""
        ...


class UnusedQueue:
    """The watch over the queue of one side. It looks at every heartbeat, which costs a few system calls."""

    def __init__(self, host: AgentApi, side: str, key: int, owner: QueueOwner, journal: Journal) -> None:
        self._host = host
        self._side = side
        self._key = key
        self._owner = owner
        self._journal = journal
        self._since: float | None = None  # since when it should have been used
        self._reported = ""
        self._is_logged = False
        host.vouch(self.look)

    def look(self) -> float:
        """Report, or end the report; return the time as a voucher does: nothing runs beside the loop."""
        made = self._owner.made.pop(self._key, None)
        if made is not None:
            self._journal.cells[MADE] = made + 1
            self._since, self._is_logged = None, False
        if self._journal.cells[MADE] or self._reported:
            self._report(self._found())
        return self._host.loop.now()

    def _found(self) -> str:
        """Return what is to be reported; empty if nothing, or not yet."""
        now, found = self._host.loop.now(), use_of(self._key)
        if found is None or found.id + 1 != self._journal.cells[MADE]:
            self._since = None
            return ""
        if found.was_read if self._side == "in" else found.was_sent_to:
            self._journal.cells[MADE] = 0
            return ""
        if self._side == "in" and not found.messages:
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        return self._text(found) if now - self._since >= AFTER else ""

    def _text(self, found: QueueUse) -> str:
        made = f"{shown(self._key)} was made by nsbridge and nobody has"
        if self._side == "out":
            return f"{made} written to it: is the key right?"
        return f"{made} read from it: {found.messages} message{'s wait' if found.messages > 1 else ' waits'} there"

    def _report(self, text: str) -> None:
        if text and not self._is_logged:
            self._is_logged = True
            self._host.log("warning", text)
        if text != self._reported:
            self._reported = text
            self._host.notice(self._side, text)
