"""The registry of endpoint kinds: the part that the configuration needs. No I/O.

A kind is a frozen dataclass, a subclass of schema.Endpoint. agents/endpoints/kinds.py registers it together with the
code that serves it. So code that loads a configuration imports that module first. The fields are the keys of the kind's
table. Each field has a reader (values.py) in its metadata, or is itself a table, whose class is built in the same way.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nsbridge.config import values
from nsbridge.config.patterns import TakenNames
from nsbridge.config.problems import quoted
from nsbridge.config.schema import Delivery, Endpoint, Namespace, Needs, Place

KINDS: dict[str, type[Endpoint]] = {}  # by name, in the order in which people read them


def register(kind: type[Endpoint]) -> None:
    """Make a kind known to the loader. Raises ValueError if its name or the number of its notes is taken."""
    for other in KINDS.values():
        if kind.name == other.name or (kind.notes and kind.notes == other.notes):
            raise ValueError(f"endpoint kind {kind.name} ({kind.notes}): {other.name} ({other.notes}) is registered")
    KINDS[kind.name] = kind


def reads(reader: values.Reader[Any], *, table: type | None = None, missing: str = "") -> Mapping[str, Any]:
    """Return the metadata of a field: `reader` reads its value, or `table` if the value is a table.

    A field without a default is required; `missing` shows how to write it.
    """
    return {"read": reader, "table": table, "missing": missing}


def same_path(path: str) -> str:
    """Return the path without what makes no difference: doubled and last slashes, and `.`."""
    return "/" + posixpath.normpath(path).lstrip("/")


@dataclass(frozen=True, slots=True)
class PathEndpoint(Endpoint):
    """Common base of the kinds that serve paths in a mount namespace, with inotify on each side."""

    out: str | None = field(default=None, metadata=reads(values.path))
    in_: str | None = field(default=None, metadata=reads(values.path))
    mode: int = field(default=0o660, metadata=reads(values.mode))
    max_message: int = field(default=8 << 20, metadata=reads(values.message_size))

    namespace: ClassVar[Namespace] = Namespace.MNT

    @property
    def longest(self) -> int:
        """See Endpoint."""
        return self.max_message

    @property
    def journal_place(self) -> str:
        """See Endpoint."""
        return posixpath.normpath(self.out) if self.out is not None else ""

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        return {key: path_place(path) for key, path in (("out", self.out), ("in", self.in_)) if path is not None}

    def needs(self, delivery: Delivery) -> Needs:  # noqa: ARG002  (the same for any)
        """See Endpoint."""
        return Needs(watches=(self.out is not None) + (self.in_ is not None))


def path_place(path: str, names: TakenNames | None = None) -> Place:
    """Return the place that a path leads to. `names`: see Place."""
    return Place(where=same_path(path), shown=path, written=quoted(path), path=path, names=names)
