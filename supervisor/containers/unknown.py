"""Finds names in a configuration that no container of this host has: a typo, an engine that is not installed, or a
container still to come.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import Config, Container
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import NoAnswer, NotKnown, escaped

_NAMED = 8  # containers that a warning lists


def warnings(config: Config) -> list[str]:
    """Return a line for each name that no container of this host has. Blocks for 2 s per engine that does not answer.

    Such a configuration is valid: the agent waits for its container.
    """
    return [*missing_engines(config), *unknown_containers(config)]


def missing_engines(config: Config) -> Iterator[str]:
    """Return a line for each agent whose container cannot be here, for `nsbridged --check`. No engine is asked."""
    for agent in config.agents:
        kind = agent.container.kind
        try:
            if not engine_of(kind).is_installed():
                yield f"{agent.name}: no engine that could have {agent.container} is installed here ({kind})"
        except NsbridgeError as error:
            yield f"{agent.name}: {error}"


def unknown_containers(config: Config) -> Iterator[str]:
    """Yield a line for each container that its engine does not know, with the names that it does."""
    agents: dict[Container, list[str]] = {}
    for agent in config.agents:
        agents.setdefault(agent.container, []).append(agent.name)
    silent: set[ContainerKind] = set()
    for container, names in agents.items():
        kind = container.kind
        if kind in silent:
            continue
        try:
            if engine_of(kind).is_installed():
                engine_of(kind).locate(container.name)
        except NotKnown:
            unknown = f"{kind} knows no container {escaped(container.name)} (yet)"
            yield f"{unknown}; it knows {_known(container)} (container of {', '.join(names)})"
        except NoAnswer:
            silent.add(kind)  # its other containers would cost as long again; status shows the reason
        except NsbridgeError:
            pass  # it is known and does not run, or the daemon will report what is wrong


def _known(container: Container) -> str:
    """Return the names that the engine knows, those like the configured one first."""
    prefix = f"{container.kind}:"
    try:
        listed = [row.name for row in engine_of(container.kind).listed()]
    except NsbridgeError as error:
        return f"others, but cannot list them: {error}"
    names = sorted(name.removeprefix(prefix) for name in listed if name.startswith(prefix))
    similar = difflib.get_close_matches(container.name, names, n=_NAMED)
    ordered = list(dict.fromkeys([*similar, *names]))
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more if ordered else "none"
