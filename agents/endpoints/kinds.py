"""The registry of endpoint kinds: one line each, at the end. Every process that loads a configuration imports it."""

from __future__ import annotations

from typing import Any

from nsbridge.agents.confinement import callrules
from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.endpoints import file
from nsbridge.agents.endpoints.kind import ServedEndpoint
from nsbridge.agents.endpoints.log import kind as log
from nsbridge.agents.endpoints.mqueue import kind as mqueue
from nsbridge.agents.endpoints.nats import kind as nats
from nsbridge.agents.endpoints.queue import kind as queue
from nsbridge.agents.endpoints.socket import kind as socket
from nsbridge.agents.endpoints.spool import kind as spool
from nsbridge.config import kind as config

AnyKind = type[ServedEndpoint[Any]]
KINDS: dict[str, AnyKind] = {}  # by name


class UnknownKindError(Exception):
    """No kind of that name is registered."""


def register(kind: AnyKind) -> None:
    """Add a kind of endpoint. Raises ValueError if its name, rules or notes are taken."""
    config.register(kind.table)
    callrules.register(kind.table.name, kind.calls)
    KINDS[kind.table.name] = kind


def named(name: str) -> AnyKind:
    """Return the kind of that name. Raises UnknownKindError."""
    if name not in KINDS:
        raise UnknownKindError(f"{name} is no kind of endpoint: {', '.join(KINDS)}")
    return KINDS[name]


def noted(number: int) -> AnyKind | None:
    """Return the kind whose notes have that number in journals; None if no registered kind has."""
    return next((kind for kind in KINDS.values() if kind.table.notes == number), None) if number else None


def serve(assignment: Assignment) -> ServedEndpoint[Any]:
    """Return the agent's endpoint. Called before the join. Raises UnknownKindError, Gone."""
    endpoint = assignment.agent.endpoint
    return named(endpoint.name)(assignment, endpoint)


register(spool.ServedSpool)
register(log.ServedLog)
register(file.ServedFile)
register(queue.ServedQueue)
register(mqueue.ServedMqueue)
register(nats.ServedNats)
register(socket.ServedSocket)
