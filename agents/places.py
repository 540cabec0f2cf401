"""Where the ends of an endpoint are, told so that two agents can be compared (supervisor/loops.py).

A queue is its key: its namespace is known to the supervisor. A file or directory is its device and inode, and its name
in the directory that holds it, for the case that it is not there yet. Only equality counts, so a name is a checksum.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping, Sequence

from nsbridge.agents import linux
from nsbridge.config.schema import Endpoint

MOST = 4  # identities of one end
LONGEST = 64  # characters of one
_HOW = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS


def of_queues(out: int, in_: int) -> dict[str, list[str]]:
    """Return the ends of a queue endpoint from its numeric keys, 0 where there is no such side."""
    return {side: [str(key)] for side, key in (("out", out), ("in", in_)) if key}


def of_files(endpoint: Endpoint) -> dict[str, list[str]]:
    """Return the ends of an endpoint of files, as this process sees them from its root; nothing of what is not there.

    Nothing is opened but directories by O_PATH, so links may be followed. Raises OSError for want of descriptors.
    """
    paths = (("out", endpoint.out), ("in", endpoint.in_))
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        return {side: _identities(root, os.fsencode(path)) for side, path in paths if isinstance(path, str)}
    finally:
        os.close(root)


def parse(said: object) -> Mapping[str, Sequence[str]]:
    """Return what an agent says of its ends, as far as it has the form of the above: the agent may be compromised."""
    if not isinstance(said, dict):
        return {}
    ends: dict[str, Sequence[str]] = {}
    for side in ("out", "in"):
        told = said.get(side)
        if isinstance(told, list) and len(told) <= MOST and all(map(_is_identity, told)):
            ends[side] = told
    return ends


def _is_identity(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= LONGEST


def _identities(root: int, path: bytes) -> list[str]:
    parent, name = os.path.split(path.rstrip(b"/"))
    try:
        directory = linux.openat2(root, parent or b"/", os.O_PATH | os.O_DIRECTORY, 0, _HOW)
    except OSError:
        return []
    try:
        found = [f"{_number(os.fstat(directory))}/{zlib.crc32(name):08x}"]
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return found
        return found if stat.S_ISLNK(status.st_mode) else [*found, _number(status)]
    finally:
        os.close(directory)


def _number(status: os.stat_result) -> str:
    return f"{status.st_dev:x}:{status.st_ino:x}"
