"""Identifies the ends of an endpoint, so that the supervisor can compare two agents (supervisor/routes/loops.py).

A queue is identified by its key; the supervisor has its namespace. A file or directory is identified by device and
inode, and by its name in its directory, in case it does not exist yet. Only equality counts, so a checksum stands for
the name.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping, Sequence

from nsbridge.agents import linux
from nsbridge.config.descriptors import closing
from nsbridge.config.schema import Endpoint

MOST = 4  # identities of one end
LONGEST = 64  # characters of one
ENDS = ("out", "in")
_HOW = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS


def of_queues(out: int, in_: int) -> dict[str, list[str]]:
    """Return the ends of a queue endpoint from its numeric keys, 0 where there is no such side."""
    return {side: [str(key)] for side, key in (("out", out), ("in", in_)) if key}


def of_files(endpoint: Endpoint) -> dict[str, list[str]]:
    """Return the ends of an endpoint of files, as this process sees them from its root. Missing ones are left out.

    It opens only directories, by O_PATH, so it may follow links. Raises OSError if no descriptor is free.
    """
    paths = {end: place.path for end, place in endpoint.places().items() if end in ENDS and place.path}
    with closing(os.open("/", os.O_PATH | os.O_DIRECTORY)) as root:
        return {side: _identities(root, os.fsencode(path)) for side, path in paths.items()}


def parse(report: object) -> Mapping[str, Sequence[str]]:
    """Return the valid part of an agent's report of its ends. The agent may be compromised."""
    if not isinstance(report, dict):
        return {}
    ends: dict[str, Sequence[str]] = {}
    for side in ENDS:
        end = report.get(side)
        if isinstance(end, list) and len(end) <= MOST and all(map(_is_identity, end)):
            ends[side] = end
    return ends


def _is_identity(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= LONGEST


def _identities(root: int, path: bytes) -> list[str]:
    parent, name = os.path.split(path.rstrip(b"/"))
    try:
        directory = linux.openat2(root, parent or b"/", os.O_PATH | os.O_DIRECTORY, 0, _HOW)
    except OSError:
        return []
    with closing(directory):
        found = [f"{_number(os.fstat(directory))}/{zlib.crc32(name):08x}"]
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return found
        return found if stat.S_ISLNK(status.st_mode) else [*found, _number(status)]


def _number(status: os.stat_result) -> str:
    return f"{status.st_dev:x}:{status.st_ino:x}"
