"""Opens namespace files without a process, which mount --bind keeps: their inode and the kind of their namespace."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

from nsbridge.config import trusted
from nsbridge.config.descriptors import closing
from nsbridge.config.schema import Namespace
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.containers.identity import ContainerRefused, NotPermitted, NotRunning, quoted

_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), ioctl_ns(2); answers with the CLONE_NEW… flag, ENOTTY for any other file
_CLONE_FLAG = {Namespace.MNT: 0x00020000, Namespace.IPC: 0x08000000}  # CLONE_NEWNS, CLONE_NEWIPC (sched.h)


def namespace_file_inode(path: str, namespace: Namespace) -> int:
    """Return a namespace file's inode number. Raises NotRunning if there is none, ContainerRefused for another kind."""
    inode, flag = open_namespace_file(path)
    if flag != _CLONE_FLAG[namespace]:
        kinds = {known: kind for kind, known in _CLONE_FLAG.items()}
        other = kinds.get(flag, "different")
        raise ContainerRefused(
            f"namespace file {quoted(path)} is of the {other} kind where an {namespace} namespace is needed"
        )
    return inode


def open_namespace_file(path: str) -> tuple[int, int]:
    """Return (inode, CLONE_NEW… flag) of a namespace file. Raises NotRunning, ContainerRefused."""
    try:
        pinned = trusted.pin(path)
    except UntrustedError as error:
        raise ContainerRefused(f"namespace file {quoted(path)}: {error}") from None
    except PermissionError:
        raise NotPermitted(f"namespace file {quoted(path)} cannot be opened: run nsbridge as root") from None
    except OSError as error:
        raise NotRunning(f"namespace file {quoted(path)}: {error.strerror}") from None
    with closing(pinned):
        if not stat.S_ISREG(os.fstat(pinned).st_mode):  # namespace files are; a FIFO or a device must not be opened
            raise NotRunning(f"{quoted(path)} is not a namespace file")
        with (
            suppress(OSError),
            closing(os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd,
        ):
            return os.fstat(fd).st_ino, fcntl.ioctl(fd, _NS_GET_NSTYPE)  # ENOTTY: an ordinary file
        raise NotRunning(f"{quoted(path)} is not a namespace file: nothing is bound there (ip-netns(8), mount --bind)")
