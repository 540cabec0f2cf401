"""What `nsbridge containers` shows: every container of this host under the name that a configuration would use.

Docker and Podman come first and runc and crun after them, because the engines run their containers with these: the
same init process is listed once, under the name that people gave it. Last come processes in a foreign mnt or ipc
namespace that none of these know (plain `unshare`, services with a private /tmp).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import ContainerKind, Namespace
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers import runtimes as runstate
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    NotPermitted,
    NotRunning,
    escaped,
    is_init_of_its_own,
    namespace_inode_of,
    own_namespace_inode,
    quoted,
    read_stat,
)

_IN_DOUBT = "unknown"


@dataclass(frozen=True, slots=True)
class Listed:
    """A row: a container, or (pid 0, a note) one that does not run or an engine that could not be asked."""

    name: str  # as it would be configured, unprintable characters escaped
    pid: int  # of init; 0 if it does not run
    state: str  # running, or the engine's word (paused, created, exited …), or stopped, or unknown
    mnt_inode: int  # 0 if it does not run, and so on
    ipc_inode: int
    mnt_is_own: bool  # whether that is this process's own namespace: the host's, for a root shell of the host
    ipc_is_own: bool
    note: str = ""  # one line: a bare process's command, why something could not be told


def list_containers() -> list[Listed]:
    """All that can be seen from here; what cannot becomes a row with a note. Blocks 2 s for each stuck engine."""
    rows: list[Listed] = []
    for kind, source in _SOURCES:
        known = {row.pid for row in rows if row.pid}
        try:
            rows += [row for row in source(kind) if row.pid not in known]
        except NsbridgeError as error:
            rows.append(_without_process(f"{kind}:*", _IN_DOUBT, str(error)))
    return rows + _bare_processes(rows)


def _of_engine(kind: ContainerKind) -> Iterator[Listed]:
    for about in sorted(engines.list_all(kind), key=lambda each: each.name):
        yield _row(f"{kind}:{about.name}", about.pid, about.status)


def _of_runtime(kind: ContainerKind) -> Iterator[Listed]:
    for name in runstate.names(kind):
        try:
            yield _row(f"{kind}:{name}", runstate.locate(kind, name).pid, "running")
        except NotRunning as error:
            state = "created" if isinstance(error, runstate.Created) else "stopped"
            yield _without_process(
                f"{kind}:{name}", state, str(error).removeprefix(f"container {quoted(name)} of {kind} ")
            )
        except ContainerRefused as error:
            yield _without_process(f"{kind}:{name}", _IN_DOUBT, str(error))


def _bare_processes(rows: list[Listed]) -> list[Listed]:
    """One row for each process that is in a foreign namespace which no earlier row is in.

    An init of its own pid namespace comes first: that is what dies with the container, not the `unshare` that waits
    for it. Then the oldest. So a process that has joined a container, as nsbridge's agents do, is no row.
    """
    own = {own_namespace_inode(namespace) for namespace in Namespace}
    seen = own.union(*({row.mnt_inode, row.ipc_inode} for row in rows))
    found = []
    for pid, comm in _foreign_processes():
        row = _row(f"pid:{pid}", pid, "running", escaped(comm))
        if row.pid and not {row.mnt_inode, row.ipc_inode} <= seen:
            found.append(row)
            seen |= {row.mnt_inode, row.ipc_inode}
    return found


def _foreign_processes() -> list[tuple[int, str]]:
    """(pid, command) of every process with a mnt or ipc namespace other than our own, in the order told above."""
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
        except (NotRunning, NotPermitted):  # it has just ended, or it is another user's
            continue
    return [(order[2], comm) for order, comm in sorted(found)]


def _is_like_us(pid: int) -> bool:
    return all(namespace_inode_of(pid, namespace) == own_namespace_inode(namespace) for namespace in Namespace)


def _row(name: str, pid: int, state: str, note: str = "") -> Listed:
    if not pid:
        return _without_process(name, state, note)
    try:
        inodes = {namespace: namespace_inode_of(pid, namespace) for namespace in Namespace}
    except NsbridgeError as error:  # it has just ended, or it is another user's
        return _without_process(name, _IN_DOUBT, str(error))
    return Listed(
        name=escaped(name),
        pid=pid,
        state=escaped(state),
        mnt_inode=inodes[Namespace.MNT],
        ipc_inode=inodes[Namespace.IPC],
        mnt_is_own=inodes[Namespace.MNT] == own_namespace_inode(Namespace.MNT),
        ipc_is_own=inodes[Namespace.IPC] == own_namespace_inode(Namespace.IPC),
        note=note,
    )


def _without_process(name: str, state: str, note: str) -> Listed:
    return Listed(escaped(name), 0, escaped(state), 0, 0, mnt_is_own=False, ipc_is_own=False, note=note)


_SOURCES: tuple[tuple[ContainerKind, Callable[[ContainerKind], Iterator[Listed]]], ...] = (
    (ContainerKind.DOCKER, _of_engine),
    (ContainerKind.PODMAN, _of_engine),
    (ContainerKind.RUNC, _of_runtime),
    (ContainerKind.CRUN, _of_runtime),
)
