"""The rows of `nsbridge containers`, as engines make them, and names in the directories that they are made of."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import JOINED, Namespace
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Created,
    Found,
    NotPermitted,
    NotRunning,
    escaped,
    namespace_inode_of,
    own_namespace_inode,
)

IN_DOUBT = "unknown"
LISTED_AT_MOST = 4096  # names of one directory


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


def row_of(name: str, locate: Callable[[], Found], about: str | None = "") -> Listed:
    """Return the row of the container that `locate` finds.

    If it does not run, the reason without its first words `about` is the note; None: there is no note.
    """
    try:
        return row(name, locate().pid, "running")
    except NotRunning as error:
        note = "" if about is None else str(error).removeprefix(about)
        return row_without_process(name, "created" if isinstance(error, Created) else "stopped", note)
    except ContainerRefused as error:
        return row_without_process(name, IN_DOUBT, str(error))


def is_directory(entry: os.DirEntry[str]) -> bool:
    """True if it is a directory, and no link to one."""
    return entry.is_dir(follow_symlinks=False)


def names_in(directory: str, is_wanted: Callable[[os.DirEntry[str]], bool] = is_directory) -> list[str]:
    """Return the names of the directories in a directory, or of what is wanted, sorted. Raises NotPermitted.

    There are none if the directory is not there.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, LISTED_AT_MOST) if is_wanted(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise NotPermitted(f"{directory} cannot be listed: {error.strerror}") from None
