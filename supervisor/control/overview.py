"""The numbers that metrics and the web page show, as rows of values under one row of keys.

A monitor asks for all agents every few seconds, so this is much cheaper for the supervisor than `status`: it reads
memory, makes no system call for an agent without dead letters, and names no key twice. The keys of flows are those of
`status`. `senders` are the pids that an agent reports itself: the reader checks whose children they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from nsbridge.supervisor.control import status
from nsbridge.supervisor.control.lettercounts import LetterCounts
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
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

_WELL = ("idle", "relaying")  # phases of an agent that is not blocked, which is nearly all of them


def rows(routes: Iterable[Route], letters: LetterCounts) -> dict[str, object]:
    """Return the rows of all agents and flows, in the routes' order."""
    agents: list[list[object]] = []
    flows: list[list[object]] = []
    flow_keys: list[str] = []
    for route in routes:
        agents += [_agent(route, agent) for agent in route.agents]
        for flow in status.flows(route, letters.quick):
            flow_keys = flow_keys or list(flow)
            flows.append(list(flow.values()))
    return {"agent_keys": AGENT_KEYS, "agents": agents, "flow_keys": flow_keys, "flows": flows}


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
