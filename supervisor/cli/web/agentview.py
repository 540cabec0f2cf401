"""Texts of an agent's page beside its row: facts of its status, and the lines of `nsbridgectl inspect`."""

from __future__ import annotations

from typing import Any, NamedTuple

from nsbridge.config.text import escape
from nsbridge.supervisor.cli import inspect as inspectview
from nsbridge.supervisor.cli.web.view import duration

_FLOW = (
    ("delivered", "delivered"),
    ("bytes", "bytes"),
    ("pending", "pending"),
    ("repeats_dropped", "repeats dropped"),
    ("in_doubt", "in doubt"),
    ("dead", "put aside in all"),
    ("dead_letters", "put aside now"),
    ("dead_dropped", "of these dropped by the quota"),
    ("refused", "files refused"),
    ("missed", "files that could not be read whole"),
)


class Sections(NamedTuple):
    """Texts without markup: (label, text) of the agent and of each flow, by its heading; lines of inspect."""

    facts: list[tuple[str, str]]
    flows: list[tuple[str, list[tuple[str, str]]]]
    inspect: list[str]


def sections(document: dict[str, Any], inspected: list[dict[str, Any]]) -> Sections:
    """Return them, from the answers of `status` and `inspect` about one agent."""
    (route,) = document["routes"]
    (agent,) = route["agents"]
    serves = agent.get("serves", agent["container"])
    facts: list[tuple[str, object]] = [
        ("container", agent["container"] if serves == agent["container"] else f"{agent['container']}, serves {serves}"),
        ("container's init", agent["container_pid"]),
        ("endpoint", f"{agent['endpoint']} in the {agent['namespace']} namespace"),
        ("delivery", route["delivery"]),
        ("runs since", None if agent["uptime_s"] is None else f"{duration(agent['uptime_s'])} ago"),
        ("restarts", agent["restarts"]),
        ("last exit", agent["last_exit"]),
    ]
    flows = [
        (f"{flow['from']} → {flow['to']}", [(label, _number(flow.get(key))) for key, label in _FLOW if flow.get(key)])
        for flow in route["flows"]
    ]
    shown = [(label, escape(str(value))) for label, value in facts if value is not None]
    return Sections(shown, flows, [line for process in inspected for line in inspectview.lines(process)])


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
