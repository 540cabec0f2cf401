"""Makes the control socket's file: it never exists with a wrong mode, and never replaces a live one.

Some facts about AF_UNIX and what they mean here:
* bind(2) makes the file before it can have its owner and mode, so it is bound under another name, is given all of
  that, and gets its own name by rename(2), which also replaces a stale socket without a gap.
* The file outlives a SIGKILLed daemon; only a connect shows whether a process listens.
* Owner and mode are set by name, so only root may change the directory or one above it (config/trusted.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from nsbridge.config import trusted
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import ControlConfig
from nsbridge.config.values import SUN_PATH
from nsbridge.supervisor.control.access import Access

_BACKLOG = 128


def listen(
    config: ControlConfig, access: Access, notice: Callable[[str], None]
) -> tuple[socket.socket, tuple[int, int]]:
    """Return a listening socket at its final name, and that name's inode."""
    path = Path(config.path)
    temporary = path.with_name(f".{os.getpid()}")
    longest = max(len(os.fsencode(name)) for name in (path, temporary))
    if longest > SUN_PATH:
        raise NsbridgeError(
            f"daemon.control.path: {path}: a socket's path has at most {SUN_PATH} bytes, not {longest}; shorten it"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        os.close(trusted.open_directory(str(path.parent), make=0o755))
        _refuse_to_steal(path)
        temporary.unlink(missing_ok=True)
        listener.bind(os.fsencode(temporary))
        access.put_on(str(temporary), config.mode, notice)
        listener.listen(_BACKLOG)
        made = inode(str(temporary))
        temporary.rename(path)
    except BaseException as failure:
        listener.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(failure, trusted.UntrustedError):
            raise NsbridgeError(f"daemon.control.path {path}: {failure}") from None
        if isinstance(failure, OSError):
            raise NsbridgeError(f"cannot make the control socket {path} (daemon.control): {failure.strerror}") from None
        raise
    return listener, made


def _refuse_to_steal(path: Path) -> None:
    """Return if nothing is at `path`, or a socket on which no process listens any more."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise NsbridgeError(f"daemon.control.path: {path} exists and is not a socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:  # a full backlog, say: whatever it is, it is alive
            pass
    raise NsbridgeError(
        f"{path}: another daemon listens there; stop it (nsbridgectl -s {path} shutdown) or set daemon.control.path"
    )


def inode(path: str) -> tuple[int, int]:
    """Return the device and inode of the name, to see if it still means the same file. OSError if there is none."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def is_at(path: str, made: tuple[int, int] | None) -> bool:
    """True if the name still means the file with that device and inode."""
    try:
        return inode(path) == made
    except OSError:
        return False
