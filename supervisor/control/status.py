"""Document that `nsbridgectl status --json` prints, made of the supervisor's objects, in schema 1."""

from __future__ import annotations

import time

from nsbridge.agents import scoreboard
from nsbridge.config.schema import Endpoint
from nsbridge.supervisor.control import deadletters
from nsbridge.supervisor.health import check as healthcheck
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.route import Route


def route_status(route: Route, agents: list[ManagedAgent], state_dir: str) -> dict[str, object]:
    """Return one route with the chosen ones of its agents, and always the flows between all of them."""
    return {
        "name": route.config.name,
        "delivery": route.config.delivery.value,
        "agents": [agent_status(agent) for agent in agents],
        "flows": _flows(route, state_dir),
    }


def agent_status(agent: ManagedAgent) -> dict[str, object]:
    """Return the entry of one agent."""
    phase, detail = _phase(agent)
    return {
        "name": agent.config.name,
        "container": str(agent.config.container),
        "serves": _serves(agent),
        "namespace": agent.config.namespace.value,
        "ns_inode": agent.attachment.ns_inode,
        "endpoint": agent.config.endpoint.name,
        "state": agent.state.value,
        "wanted": agent.wanted,
        "phase": phase,
        "pid": agent.pid,
        "senders": agent.senders,
        "confinement": agent.confinement,
        "evidence": agent.evidence,
        "no_counter": agent.no_counter,
        "container_pid": agent.container_pid,
        "uptime_s": None if agent.uptime is None else round(agent.uptime, 3),
        "restarts": agent.restarts,
        "last_exit": agent.last_exit,
        "retry_in_s": None if agent.retry_in is None else round(agent.retry_in, 3),
        "detail": detail,
        "health": _health(agent),
    }


def _serves(agent: ManagedAgent) -> str:
    """Return the container's name; another than the configured one if the container was renamed."""
    watch = agent.attachment.name_watch
    return (watch.serves if watch is not None else "") or str(agent.config.container)


def _health(agent: ManagedAgent) -> dict[str, object] | None:
    """Return seconds since its last sign of life, and its size if it was measured. None if it has no process."""
    if agent.process is None:
        return None
    usage = agent.process.usage
    return {
        "silent_s": round(healthcheck.silence(agent, time.monotonic()), 3),
        "memory": usage.memory if usage else None,
        "descriptors": usage.descriptors if usage else None,
    }


def _phase(agent: ManagedAgent) -> tuple[str, str]:
    """Return (phase, detail): a running agent is idle, relaying, or blocked and why; any may be wedged."""
    if wedged := healthcheck.wedged(agent, time.monotonic()):
        return "wedged", wedged
    if agent.state is not State.RUNNING:
        return agent.state.value.lower(), agent.detail
    if reasons := agent.scoreboard.reasons():
        return "blocked", "blocked: " + "; ".join(reasons)
    notes = ["a bare namespace file: the end of its container cannot be seen"] if agent.is_blind else []
    if agent.attachment.name_watch is not None and (note := agent.attachment.name_watch.note):
        notes.append(note)
    if missing := [what for what, has in (agent.confinement or {}).items() if not has]:
        notes.append(f"runs without {', '.join(missing)}")
    notes += agent.scoreboard.notices()
    return "relaying" if agent.scoreboard.cells[scoreboard.PENDING] else "idle", "; ".join(notes)


def _flows(route: Route, state_dir: str) -> list[dict[str, object]]:
    first, second = route.agents
    return [_flow(one, other, state_dir) for one, other in ((first, second), (second, first)) if _goes(one, other)]


def _goes(source: ManagedAgent, sink: ManagedAgent) -> bool:
    out: Endpoint = source.config.endpoint
    return out.out is not None and sink.config.endpoint.in_ is not None


def _flow(source: ManagedAgent, sink: ManagedAgent, state_dir: str) -> dict[str, object]:
    taken, handed = source.scoreboard.cells, sink.scoreboard.cells
    return {
        "from": source.config.name,
        "to": sink.config.name,
        "delivered": handed[scoreboard.HANDED],
        "bytes": handed[scoreboard.HANDED_BYTES],
        "pending": taken[scoreboard.PENDING],
        "repeats_dropped": handed[scoreboard.REPEATS_DROPPED],
        "in_doubt": handed[scoreboard.IN_DOUBT],
        "missed": taken[scoreboard.MISSED],
        "missed_bytes": taken[scoreboard.MISSED_BYTES],
        "dead": handed[scoreboard.DEAD],
        "dead_dropped": handed[scoreboard.DEAD_DROPPED],
        "dead_letters": deadletters.count(state_dir, sink.config.name),
        "refused": taken[scoreboard.REFUSED],
    }
