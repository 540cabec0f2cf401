"""The reader of each key of the configuration, but for those of endpoints (config/kind.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsbridge.config import values
from nsbridge.config.document import Table
from nsbridge.config.problems import InvalidValue, shown
from nsbridge.config.schema import (
    Confinement,
    ControlConfig,
    DaemonConfig,
    DeadConfig,
    Delivery,
    Evidence,
    HealthConfig,
    InDoubt,
    LogConfig,
    RouteConfig,
    WhenFull,
    Window,
)


def table(value: object) -> Table:
    """Read a table of any keys."""
    if not isinstance(value, dict):
        raise InvalidValue(f"must be a table, got {shown(value)}", "write it as [table] or as { key = value }")
    return value


# Every field that is not a table of its own has its reader here, or in its metadata (config/kind.py).
# Lengths are bytes, numbers without a unit are counts.
READERS: Mapping[type, Mapping[str, values.Reader[Any]]] = {
    DaemonConfig: {
        "state_dir": values.path_like("/run/nsbridge"),
        "require": values.listed(values.member(Confinement)),
        "evidence": values.member(Evidence),
    },
    ControlConfig: {
        "path": values.socket_path,
        "mode": values.mode,
        "group": values.group,
        "read_group": values.group,
    },
    DeadConfig: {
        "max_bytes": values.size,
        "max_letters": values.integer(1, 100_000),  # an agent lists each of its letters: about 250 bytes of memory
        "when_full": values.member(WhenFull),
        "max_age": values.duration("1s", "3650d"),
    },
    LogConfig: {
        "file": values.path_like("/var/log/nsbridge.log"),
        "level": values.choice("debug", "info", "warning", "error"),
        "format": values.choice("text", "json"),
        "max_bytes": values.size,
        "backups": values.integer(0, 1000),
    },
    HealthConfig: {
        "deadline": values.duration("500ms", "24h"),
        "max_memory": values.size,
        "max_descriptors": values.integer(32, 1 << 20),
        "max_blocked": values.duration("1s", "30d"),
    },
    RouteConfig: {
        "delivery": values.member(Delivery),
        "in_doubt": values.member(InDoubt),
        "autostart": values.boolean,
        "fsync": values.boolean,
    },
    Window: {"messages": values.integer(1, values.I64_MAX), "bytes": values.size},
}
