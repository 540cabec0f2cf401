"""Finds names in a configuration that no container of this host can have: their engine is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import Config
from nsbridge.supervisor.containers.engines import engine_of


def missing_engines(config: Config) -> Iterator[str]:
    """Return a line for each agent whose container cannot be here, for `nsbridged --check`. No engine is asked."""
    for route in config.routes:
        for agent in route.agents:
            kind = agent.container.kind
            try:
                is_installed = engine_of(kind).is_installed()
            except NsbridgeError as error:
                yield f"{agent.name}: {error}"
                continue
            if not is_installed:
                yield f"{agent.name}: no engine that could have {agent.container} is installed here ({kind})"
