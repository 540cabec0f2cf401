"""Lists the SysV queues of a container, for `nsbridge init`.

A child joins the container's ipc namespace and no other, and reads the host's /proc/sysvipc/msg there.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import NamedTuple

from nsbridge.agents import linux
from nsbridge.agents.fork import fork

_LIMIT = 2.0  # seconds
_MOST_BYTES = 64 << 10
_FIELDS = 14  # key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime: proc_sysvipc(5)


class FoundQueue(NamedTuple):
    """A queue with a key."""

    key: int
    mode: int
    messages: int
    uid: int


def queues_of(pid: int) -> list[FoundQueue]:
    """Return the queues in the ipc namespace of that process; none if it cannot be joined (not root) or has ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = fork(lambda: _report(pid, writer))
    except OSError:
        os.close(reader)
        return []
    finally:
        os.close(writer)
    try:
        return parse(_read(reader))
    finally:
        os.close(reader)
        child.kill()
        child.reap()


def parse(text: bytes) -> list[FoundQueue]:
    """Return the queues of /proc/sysvipc/msg that have a key, in its order."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) == _FIELDS and (key := int(fields[0]) & 0xFFFF_FFFF):
            found.append(FoundQueue(key, int(fields[2], 8) & 0o777, int(fields[4]), int(fields[7])))
    return found


def _report(pid: int, writer: int) -> int:
    try:
        fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        linux.setns(fd, linux.CLONE_NEWIPC)
        os.write(writer, Path("/proc/sysvipc/msg").read_bytes()[:_MOST_BYTES])
    except OSError:
        return 1
    return 0


def _read(reader: int) -> bytes:
    deadline, received = time.monotonic() + _LIMIT, b""
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(reader, _MOST_BYTES)
        if not chunk:
            break
        received += chunk
    return received
