"""Reports files that a spool's source refuses: a few log lines at once, then the number of the others."""

from __future__ import annotations

from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.identity.walk import shown

_LINES = 30  # in each _WINDOW
_WINDOW = 10.0  # seconds


class Refusals:
    """The refused files of the directory at `path`."""

    def __init__(self, host: AgentApi, path: bytes) -> None:
        self._host = host
        self._path = path
        self._shown = 0  # the count in status
        self._lines = 0  # in this window
        self._more = 0  # files that were not logged in it

    def log(self, name: bytes, why: str) -> None:
        """Log that a file is refused. After too many in a short time, only count it."""
        if not self._lines:
            self._host.loop.call_later(_WINDOW, self._end_window)
        self._lines += 1
        if self._lines > _LINES:
            self._more += 1
            return
        self._host.log("warning", f"{shown(self._path + b'/' + name)} {why}; left where it is")

    def _end_window(self) -> None:
        more, self._lines, self._more = self._more, 0, 0
        if more:
            self._host.log("warning", f"{shown(self._path)}: {more} more files were refused, and left where they are")

    def show(self, count: int) -> None:
        """Show in status how many files cannot be taken."""
        if count != self._shown:
            self._shown = count
            self._host.refused(count)
