"""The tables of a file as dataclasses: parts of a configuration before check.py's rules, structured one by one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsbridge.config import values
from nsbridge.config.document import Table
from nsbridge.config.kind import reads
from nsbridge.config.readers import READERS, table
from nsbridge.config.schema import Container, DaemonConfig, Delivery, Endpoint, InDoubt, RouteConfig, User, Window

_ROUTE_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(RouteConfig)}


@dataclass(frozen=True, slots=True)
class Document:
    """The main file; its routes are structured one by one."""

    daemon: DaemonConfig = dataclasses.field(default_factory=DaemonConfig)
    route: Table = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DropIn:
    """A drop-in; its routes are structured one by one."""

    route: Table = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteTable:
    """`[route.NAME]`; its agents are structured one by one."""

    agent: Table = dataclasses.field(default_factory=dict)
    delivery: Delivery = _ROUTE_DEFAULTS["delivery"]
    in_doubt: InDoubt = _ROUTE_DEFAULTS["in_doubt"]
    window: Window = _ROUTE_DEFAULTS["window"]
    autostart: bool = _ROUTE_DEFAULTS["autostart"]
    fsync: bool = _ROUTE_DEFAULTS["fsync"]


@dataclass(frozen=True, slots=True)
class AgentTable:
    """Table `[route.NAME.agent.NAME]`, without the key of its endpoint."""

    container: Container = dataclasses.field(
        metadata=reads(values.container, missing='the container, like container = "docker:web"')
    )
    user: User | str | None = dataclasses.field(default=None, metadata=reads(values.user))  # a string is values.OWNER


@functools.cache
def agent_table(kinds: tuple[type[Endpoint], ...]) -> type[AgentTable]:
    """Return the dataclass of an agent's table: `AgentTable` and a field for each kind of endpoint."""
    fields = [(kind.name, kind | None, dataclasses.field(default=None)) for kind in kinds]
    return dataclasses.make_dataclass("AgentTable", fields, bases=(AgentTable,), frozen=True)


TABLE_READERS: Mapping[type, Mapping[str, values.Reader[Any]]] = {
    **READERS,
    Document: {"route": table},
    DropIn: {"route": table},
    RouteTable: {"agent": table, **READERS[RouteConfig]},
}
