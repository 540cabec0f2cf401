"""The log lines that an agent reports, and those about its end.

The agent may be compromised, and a container may make it report more than an operator wants to read: so its lines
are paced.
"""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.config.schema import AgentConfig
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import Log

_LINES = 50  # that an agent may log at once
_REFILL = 10.0  # seconds


class AgentLog:
    """The daemon's log and events as one agent writes into them, from one process to the next."""

    def __init__(self, log: Log, events: Events, name: str) -> None:
        self._log = log
        self._events = events
        self._name = name
        self._budget = LineBudget()

    def log_report(self, fields: dict[str, object], now: float) -> None:
        """Log the agent's report `log`, `dead` or `refused` (agents/control.py), received at monotonic `now`."""
        if not self._budget.spend(now, self._warn):
            return
        text = str(fields.get("text"))
        if fields.get("report") == "dead":
            self._warn(f"dead letter: {text} (nsbridgectl dead list)")
            self._events.dead(self._name, "aside", text)
            return
        if fields.get("report") == "refused":
            self._warn(text)
            self._events.refused(self._name, "moved" if fields.get("moved") is True else "left", text)
            return
        log = {"debug": self._log.debug, "info": self._log.info, "warning": self._log.warning}
        log.get(str(fields.get("level")), self._log.error)(self._name, text)

    def ready(self, pid: int, config: AgentConfig, fields: dict[str, object]) -> None:
        """Log that the agent serves, its user, and its namespace."""
        where = f"in the {config.namespace} namespace of {config.container}"
        self._log.info(self._name, f"ready: pid {pid} {where} as {fields.get('uid')}:{fields.get('gid')}")

    def left_behind(self, pending: int, journal: str) -> None:
        """Log that the agent has stopped with `pending` messages taken and not handed over, unless there are none."""
        if pending:
            what = "1 message waits" if pending == 1 else f"{pending:,} messages wait"
            self._warn(f"{what} in {journal} to be delivered when it runs again")

    def _warn(self, text: str) -> None:
        self._log.warning(self._name, text)


class LineBudget:
    """The limit of lines that may be logged: a token bucket of _LINES that is refilled in _REFILL seconds."""

    def __init__(self) -> None:
        self._refused = 0  # lines that were not logged since one last was
        self._left = float(_LINES)
        self._at = 0.0

    def spend(self, now: float, log: Callable[[str], None]) -> bool:
        """True if one more line may be logged now. Logs first how many lines before it were not logged."""
        self._left = min(_LINES, self._left + (now - self._at) * _LINES / _REFILL)
        self._at = now
        if self._left < 1:
            self._refused += 1
            return False
        self._left -= 1
        if self._refused:
            log(f"{self._refused} lines before this were not logged")
            self._refused = 0
        return True
