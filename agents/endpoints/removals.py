"""Logs that a queue was removed: programs may do that again and again."""

from __future__ import annotations

from nsbridge.agents.endpoints.base import AgentApi

_REPORT_EVERY = 10.0  # seconds


class Removals:
    """Logs that the queue was removed: the first time at once, then their number in one line for _REPORT_EVERY.

    A container can remove its queue and make it again thousands of times a second.
    """

    def __init__(self, host: AgentApi, what: str, contents: str = ", with what was in it") -> None:
        self._host = host
        self._what = what
        self._contents = contents
        self._unreported = 0
        self._is_due = False

    def note(self) -> str:
        """Count a removal; return the reason for `status`. Call it with the loop's lock, once for each removal."""
        text = f"{self._what} was removed"
        if self._is_due:
            self._unreported += 1
        else:
            self._host.log("warning", f"{text}{self._contents}")
            self._is_due = True
            self._host.loop.call_later(_REPORT_EVERY, self._report)
        return text

    def _report(self) -> None:
        self._is_due = False
        if self._unreported:
            count, self._unreported = self._unreported, 0
            times = "once more" if count == 1 else f"{count} times more"
            self._host.log("warning", f"{self._what} was removed {times} in the last {_REPORT_EVERY:g} s")
