"""The numbers that metrics and the web page show, as rows of values under one row of keys.

A monitor asks for all agents every few seconds, so this is much cheaper for the supervisor than `status`: it reads
memory, makes no system call for an agent without dead letters, and names no key twice. The keys of flows are those of
`status`. `senders` are the pids that an agent reports itself: the reader checks whose children they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from nsbridge.agents import scoreboard
from nsbridge.supervisor.control import status
from nsbridge.supervisor.control.lettercounts import LetterCounts
from nsbridge.supervisor.health import check as healthcheck
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.route import Route

AGENT_KEYS = (
    "name",
    "container",
    "endpoint",
    "state",
    "wanted",
    "phase",
    "detail",
    "pid",
    "senders",
    "restarts",
    "start_time",
    "retry_in_s",
    "memory",
    "descriptors",
    "blocked_s",
    "blocked_long",
)

_PHASE, _DETAIL = AGENT_KEYS.index("phase"), AGENT_KEYS.index("detail")
_WELL = ("idle", "relaying")  # phases of an agent that is not blocked, which is nearly all of them


class _Kept(NamedTuple):
    """The row of an agent that was well, and the objects that it was made of."""

    process: AgentProcess
    usage: object
    wanted: bool
    row: list[object]


class Overview:
    """The rows of a daemon. The row of an agent that is well is made once: only its phase changes from then on."""

    def __init__(self, letters: LetterCounts) -> None:
        self._letters = letters
        self._kept: dict[str, _Kept] = {}  # by the agent's name

    def rows(self, routes: Iterable[Route]) -> dict[str, object]:
        """Return the rows of all agents and flows, in the routes' order."""
        agents: list[list[object]] = []
        flows: list[list[object]] = []
        flow_keys: list[str] = []
        now, kept = time.monotonic(), self._kept
        self._kept = {}
        for route in routes:
            agents += [self._row(route, agent, kept.get(agent.config.name), now) for agent in route.agents]
            for flow in status.flows(route, self._letters.quick):
                flow_keys = flow_keys or list(flow)
                flows.append(list(flow.values()))
        return {"agent_keys": AGENT_KEYS, "agents": agents, "flow_keys": flow_keys, "flows": flows}

    def _row(self, route: Route, agent: ManagedAgent, kept: _Kept | None, now: float) -> list[object]:
        process = agent.process
        if process is None or not _is_well(agent, process, now):
            return _agent(route, agent)
        if kept is None or (kept.process, kept.usage, kept.wanted) != (process, process.usage, agent.wanted):
            kept = _Kept(process, process.usage, agent.wanted, _agent(route, agent))
        else:
            kept.row[_PHASE] = "relaying" if agent.scoreboard.cells[scoreboard.PENDING] else "idle"
        if not kept.row[_DETAIL]:
            self._kept[agent.config.name] = kept
        return kept.row


def _is_well(agent: ManagedAgent, process: AgentProcess, now: float) -> bool:
    """True if the agent runs, works, and has no text to show."""
    board, watch = agent.scoreboard, agent.attachment.name_watch
    return not (
        agent.state is not State.RUNNING
        or process.wedged
        or board.cells[scoreboard.SENDERS]
        or board.has_texts()
        or (watch is not None and watch.note)
        or healthcheck.wedged(agent, now)
    )


def _agent(route: Route, agent: ManagedAgent) -> list[object]:
    """Return the values of AGENT_KEYS."""
    config, process = agent.config, agent.process
    phase, detail = status.phase_of(agent)
    usage = process.usage if process else None
    return [
        config.name,
        str(config.container),
        config.endpoint.name,
        agent.state.value,
        agent.wanted,
        phase,
        detail,
        process.child.pid if process else None,
        [pid for pid in agent.scoreboard.senders() if pid] if process else [],
        agent.restarts,
        process.ready_at if process else None,
        status.seconds(agent.retry_in),
        usage.memory if usage else None,
        usage.descriptors if usage else None,
        *((None, False) if phase in _WELL else status.blocked(route, agent).values()),
    ]
