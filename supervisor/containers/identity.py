"""Identifies a container by its init process, and holds it: neither its death nor a reused number is missed.

Some facts about process numbers, and what they mean here:
* A number may be given to another process as soon as its holder is reaped. (number, start time) is never given
  twice within one boot, so that pair is a container's identity and the number alone never is.
* A pidfd holds one process, but it is opened by number. So the start time is read again *after* it is open, and the
  pidfd is asked *after that* whether the process lives: alive then, it held its number during the whole reading.
* /proc/PID/ns/X says nothing about who PID is: the same order holds for it.
* A zombie has left its namespaces; its pidfd is readable and its state is Z. Both count as dead.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self, TypeVar

from nsbridge.agents.fork import has_ended
from nsbridge.config import trusted
from nsbridge.config.descriptors import closing
from nsbridge.config.errors import EXIT_NOT_PERMITTED, NsbridgeError
from nsbridge.config.schema import Namespace
from nsbridge.config.text import escape
from nsbridge.supervisor.host import procfs
from nsbridge.supervisor.host.procfs import ProcessStat

NAME_SHOWN = 256  # characters of a foreign name or path that an error message repeats
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # its inode, in the kernel's include/linux/proc_ns.h: PROC_PID_INIT_INO
PID_PATTERN = re.compile(r"[1-9][0-9]{0,9}")
_PROC_NAMESPACE = re.compile(r"/proc/([1-9][0-9]{0,9})/ns/([a-z]+)")
_NS_GET_OWNER_UID = 0xB704  # linux/nsfs.h
_T = TypeVar("_T")


class NotRunning(NsbridgeError):
    """The container is not there, or not started yet, or dead; it may come (back) without a person's help."""


class NotKnown(NotRunning):
    """The engine has no container of that name."""


class NoAnswer(NotRunning):
    """The engine itself is not there or does not answer."""


class Created(NotRunning):
    """The container was created and not started."""


class Ambiguous(NotRunning):
    """Several running containers match a name that must match one."""


class ContainerRefused(NsbridgeError):
    """The container cannot be entered until a person fixes what the message names."""


class NotPermitted(ContainerRefused):
    """The container cannot be entered because privileges are missing."""

    exit_code = EXIT_NOT_PERMITTED


def not_known(name: str, kind: str, where: str) -> NotKnown:
    """Return the error that `kind` has no container of that name; `where` says where it was looked for."""
    return NotKnown(
        f"container {quoted(name)} is not known to {kind} ({where}); nsbridge containers lists those there are"
    )


@dataclass(frozen=True, slots=True)
class Found:
    """The place where a container was found: its init process, or a bare namespace file, or neither (`host`)."""

    pid: int  # of init, in this process's pid namespace; 0 for a bare namespace file and for the host
    start_time: int  # clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5)); 0 likewise
    ns_path: str  # the namespace file that was configured, else empty
    engine_id: str = field(default="", compare=False)  # Docker's or Podman's, else empty
    engine_name: str = field(default="", compare=False)  # when it was found: a container may be renamed
    serves: str = field(default="", compare=False)  # its own name, if the configured one is a pattern or a label

    def is_same(self, other: Found) -> bool:
        """True if it is the same process."""
        return (self.pid, self.start_time) == (other.pid, other.start_time)


class ContainerProcess:
    """The hold on a container's init: a pidfd, readable once it is dead (for the loop), and who it is.

    `uid` and `gid` are init's effective ids as this process's user namespace sees them, at the time of `open`.
    """

    __slots__ = ("_namespace_named", "gid", "pid", "pidfd", "start_time", "uid")

    def __init__(self, found: Found, pidfd: int, ids: tuple[int, int]) -> None:
        self.pid = found.pid
        self.start_time = found.start_time
        self.pidfd = pidfd
        self.uid, self.gid = ids
        named = _PROC_NAMESPACE.fullmatch(found.ns_path)
        self._namespace_named = named[2] if named else ""

    @classmethod
    def open(cls, found: Found) -> Self:
        """Hold the process that `locate` found.

        Raises NotRunning if it is dead or its number now belongs to another, ValueError if `found` is no process.
        """
        if not found.pid:
            raise ValueError("a bare namespace file and the host have no process to hold")
        try:
            pidfd = os.pidfd_open(found.pid)
        except OSError as error:  # ESRCH: gone; EINVAL or ENOENT: a thread of another process
            raise NotRunning(f"process {found.pid} cannot be held: {error.strerror}") from None
        try:
            now = read_stat(found.pid)
            ids = procfs.parse_effective_ids(_read_status(found.pid))
            if now.start_time != found.start_time:
                raise NotRunning(f"process {found.pid} has ended and its number was given to another process")
            if now.is_dead or has_ended(pidfd):
                raise NotRunning(f"process {found.pid} has ended")
            return cls(found, pidfd, ids)
        except BaseException:
            os.close(pidfd)
            raise

    def alive(self) -> bool:
        """True if it still runs (stopped and frozen count as running)."""
        return not has_ended(self.pidfd)

    def namespace_inode(self, namespace: Namespace) -> int:
        """Return the inode number of init's namespace of that kind, as `ls -l /proc/PID/ns` shows it.

        Raises NotRunning if the container is dead by now, Refused if a file of the other kind was configured.
        """
        if self._namespace_named not in ("", namespace):
            raise ContainerRefused(
                f"/proc/{self.pid}/ns/{self._namespace_named} was configured where an {namespace} namespace is needed: "
                f"name /proc/{self.pid}/ns/{namespace} or pid:{self.pid}"
            )
        inode = namespace_inode_of(self.pid, namespace)
        if not self.alive():
            raise NotRunning(f"process {self.pid} has ended")
        return inode

    def close(self) -> None:
        """Close the pidfd. Harmless when done before."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def own_namespace_inode(namespace: Namespace) -> int:
    """Return the inode number of this process's own namespace of that kind."""
    return os.stat(f"/proc/self/ns/{namespace}").st_ino  # noqa: PTH116  (a magic link, not a path)


