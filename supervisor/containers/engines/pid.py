"""A process by its number, `pid:N`; and the processes in foreign namespaces that no engine lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.schema import JOINED
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    PID_PATTERN,
    ContainerRefused,
    Found,
    NotPermitted,
    NotRunning,
    escaped,
    found_by_pid,
    is_init_of_its_own,
    namespace_inode_of,
    own_namespace_inode,
    quoted,
    read_stat,
)
from nsbridge.supervisor.containers.rows import Listed, row

KIND = ContainerKind("pid", PID_PATTERN, 'write the number of a process, like "pid:4711"')


class Pid(Engine):
    """The kernel gives a number to another process one day, so what has ended does not come back."""

    kind = KIND
    comes_back = False

    def locate(self, name: str) -> Found:
        """See Engine."""
        if not PID_PATTERN.fullmatch(name):
            raise ContainerRefused(f"pid:{quoted(name)} is not a process number: write pid:N, N in decimal")
        return found_by_pid(int(name))

    def leftovers(self, rows: Sequence[Listed]) -> Iterable[Listed]:
        """Return a row for each process that is in a foreign namespace which no other row is in.

        An init of its own pid namespace comes first: that is what dies with the container, not the `unshare` that
        waits for it. Then the oldest. So a process that has joined a container, as nsbridge's agents do, is no row.
        """
        own = {own_namespace_inode(namespace) for namespace in JOINED}
        seen = own.union(*({listed.mnt_inode, listed.ipc_inode} for listed in rows))
        found = []
        for pid, comm in _foreign_processes():
            process = row(f"{self.kind}:{pid}", pid, "running", escaped(comm))
            if process.pid and not {process.mnt_inode, process.ipc_inode} <= seen:
                found.append(process)
                seen |= {process.mnt_inode, process.ipc_inode}
        return found


def _foreign_processes() -> list[tuple[int, str]]:
    """Return (pid, command) of every process in a foreign mnt or ipc namespace: first inits, then by age."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdecimal():
            continue
        pid = int(name)
        try:
            about = read_stat(pid)
            if about.is_dead or about.is_kernel_thread or _is_like_us(pid):
                continue
            found.append(((not is_init_of_its_own(pid), about.start_time, pid), about.comm))
        except (NotRunning, NotPermitted):  # it has just ended, or belongs to another user
            continue
    return [(order[2], comm) for order, comm in sorted(found)]


def _is_like_us(pid: int) -> bool:
    return all(namespace_inode_of(pid, namespace) == own_namespace_inode(namespace) for namespace in JOINED)
