"""Reports once that an agent has been blocked for longer than `health.max_blocked`, so that an alert needs no polling.

An agent counts as blocked
* while it runs and waits for something that may pass: a full queue, a missing directory (its own word, scoreboard.py);
* while it should run and does not, and messages wait for it (the age of the oldest, in its neighbour's scoreboard).
When that has lasted for `max_blocked`, the log gets one WARNING and the stream of events one event, and `blocked_long`
in status becomes true. The end is an INFO and an event too.

The watch has one timer and no tick. The next look is due when the agent that has been blocked for longest reaches the
limit, and after the time of the limit at the latest: no agent that is not blocked yet can be reported before that.
While an agent is reported, the watch looks every second for the end. A compromised agent chooses the times in its
scoreboard: it may be reported too early or never, and makes the watch look every SOONEST at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nsbridge.agents import scoreboard
from nsbridge.agents.loop import Timer
from nsbridge.config.schema import HealthConfig
from nsbridge.config.text import duration
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.roster import Roster
from nsbridge.supervisor.routes.route import Route

SOONEST = 0.1  # seconds between two looks, at least
END_EVERY = 1.0  # seconds between looks for the end of what was reported


class Blockage(NamedTuple):
    """Since when an agent has been blocked (seconds of CLOCK_MONOTONIC), and why."""

    since: float
    reason: str


class BlockedWatch:
    """The watch of a daemon; it serves itself in the loop from `start` on."""

    def __init__(self, services: Services, roster: Roster) -> None:
        self._loop = services.loop
        self._log = services.log
        self._events = services.events
        self._roster = roster
        self._limit = services.health.max_blocked
        self._timer: Timer | None = None
        self._reported: dict[str, float] = {}  # by agent: since when it has been blocked

    def start(self) -> None:
        """Begin; to be called once."""
        self._look()

    def adopt(self, limits: HealthConfig) -> None:
        """Apply another limit from now on. An agent that was reported is not reported again."""
        self._limit = limits.max_blocked
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    def _look(self) -> None:
        now = self._loop.now()
        due, names = now + self._limit, set()
        for agent, found in self._agents():
            name = agent.config.name
            names.add(name)
            if found is None:
                self._report_end(agent, now)
            elif name in self._reported or now - found.since >= self._limit:
                self._report(agent, found, now)
                due = min(due, now + END_EVERY)
            else:
                due = min(due, found.since + self._limit)
        for name in self._reported.keys() - names:
            del self._reported[name]  # its route is gone
        self._timer = self._loop.call_at(max(due, now + SOONEST), self._look)

    def _agents(self) -> Iterator[tuple[ManagedAgent, Blockage | None]]:
        for route in self._roster.routes.values():
            for agent in route.agents:
                yield agent, blockage(route, agent)

    def _report(self, agent: ManagedAgent, found: Blockage, now: float) -> None:
        name = agent.config.name
        if name in self._reported:
            return
        self._reported[name] = found.since
        agent.blocked_long = True
        text = f"for {duration(now - found.since)}: {found.reason}"
        self._log.warning(name, f"blocked {text}")
        self._events.blocked(name, text)

    def _report_end(self, agent: ManagedAgent, now: float) -> None:
        since = self._reported.pop(agent.config.name, None)
        agent.blocked_long = False
        if since is not None:
            text = f"after {duration(now - since)}"
            self._log.info(agent.config.name, f"not blocked any more, {text}")
            self._events.not_blocked(agent.config.name, agent.state.value, text)


def blockage(route: Route, agent: ManagedAgent) -> Blockage | None:
    """Return since when the agent has been blocked, and why; None if it is not."""
    if agent.state is State.RUNNING:
        cells = agent.scoreboard.cells
        reason = "; ".join(agent.scoreboard.reasons())
        return Blockage(cells[scoreboard.BLOCKED] / 1e9, reason) if reason and cells[scoreboard.BLOCKED] else None
    if not agent.wanted or agent.config.endpoint.in_ is None:
        return None
    for source in route.agents:
        pending, oldest = (source.scoreboard.cells[cell] for cell in (scoreboard.PENDING, scoreboard.OLDEST))
        if source is not agent and pending and oldest:
            waiting = "1 message waits" if pending == 1 else f"{pending:,} messages wait"
            why = f"{agent.state.value}: {agent.detail}" if agent.detail else agent.state.value
            return Blockage(oldest / 1e9, f"{waiting} for it, and it is {why}")
    return None
