"""The control socket's file: it never exists with a wrong mode, and a live one is never stolen.

Some facts about AF_UNIX and what they mean here:
* bind(2) makes the file before it can have its owner and mode, so it is bound under another name, is given all of
  that, and gets its own name by rename(2), which also replaces a stale socket without a gap.
* The file outlives a SIGKILLed daemon; only a connect tells whether somebody listens.
* Owner and mode are set by name, so nobody but root may be able to change the directory, or one above it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.access import Access
from nsbridge.supervisor.identity import is_real_root

_BACKLOG = 128
_LONGEST_PATH = 107  # bytes, sun_path of unix(7) without its NUL


def listen(
    config: ControlConfig, access: Access, notice: Callable[[str], None]
) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at its final name, and that name's inode."""
    path = Path(config.path)
    temporary = path.with_name(f".{os.getpid()}")
    longest = max(len(os.fsencode(name)) for name in (path, temporary))
    if longest > _LONGEST_PATH:
        raise NsbridgeError(
            f"daemon.control.path: {path}: a socket's path has at most {_LONGEST_PATH} bytes, not {longest}; shorten it"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        _make_directory(path.parent)
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
        if isinstance(failure, OSError):
            raise NsbridgeError(f"cannot make the control socket {path} (daemon.control): {failure.strerror}") from None
        raise
    return listener, made


def _nobody() -> int:
    """Who stands for the host's root, among others, in a user namespace that has not mapped it."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))


def _make_directory(directory: Path) -> None:
    """The socket's directory, made 0755 if it is missing; only root may be able to change where its name leads."""
    for missing in [level for level in (*reversed(directory.parents), directory) if not level.exists()]:
        missing.mkdir()
        missing.chmod(0o755)  # whatever the umask is: the socket's mode and the caller's ids decide who may use it
    trusted = {0, os.geteuid()} if is_real_root() else {0, os.geteuid(), _nobody()}
    for level in sorted({*_above(directory), *_above(directory.resolve())}):
        found = level.stat()
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in trusted or shared:
            raise NsbridgeError(
                f"daemon.control.path: {level} can be changed by others than root, who could put another socket "
                f"there; chown root {level}; chmod go-w {level}"
            )


def _above(directory: Path) -> tuple[Path, ...]:
    """It and all directories by which its name leads to it: whoever can change one can exchange what is below."""
    return (directory, *directory.parents)


def _refuse_to_steal(path: Path) -> None:
    """Return if nothing is at `path`, or a socket that nobody listens on any more."""
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
    """What tells whether the name still means the same file: its device and inode. OSError if there is none."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino
