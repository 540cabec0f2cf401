"""One daemon for each state_dir: a lock on a file that also says who holds it.

Some facts about POSIX locks (fcntl_locking(2)) and what they mean here:
* The lock belongs to the process: it vanishes with a SIGKILLed daemon and is not inherited by its agents, so it is
  taken after detaching, and an agent that outlives the daemon for a moment does not keep the next daemon out.
* *Any* close of the file by the process drops its lock: nothing else in the daemon may open this file.
* A file that is unlinked while locked can still be locked by whoever had opened it before: the one who gets the lock
  looks whether its file still has the name, and starts again if not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from nsbridge.config.errors import NsbridgeError

_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid: struct flock of 64-bit Linux


class PidFile:
    """The lock on `path` (STATE_DIR/nsbridged.pid); a context manager, also for DaemonContext."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._pid = 0

    def acquire(self) -> None:
        """Lock it and write our pid. NsbridgeError if another daemon has it, or it cannot be made."""
        try:
            while self._fd < 0:
                self._fd = self._lock()
            self._pid = os.getpid()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % self._pid, 0)
        except OSError as error:
            self.release()
            raise NsbridgeError(f"cannot write the pid file {self.path} (daemon.state_dir): {error.strerror}") from None

    def release(self) -> None:
        """Take the file away and give the lock up. Harmless if it is not held, also in a forked child."""
        if self._fd < 0 or os.getpid() != self._pid:
            return
        fd, self._fd = self._fd, -1
        try:
            os.unlink(self.path)  # noqa: PTH108  (while it is locked: the next holder cannot be there yet)
        except OSError:
            pass
        finally:
            os.close(fd)

    def __enter__(self) -> PidFile:
        self.acquire()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def _lock(self) -> int:
        """The locked file's descriptor, or -1 if the file lost its name in the meantime."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
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
            if fd >= 0:
                os.close(fd)
        return -1

    def _taken(self, pid: int) -> str:
        who = f"pid {pid}" if pid else "in another pid namespace"
        return f"{self.path}: another nsbridged ({who}) runs with this state_dir; stop it or set daemon.state_dir"


def _holder(fd: int) -> int:
    """Who holds the lock on `fd`; 0 if it is in another pid namespace, or has just given it up."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return int(pid) if kind != fcntl.F_UNLCK else 0
