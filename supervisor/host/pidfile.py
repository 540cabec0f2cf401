"""Allows one daemon for each state_dir, by a lock on a file with the holder's pid, and one on the directory itself.

Some facts about POSIX locks (fcntl_locking(2)) and what they mean here:
* The lock belongs to the process: it vanishes with a SIGKILLed daemon and is not inherited by its agents, so it is
  taken after detaching, and an agent that outlives the daemon for a moment does not keep the next daemon out.
* *Any* close of the file by the process drops its lock: nothing else in the daemon may open this file.
* A process that opened the file earlier can lock it even after it was unlinked. So the process that gets the lock
  checks that its file still has the name, and starts again if not.

And about the lock of the directory (flock(2)), which works even if the pid file was removed:
* A forked child shares it until it closes its descriptors, which it does first. So a new daemon waits a little.
* Any user who may read a directory may lock it. A lock counts only if its process lives and belongs to a trusted user
  (/proc/locks, config/trusted.py). Otherwise any user could keep the daemon from starting.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from nsbridge.config import trusted
from nsbridge.config.errors import NsbridgeError

PATIENCE = 2.0  # seconds for a killed daemon's children to close the directory
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid: struct flock of 64-bit Linux


class PidFile:
    """The lock on `path` (STATE_DIR/nsbridged.pid) and its directory; a context manager, also for DaemonContext."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._directory = -1
        self._pid = 0

    def acquire(self) -> None:
        """Lock both and write our pid. Raises NsbridgeError if another daemon has one, or they cannot be made."""
        try:
            self._take()
        except BaseException:
            self._forget()
            raise

    def release(self) -> None:
        """Remove the file and unlock. Harmless if it is not held, also in a forked child."""
        if self._fd < 0 or os.getpid() != self._pid:
            return
        try:
            if self._is_named():
                os.unlink(self.path)  # noqa: PTH108  (while it is locked: the next holder cannot be there yet)
        except OSError:
            pass
        finally:
            self._forget()

    def restore(self) -> bool:
        """Make the file and directory again if they were removed while locked; return True then.

        Raises NsbridgeError if that fails, or another daemon runs by now: then both use this state_dir.
        """
        if self._fd < 0 or (self._is_there() and self._is_named()):
            return False
        held, self._fd = self._fd, -1
        elsewhere = -1
        if not self._is_there():
            elsewhere, self._directory = self._directory, -1
        try:
            self._take(make=0o755)
        except BaseException:
            self._close(self._fd)
            self._fd = held
            if elsewhere >= 0:
                self._close(self._directory)
                self._directory = elsewhere
            raise
        self._close(held)
        self._close(elsewhere)
        return True

    def __enter__(self) -> PidFile:
        self.acquire()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def _take(self, make: int | None = None) -> None:
        """Take the missing locks, and write our pid; `make` is a new directory's mode. Raises NsbridgeError."""
        try:
            if self._directory < 0:
                self._directory = trusted.open_directory(str(Path(self.path).parent), make=make)
            while self._fd < 0:
                self._fd = self._lock()
            self._lock_directory()
            self._pid = os.getpid()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % self._pid, 0)
        except trusted.UntrustedError as error:
            raise NsbridgeError(f"daemon.state_dir: {error}") from None
        except OSError as error:
            raise NsbridgeError(f"cannot write the pid file {self.path} (daemon.state_dir): {error.strerror}") from None

    def _lock(self) -> int:
        """Return the locked file's descriptor, or -1 if the file lost its name in the meantime."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(Path(self.path).name, flags, 0o644, dir_fd=self._directory)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(self.path)):  # noqa: PTH116
                locked, fd = fd, -1
                return locked
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise NsbridgeError(self._taken(_holder(fd))) from None
            raise
        finally:
            self._close(fd)
        return -1

    def _lock_directory(self) -> None:
        """Lock the directory; ignore an untrusted user's lock. Raises NsbridgeError if another daemon has it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _directory_holder(self._directory)
                if time.monotonic() > deadline:
                    if not _is_daemons(holder):
                        return
                    raise NsbridgeError(f"{self._taken(holder)}; its pid file was removed") from None
                time.sleep(0.01)  # no event reports the release of another's lock
            else:
                return

    def _is_named(self) -> bool:
        """True if the file that is locked still has its name."""
        return _is_at(self._fd, self.path)

    def _is_there(self) -> bool:
        """True if the directory that is locked still has its name."""
        return _is_at(self._directory, str(Path(self.path).parent))

    def _forget(self) -> None:
        self._close(self._fd)
        self._close(self._directory)
        self._fd = self._directory = -1

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            os.close(fd)

    def _taken(self, pid: int) -> str:
        who = f"pid {pid}" if pid else "in another pid namespace"
        return f"{self.path}: another nsbridged ({who}) runs with this state_dir; stop it or set daemon.state_dir"


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116
    except OSError:
        return False


def _holder(fd: int) -> int:
    """Return the pid of the lock's holder; 0 if it is in another pid namespace, or has just released the lock."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return int(pid) if kind != fcntl.F_UNLCK else 0


def _directory_holder(fd: int) -> int:
    """Return the pid of the flock's holder; 0 if it is not visible. proc_locks(5)."""
    inode = os.fstat(fd).st_ino
    for line in Path("/proc/locks").read_text(encoding="ascii").split("\n"):
        match line.split():
            case [_, "FLOCK", _, _, pid, where, *_] if where.endswith(f":{inode}"):
                return max(0, int(pid))
    return 0


def _is_daemons(pid: int) -> bool:
    """True if `pid` may be a daemon: it lives and belongs to a trusted user. 0 is of another pid namespace."""
    try:
        return not pid or os.stat(f"/proc/{pid}").st_uid in trusted.trusted_owners()  # noqa: PTH116
    except OSError:
        return False
