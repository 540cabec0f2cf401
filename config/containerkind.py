"""The registry of container kinds: what may stand before the colon of `container = "KIND:NAME"`, and what after it.

The configuration lists no engine. Each engine registers its kind (supervisor/containers/engines/), and the rules and
messages of the configuration come from what is registered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContainerKind:
    """A way to name a container. Kinds are equal if their prefixes are."""

    prefix: str  # the word before the colon
    pattern: re.Pattern[str] | None = field(compare=False)  # of the whole name; None: an absolute path
    fix: str = field(compare=False)  # how a name is written, for an operator who wrote another one
    is_unique: bool = field(default=False, compare=False)  # different names are different containers
    is_host: bool = field(default=False, compare=False)  # the host itself: it has no name, and no namespace is joined
    is_namespace_file: bool = field(default=False, compare=False)  # the path may end with the namespace's kind

    def __str__(self) -> str:
        return self.prefix


_KINDS: dict[str, ContainerKind] = {}


def register(kind: ContainerKind) -> None:
    """Make a kind known to the configuration. Raises ValueError if its prefix is taken."""
    if kind.prefix in _KINDS:
        raise ValueError(f"container kind {kind} is registered twice")
    _KINDS[kind.prefix] = kind


def known() -> dict[str, ContainerKind]:
    """Return all kinds by prefix. Raises LookupError if no engine was registered, which is a program's mistake."""
    if not _KINDS:
        raise LookupError("no container kind is registered: import nsbridge.supervisor.containers.engines")
    return _KINDS
