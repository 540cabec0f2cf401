"""Decides whether a log file that was read to its end is finished, or what it waits for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.log.framing import Item, Unended
from nsbridge.agents.endpoints.log.tail import Tail
from nsbridge.agents.loop import Loop

_QUIET = 5.0  # seconds without a write after which a renamed file has ended, if leases do not work
_PATIENCE = 5.0  # seconds after which status shows the wait for a preallocated file
_POLL = 0.5  # seconds between looks at such a file: a write through a mapping causes no event


class Ends:
    """The ends of one log's files; messages name the log as `shown`. Calls `again` when it is time to look again."""

    def __init__(self, loop: Loop, shown: str, again: Callable[[], None]) -> None:
        self._loop = loop
        self._shown = shown
        self._again = again
        self._quiet_since = (0, 0.0)  # of a renamed file: its size, and when it was seen first
        self._unwritten_since = (-1, 0.0)  # of a preallocated file: the place, and when it was reached
        self._polls = False

    def finish(self, tail: Tail) -> tuple[Sequence[Item | Unended], bool]:
        """Return the rest of a file that is no longer at the path, and True if it has ended with that.

        Raises Blocked while a process has it open for writing; TruncatedError, OSError.
        """
        held = files.lease(tail.fd)
        try:
            if not held and not (held is None and self._is_quiet(tail)):
                what = "was renamed and is still open for writing" if held is False else "was renamed a moment ago"
                raise Blocked(f"{self._shown}: the previous file {what}: the new one is read after it has ended")
            items = tail.read()
        finally:
            if held:
                files.end_lease(tail.fd)
        return (tail.end(), True) if items is None else (items, False)

    def await_writing(self, tail: Tail) -> None:
        """Wait for writes into the preallocated rest of the file. Raises Blocked after a while, for status."""
        now = self._loop.now()
        if self._unwritten_since[0] != tail.reached:
            self._unwritten_since = (tail.reached, now)
        if now - self._unwritten_since[1] >= _PATIENCE:
            what = f"{tail.unwritten} bytes from byte {tail.reached} on are preallocated and empty"
            raise Blocked(f"{self._shown}: {what}: they are read once written, or once the file is rotated")
        if not self._polls:
            self._polls = True
            self._loop.call_later(_POLL, self._poll)

    def _poll(self) -> None:
        self._polls = False
        self._again()

    def _is_quiet(self, tail: Tail) -> bool:
        size, now = os.fstat(tail.fd).st_size, self._loop.now()
        if self._quiet_since[0] != size + 1:
            self._quiet_since = (size + 1, now)
        return now - self._quiet_since[1] >= _QUIET
