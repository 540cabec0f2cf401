"""The full name of an agent: ROUTE:AGENT."""

from __future__ import annotations


def joined(route: str, agent: str) -> str:
    """Return the full name."""
    return f"{route}:{agent}"


def split(name: str) -> tuple[str, str]:
    """Return the route and the agent's name in it."""
    route, _, agent = name.partition(":")
    return route, agent
