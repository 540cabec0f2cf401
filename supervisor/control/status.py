"""Document that `nsbridgectl status --json` prints, made of the supervisor's objects, in schema 1."""

from __future__ import annotations

import time
from collections.abc import Callable

from nsbridge.agents import scoreboard
from nsbridge.supervisor.health import check as healthcheck
from nsbridge.supervisor.health.blocked import blockage
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.route import Route

Letters = Callable[[str, int], int | None]  # LetterCounts.exact or .quick


def route_status(route: Route, agents: list[ManagedAgent], letters: Letters) -> dict[str, object]:
    """Return one route with the chosen ones of its agents, and always the flows between all of them."""
    return {
        "name": route.config.name,
        "delivery": route.config.delivery.value,
        "agents": [agent_status(agent) | blocked(route, agent) for agent in agents],
        "flows": flows(route, letters),
    }


def agent_status(agent: ManagedAgent) -> dict[str, object]:
    """Return the entry of one agent."""
    phase, detail = phase_of(agent)
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
        "uptime_s": seconds(agent.uptime),
        "start_time": agent.process.ready_at if agent.process else None,
        "restarts": agent.restarts,
        "last_exit": agent.last_exit,
        "retry_in_s": seconds(agent.retry_in),
        "detail": detail,
        "health": _health(agent),
    }


def blocked(route: Route, agent: ManagedAgent) -> dict[str, object]:
    """Return for how many seconds the agent has been blocked, and whether that is too long (health/blocked.py)."""
    found = blockage(route, agent)
    blocked_s = None if found is None else round(max(0.0, time.monotonic() - found.since), 3)
    return {"blocked_s": blocked_s, "blocked_long": found is not None and agent.blocked_long}


def _serves(agent: ManagedAgent) -> str:
    """Return the container's name; another than the configured one if it was renamed, or found by a pattern."""
    watch = agent.attachment.name_watch
    return (watch.serves if watch is not None else "") or agent.attachment.serves or str(agent.config.container)


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


def phase_of(agent: ManagedAgent) -> tuple[str, str]:
    """Return (phase, detail): a running agent is idle, relaying, or blocked and why; any may be wedged."""
    if wedged := healthcheck.wedged(agent, time.monotonic()):
        return "wedged", wedged
    if agent.state is not State.RUNNING:
        return agent.state.value.lower(), agent.detail
    has_texts = agent.scoreboard.has_texts()
    if has_texts and (reasons := agent.scoreboard.reasons()):
        return "blocked", "blocked: " + "; ".join(reasons)
    notes = ["a bare namespace file: the end of its container cannot be seen"] if agent.is_blind else []
    if agent.attachment.name_watch is not None and (note := agent.attachment.name_watch.note):
        notes.append(note)
    if agent.attachment.serves:
        notes.append(f"serves {agent.attachment.serves}")
    if missing := [what for what, has in (agent.confinement or {}).items() if not has]:
        notes.append(f"runs without {', '.join(missing)}")
    if has_texts:
        notes += agent.scoreboard.notices()
    return "relaying" if agent.scoreboard.cells[scoreboard.PENDING] else "idle", "; ".join(notes)


def seconds(time_s: float | None) -> float | None:
    """Return it to the millisecond; None if there is none."""
    return None if time_s is None else round(time_s, 3)


def flows(route: Route, letters: Letters) -> list[dict[str, object]]:
    """Return the flows of a route: one for each direction that it has."""
    return [_flow(source, sink, letters) for source, sink in route.directions]


def _flow(source: ManagedAgent, sink: ManagedAgent, letters: Letters) -> dict[str, object]:
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
        "dead_letters": letters(sink.config.name, handed[scoreboard.DEAD]),
        "refused": taken[scoreboard.REFUSED_TOTAL],
        "refused_now": taken[scoreboard.REFUSED],
        "waiting_files": taken[scoreboard.WAITING_FILES],
        "oldest_pending_s": _oldest_pending(taken),
    }


def _oldest_pending(cells: memoryview[int]) -> float | None:
    """Return for how many seconds the oldest message of a source has been pending; None if there is none."""
    since = cells[scoreboard.OLDEST]
    if not cells[scoreboard.PENDING] or not since:
        return None
    return round(max(0, time.monotonic_ns() - since) / 1e9, 3)
