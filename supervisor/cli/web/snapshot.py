"""One answer of the daemon's method `overview`, and all that needs no history: tone, health, usage of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsbridge.config.errors import UnreachableError
from nsbridge.supervisor.host import procfs

_MOST_SENDERS = 2  # an honest agent has no more

_OTHER_FORM = "nsbridged answers in another form than this nsbridge expects: restart both"
_OF_DAEMON = {"pid", "version", "uptime_s"}
_OF_AGENT = {
    *("name", "container", "endpoint", "state", "wanted", "phase", "detail"),
    *("pid", "senders", "restarts", "start_time", "retry_in_s", "descriptors"),
}
_OF_FLOW = {"from", "to", "delivered", "bytes", "pending", "repeats_dropped", "in_doubt", "dead", "dead_letters"}

OK, OFF, WARN, BAD = "ok", "off", "warn", "bad"  # tones of a row, from good to bad
TONES = (OK, OFF, WARN, BAD)
_STATES = {"FATAL": BAD, "BACKOFF": BAD, "WAITING": WARN, "STARTING": WARN, "STOPPING": WARN}
_PHASES = {"wedged": BAD, "blocked": WARN}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All agents and flows at one instant; keys are those of `status`."""

    daemon: dict[str, Any]
    agents: list[dict[str, Any]]
    flows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Usage:
    """Use of the host by a process, or by an agent with its senders."""

    cpu_s: float
    resident: int  # bytes


def parse(answer: Any) -> Snapshot:
    """Return the snapshot. Raises UnreachableError if the answer is not of this version."""
    try:
        found = Snapshot(
            dict(answer["daemon"]),
            [dict(zip(answer["agent_keys"], row, strict=True)) for row in answer["agents"]],
            [dict(zip(answer["flow_keys"], row, strict=True)) for row in answer["flows"]],
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        raise UnreachableError(_OTHER_FORM) from None
    needed = ([found.daemon], _OF_DAEMON), (found.agents, _OF_AGENT), (found.flows, _OF_FLOW)
    if not all(rows[0].keys() >= keys for rows, keys in needed if rows):
        raise UnreachableError(_OTHER_FORM)
    return found


def route_of(name: str) -> str:
    """Return the route of an agent (ROUTE:AGENT)."""
    return name.partition(":")[0]


def tone(agent: dict[str, Any]) -> str:
    """Return how much an agent needs a person's attention."""
    if not agent["wanted"] and agent["state"] == "STOPPED":
        return OFF
    return _STATES.get(agent["state"]) or _PHASES.get(agent["phase"], OK)


def failing(snapshot: Snapshot) -> list[str]:
    """Return a line for each agent that should run and does not, or has been blocked for long."""
    return [
        f"{agent['name']} is {agent['state']}{': ' + agent['detail'] if agent['detail'] else ''}"
        for agent in snapshot.agents
        if agent["wanted"] and (agent["state"] != "RUNNING" or agent.get("blocked_long"))
    ]


def usage(pid: int | None, senders: Sequence[int] = ()) -> Usage | None:
    """Read what a process uses; None if it is gone. Senders are counted if they are its children."""
    if pid is None:
        return None
    try:
        first = procfs.read_stat(pid)
    except (OSError, ValueError):
        return None
    found = [first]
    for sender in senders[:_MOST_SENDERS]:
        try:
            about = procfs.read_stat(sender)
        except (OSError, ValueError):
            continue
        if about.parent == pid:
            found.append(about)
    return Usage(sum(about.cpu_ticks for about in found) / procfs.TICKS, sum(about.resident for about in found))
