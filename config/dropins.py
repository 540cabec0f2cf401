"""Drop-ins: further files with routes, in the directory beside the configuration, for configuration management.

Beside FILE.toml that is FILE.d. Every `*.toml` in it whose name does not begin with a dot is read, in the order of the
names (of their code points, in any locale). So package managers' and editors' leftovers (x.toml.dpkg-new, x.toml~,
.x.toml.swp) are not. A missing directory has no drop-ins. Root trusts it under the same rules as the file (trusted.py).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nsbridge.config import trusted
from nsbridge.config.descriptors import closing
from nsbridge.config.document import Table, read_text
from nsbridge.config.problems import Problem

MOST = 10_000  # files


class File(NamedTuple):
    """One file of a configuration, as the operator names it: its text, or the problems that prevent reading it."""

    name: str
    text: str
    problems: list[Problem]


def directory(path: str) -> str:
    """Return the directory of the drop-ins for the configuration at `path`."""
    return os.path.splitext(path)[0] + ".d"  # noqa: PTH122  (keeps the path as it was written)


def read(path: str, *, by_root: bool) -> list[File]:
    """Return the drop-ins for the configuration at `path`, in their order."""
    where = directory(path)
    try:
        names = _names(where, by_root=by_root)
    except trusted.UntrustedError as error:
        return [File(where, "", [Problem((), str(error), f"it has the drop-ins of {path}")])]
    except OSError as error:
        fix = f"make it a directory that can be read, or remove it: it is for drop-ins of {path}"
        return [File(where, "", [Problem((), f"cannot be read: {error.strerror}", fix)])]
    if len(names) > MOST:
        return [File(where, "", [Problem((), f"has {len(names)} drop-ins, {MOST} at most", "join some of them")])]
    return [File(name, *read_text(name, by_root=by_root)) for name in (f"{where}/{name}" for name in names)]


def only_routes(tables: Table) -> tuple[Table, list[Problem]]:
    """Return a drop-in's tables without [daemon], and the problem that it is there."""
    if "daemon" not in tables:
        return tables, []
    fix = "write it into the file that nsbridged -c names: a drop-in has [route.NAME] tables only"
    return {key: value for key, value in tables.items() if key != "daemon"}, [
        Problem(("daemon",), "is not for a drop-in", fix)
    ]


def declared_again(route: str, other: str) -> Problem:
    """Return the problem that a route is in another file already."""
    return Problem(("route", route), f"is in {other} too", "remove one of the two, or give it another name")


def _names(where: str, *, by_root: bool) -> list[str]:
    """Return the names of the drop-ins, in order. Raises UntrustedError, OSError."""
    if not os.path.lexists(where):
        return []
    if not by_root:
        return _chosen(os.listdir(where))  # noqa: PTH208
    with closing(trusted.open_directory(where)) as fd:
        return _chosen(os.listdir(fd))  # noqa: PTH208


def _chosen(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".toml") and not name.startswith("."))
