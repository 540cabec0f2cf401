"""The rows of `nsbridge containers`, as engines make them."""

from __future__ import annotations

from dataclasses import dataclass

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import JOINED, Namespace
from nsbridge.supervisor.containers.identity import escaped, namespace_inode_of, own_namespace_inode

IN_DOUBT = "unknown"


@dataclass(frozen=True, slots=True)
class Listed:
    """A row: a container, or (pid 0, a note) one that does not run or an engine that could not be asked."""

    name: str  # as it would be configured, unprintable characters escaped
    pid: int  # of init; 0 if it does not run
    state: str  # running, or the engine's word (paused, created, exited …), or stopped, or unknown
    mnt_inode: int  # 0 if it does not run, and so on
    ipc_inode: int
    mnt_is_own: bool  # True if that is this process's own namespace: the host's, for a root shell of the host
    ipc_is_own: bool
    note: str = ""  # one line: a bare process's command, why something is unknown
    other_names: tuple[str, ...] = ()  # those of the same process that other engines, or this one, have for it

    @property
    def names(self) -> tuple[str, ...]:
        """Return every name by which a configuration can have it, the one that people gave first."""
        return (self.name, *self.other_names)


def row(name: str, pid: int, state: str, note: str = "") -> Listed:
    """Return the row of a container, with its namespaces if it runs."""
    if not pid:
        return row_without_process(name, state, note)
    try:
        inodes = {namespace: namespace_inode_of(pid, namespace) for namespace in JOINED}
    except NsbridgeError as error:  # it has just ended, or belongs to another user
        return row_without_process(name, IN_DOUBT, str(error))
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


def row_without_process(name: str, state: str, note: str) -> Listed:
    """Return the row of a container that does not run, or of an engine that cannot be asked."""
    return Listed(escaped(name), 0, escaped(state), 0, 0, mnt_is_own=False, ipc_is_own=False, note=note)
