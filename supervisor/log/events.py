"""Events of agents and of the daemon, for programs and people who follow: the stream `events`.

A log line is for reading; an event is for acting upon. Each has the agent's name ("" is the daemon), what kind of thing
happened, and what was and is now:

    state     an agent's state has changed (lifecycle/table.py)
    delivery  a running agent has begun to wait (`to` is blocked, `detail` why) or resumes (`to` is relaying)
    blocked   an agent has been blocked for longer than `health.max_blocked` (`to` is blocked_long, `detail` for how
              long and why), or is not any more (`from` is blocked_long, `to` its state)
    dead      a message was put `aside` as a dead letter, `given back` to be delivered, or `dropped`; `detail`: which
    reload    the configuration was read again; `detail` is what followed of it, or why nothing did
    daemon    the daemon `to` started, or stopping
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nsbridge.config.text import escape
from nsbridge.supervisor.log.log import timestamp
from nsbridge.supervisor.log.ring import Ring, concerns

KEPT = 1000  # events in memory


@dataclass(frozen=True, slots=True)
class Happening:
    """One event; wall time in seconds, texts escaped."""

    time: float
    name: str
    event: str
    before: str
    after: str
    detail: str

    def item(self) -> dict[str, str]:
        """Return the JSON object; the time is UTC, ISO 8601, to the millisecond."""
        return {
            "time": timestamp(self.time),
            "name": self.name,
            "event": self.event,
            "from": self.before,
            "to": self.after,
            "detail": self.detail,
        }

    def matches(self, name: str) -> bool:
        """See Named."""
        return concerns(self.name, name)


class Events:
    """The last of them; `clock` is the wall clock."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.ring: Ring[Happening] = Ring(KEPT, Happening)
        self._clock = clock

    def state(self, name: str, before: str, after: str, detail: str) -> None:
        """Report an agent's new state."""
        self._add(name, "state", before, after, detail)

    def delivery(self, name: str, reason: str) -> None:
        """Report that a running agent waits for `reason`; empty when it resumes."""
        before, after = ("relaying", "blocked") if reason else ("blocked", "relaying")
        self._add(name, "delivery", before, after, reason)

    def blocked(self, name: str, detail: str) -> None:
        """Report that an agent has been blocked for long; `detail` has for how long, and why."""
        self._add(name, "blocked", "blocked", "blocked_long", detail)

    def not_blocked(self, name: str, after: str, detail: str) -> None:
        """Report that an agent that was blocked for long is not any more; `after` is its state."""
        self._add(name, "blocked", "blocked_long", after, detail)

    def dead(self, name: str, after: str, detail: str) -> None:
        """Report that a message which the agent could not hand over is `aside`, `given back` or `dropped`."""
        self._add(name, "dead", "", after, detail)

    def refused(self, name: str, after: str, detail: str) -> None:
        """Report a file that the agent can never take: it was `moved` to `error`, or `left` where it is."""
        self._add(name, "refused", "", after, detail)

    def reload(self, detail: str) -> None:
        """Report that the configuration was read again."""
        self._add("", "reload", "", "", detail)

    def daemon(self, after: str, detail: str = "") -> None:
        """Report that the daemon itself is `started` or `stopping`."""
        self._add("", "daemon", "", after, detail)

    def _add(self, name: str, event: str, before: str, after: str, detail: str) -> None:
        self.ring.add(Happening(self._clock(), name, event, before, after, escape(detail)))