def host_namespace_inodes(namespace: Namespace, initial_pid_namespace: int = INITIAL_PID_NAMESPACE) -> frozenset[int]:
    """Return the inode numbers of the host's namespaces of that kind: this process's own one, and that of process 1.

    They differ where nsbridge runs in a container or pod that sees the host's processes. Elsewhere process 1 is not the
    host's, so only our own counts.
    """
    inodes = {own_namespace_inode(namespace)}
    if os.stat("/proc/self/ns/pid").st_ino == initial_pid_namespace:  # noqa: PTH116
        try:
            inodes.add(namespace_inode_of(1, namespace))
        except NsbridgeError:
            pass  # we may not look at it
    return frozenset(inodes)


def namespace_inode_of(pid: int, namespace: Namespace) -> int:
    """Return the inode number of a namespace of the process that has `pid` now. Raises NotRunning if it is gone."""
    return _of_process(pid, lambda: os.stat(f"/proc/{pid}/ns/{namespace}").st_ino)  # noqa: PTH116


def user_namespace_owner(pid: int) -> int:
    """Return the uid, as this process sees it, that made the process's user namespace; 0 for the host's own.

    Raises NotRunning. ioctl_nsfs(2)
    """

    def ask() -> int:
        with closing(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return int.from_bytes(fcntl.ioctl(fd, _NS_GET_OWNER_UID, bytes(4)), sys.byteorder)

    return _of_process(pid, ask)


def found_by_pid(pid: int, ns_path: str = "") -> Found:
    """Return the identity of the process that has that number now. Raises NotRunning if none has, or a dead one."""
    now = read_stat(pid)
    if now.is_dead:
        raise NotRunning(f"process {pid} has ended")
    return Found(pid, now.start_time, ns_path)


def read_stat(pid: int) -> ProcessStat:
    """Read /proc/PID/stat. Raises NotRunning if there is no such process."""
    return _of_process(pid, lambda: procfs.read_stat(pid))


def is_init_of_its_own(pid: int) -> bool:
    """True if the process is pid 1 of a pid namespace below this process's own. Raises NotRunning if it is gone."""
    return procfs.parse_is_init(_read_status(pid))


def pid_named_by(ns_path: str) -> int:
    """Return N if the path is /proc/N/ns/TYPE, so that the death of N can be seen; else 0."""
    named = _PROC_NAMESPACE.fullmatch(ns_path)
    return int(named[1]) if named else 0


def read_bounded(path: str, limit: int) -> bytes:
    """Return the content of a file that decides what is entered, so only root may write it (config/trusted.py).

    Raises UntrustedError, OSError; ValueError if it is no regular file, or longer than `limit` bytes.
    """
    with open(path, "rb", opener=trusted.open_file) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"is longer than {limit} bytes")
    return content


def read_state(path: str, limit: int, which: str, absent: NotRunning | None = None) -> bytes:
    """Return what `read_bounded` does, of a file about the container that messages call `which`.

    Raises NotRunning (or `absent`) if the file is not there; NotPermitted; ContainerRefused.
    """
    shown = escaped(path)
    try:
        return read_bounded(path, limit)
    except FileNotFoundError:
        raise absent or NotRunning(f"{which} is being created or deleted ({shown} is not there)") from None
    except OSError as error:
        raise NotPermitted(f"{which}: {shown} cannot be read: {error.strerror}") from None
    except trusted.UntrustedError as error:
        raise ContainerRefused(f"{which}: {error}") from None
    except ValueError as error:
        raise ContainerRefused(f"{which}: {shown} {error}") from None


def quoted(name: str) -> str:
    """Return a foreign name in double quotes, safe for terminals and logs: escaped, and cut if it is long."""
    return '"' + escaped(name) + '"'


def escaped(name: str) -> str:
    """Return what `quoted` does, without the quotes; an ordinary name is unchanged."""
    shown = escape(name[:NAME_SHOWN].replace("\\", "\\\\").replace('"', '\\"'))
    return shown if len(name) <= NAME_SHOWN else shown + "…"


def _read_status(pid: int) -> bytes:
    return _of_process(pid, lambda: procfs.read(pid, "status", procfs.STATUS_LIMIT))


def _of_process(pid: int, read: Callable[[], _T]) -> _T:
    """Read something under /proc/PID, with its errors as errors of nsbridge (ESRCH: it ended while being read)."""
    try:
        return read()
    except (FileNotFoundError, ProcessLookupError):
        raise NotRunning(f"there is no process {pid}") from None
    except PermissionError:
        mend = "run nsbridge as root" if os.geteuid() else "it lacks a capability (CAP_SYS_PTRACE)"
        raise NotPermitted(f"process {pid} of another user cannot be looked at: {mend}") from None
