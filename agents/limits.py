"""Finds the process limit behind an error: the kernel's numbers alone (EMFILE, EFBIG, EAGAIN) do not show it.

An agent inherits the daemon's limits (getrlimit(2)). It may not ask once it is confined, so it reads them before.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from typing import NamedTuple


class _Limit(NamedTuple):
    name: str
    number: int
    unit: str
    fix: str


_BY_ERRNO: Mapping[int, _Limit] = {
    errno.EMFILE: _Limit("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, "descriptors", "LimitNOFILE= in the unit, ulimit -n"),
    errno.EFBIG: _Limit("RLIMIT_FSIZE", resource.RLIMIT_FSIZE, "bytes of a file", "LimitFSIZE= in the unit, ulimit -f"),
    errno.EAGAIN: _Limit(
        "RLIMIT_NPROC",
        resource.RLIMIT_NPROC,
        "processes of uid {uid}",
        "LimitNPROC= in the unit, ulimit -u",
    ),
}

_INFINITE = resource.RLIM_INFINITY
_known: dict[int, int] = {}  # soft limits, as this agent had them before it was confined


def explained(error: Exception) -> str:
    """Return one line: what failed, where, and the limit that caused it, if there is one."""
    if not isinstance(error, OSError):
        return str(error)
    where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    text = f"{error.strerror or error}{where}"
    limit = _BY_ERRNO.get(error.errno or 0)
    allowed = _known.get(limit.number, _INFINITE) if limit else _INFINITE
    if limit and not _known:
        allowed = resource.getrlimit(limit.number)[0]
    is_exempt = limit is not None and limit.number == resource.RLIMIT_NPROC and os.geteuid() == 0
    if limit is None or is_exempt or allowed == _INFINITE:
        return text
    return f"{text} ({limit.name} is {allowed} {limit.unit.format(uid=os.geteuid())}: raise it, {limit.fix})"


def lower_descriptors(most: int) -> None:
    """Limit this agent to `most` descriptors, or to a lower hard limit. Note all its limits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != _INFINITE:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _known.update((limit.number, resource.getrlimit(limit.number)[0]) for limit in _BY_ERRNO.values())
