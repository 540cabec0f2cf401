"""Finds the containers that a configuration names: `locate` gives a running container's init process.

Start here. Who a process is stands in identity.py, runc's and crun's state files in runtimes.py, Docker's and
Podman's APIs in engines.py, `nsbridge containers` in listing.py. Nothing here keeps state or knows an event loop.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from nsbridge.config import trusted
from nsbridge.config.schema import Container, ContainerKind, Namespace
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers import runtimes as runstate
from nsbridge.supervisor.containers.identity import (
    ContainerProcess,
    ContainerRefused,
    Found,
    NotPermitted,
    NotRunning,
    found_by_pid,
    own_namespace_inode,
    pid_named_by,
    quoted,
    read_bounded,
)
from nsbridge.supervisor.containers.listing import Listed, list_containers

__all__ = [
    "ContainerProcess",
    "ContainerRefused",
    "Found",
    "Listed",
    "NotPermitted",
    "NotRunning",
    "asks_an_engine",
    "list_containers",
    "locate",
    "namespace_file_inode",
    "own_namespace_inode",
]

PIDFILE_LIMIT = 64  # bytes
_PID = re.compile(r"[1-9][0-9]{0,9}")
_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), ioctl_ns(2); answers with the CLONE_NEW… flag, ENOTTY for any other file
_CLONE_FLAG = {Namespace.MNT: 0x00020000, Namespace.IPC: 0x08000000}  # CLONE_NEWNS, CLONE_NEWIPC (sched.h)


def locate(container: Container) -> Found:
    """Find a container, or raise NotRunning (try again later) or Refused (a person must mend something).

    Asking docker or podman may block for engines.TIME_LIMIT seconds; the other kinds answer at once.
    """
    return _LOCATE[container.kind](container.name)


def asks_an_engine(container: Container) -> bool:
    """Whether `locate` asks another program, and may block as long as that takes."""
    return container.kind in (ContainerKind.DOCKER, ContainerKind.PODMAN)


def namespace_file_inode(path: str, namespace: Namespace) -> int:
    """The inode number of a bare namespace file; NotRunning if there is none now, Refused if it is of another kind."""
    inode, flag = _open_namespace_file(path)
    if flag != _CLONE_FLAG[namespace]:
        kinds = {known: kind for kind, known in _CLONE_FLAG.items()}
        other = kinds.get(flag, "different")
        raise ContainerRefused(
            f"namespace file {quoted(path)} is of the {other} kind where an {namespace} namespace is needed"
        )
    return inode


def _by_pid(name: str) -> Found:
    if not _PID.fullmatch(name):
        raise ContainerRefused(f"pid:{quoted(name)} is not a process number: write pid:N, N in decimal")
    return found_by_pid(int(name))


def _by_pidfile(path: str) -> Found:
    """The process whose number a file holds. A stale file cannot be told from a fresh one once the number is reused."""
    try:
        text = read_bounded(path, PIDFILE_LIMIT).decode("ascii", "backslashreplace").strip()
    except FileNotFoundError:
        raise NotRunning(f"pidfile {quoted(path)} is not there") from None
    except PermissionError:
        raise NotPermitted(f"pidfile {quoted(path)} cannot be read: run nsbridge as root") from None
    except OSError as error:
        raise NotRunning(f"pidfile {quoted(path)} cannot be read: {error.strerror}") from None
    except UntrustedError as error:
        raise ContainerRefused(f"pidfile {quoted(path)}: {error}") from None
    except ValueError as error:
        raise ContainerRefused(f"pidfile {quoted(path)} {error}") from None
    if not text:
        raise NotRunning(f"pidfile {quoted(path)} is empty")
    if not _PID.fullmatch(text):
        raise ContainerRefused(f"pidfile {quoted(path)} holds {quoted(text)}, not a process number in decimal")
    try:
        return found_by_pid(int(text))
    except NotRunning as error:
        raise NotRunning(f"pidfile {quoted(path)}: {error}") from None


def _by_namespace_file(path: str) -> Found:
    pid = pid_named_by(path)
    if pid:
        return found_by_pid(pid, path)
    _open_namespace_file(path)
    return Found(0, 0, path)


def _host(_name: str) -> Found:
    return Found(0, 0, "")


def _open_namespace_file(path: str) -> tuple[int, int]:
    """(inode, CLONE_NEW… flag) of a namespace file."""
    try:
        pinned = trusted.pin(path)
    except UntrustedError as error:
        raise ContainerRefused(f"namespace file {quoted(path)}: {error}") from None
    except PermissionError:
        raise NotPermitted(f"namespace file {quoted(path)} cannot be opened: run nsbridge as root") from None
    except OSError as error:
        raise NotRunning(f"namespace file {quoted(path)}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(pinned).st_mode):  # namespace files are; a FIFO or a device must not be opened
            raise NotRunning(f"{quoted(path)} is not a namespace file")
        with suppress(OSError):  # ENOTTY: an ordinary file
            fd = os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.fstat(fd).st_ino, fcntl.ioctl(fd, _NS_GET_NSTYPE)
            finally:
                os.close(fd)
        raise NotRunning(f"{quoted(path)} is not a namespace file: nothing is bound there (ip-netns(8), mount --bind)")
    finally:
        os.close(pinned)


_LOCATE: dict[ContainerKind, Callable[[str], Found]] = {
    ContainerKind.RUNC: lambda name: runstate.locate(ContainerKind.RUNC, name),
    ContainerKind.CRUN: lambda name: runstate.locate(ContainerKind.CRUN, name),
    ContainerKind.DOCKER: lambda name: engines.locate(ContainerKind.DOCKER, name),
    ContainerKind.PODMAN: lambda name: engines.locate(ContainerKind.PODMAN, name),
    ContainerKind.PIDFILE: _by_pidfile,
    ContainerKind.PID: _by_pid,
    ContainerKind.NS: _by_namespace_file,
    ContainerKind.HOST: _host,
}
