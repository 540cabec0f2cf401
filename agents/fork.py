"""The only fork: how a child is made that never returns into its parent's stack.

It leaves by `os._exit`. Signals are blocked around the fork until the child has taken the handlers and the wake-up
descriptor off, or a signal meant for the parent would be written into the parent's pipe by the child.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass

EXIT_AGAIN = 75  # something that may pass: the supervisor starts the agent again
EXIT_NEVER = 78  # what only a person can fix: the supervisor does not
_HIGH = 128  # an agent has some thirty descriptors
_OWN: set[int] = set()  # the children of this process that it has forked and not yet reaped


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process; `pidfd` is readable when it has ended; the process that reaps it must close `pidfd`."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """Send SIGKILL; harmless when it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """Return its exit code, negative for a signal's number. Call it when `pidfd` is readable."""
        _, status = os.waitpid(self.pid, 0)
        _OWN.discard(self.pid)
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


def is_own_child(pid: int) -> bool:
    """True if this process has forked that child. The kernel gives a subreaper other children too."""
    return pid in _OWN


def has_ended(pidfd: int) -> bool:
    """True if the process is dead (a zombie is). By poll: select(2) accepts no descriptor beyond 1023."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def has_stopped_child() -> bool:
    """True if a child of this process is stopped now (SIGSTOP); waitid(2). The call changes nothing."""
    try:
        return os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def release_first(fd: int) -> int:
    """Move a descriptor to a number beyond all others, the first that the kernel closes when the process dies.

    The agent's successor waits for this descriptor, and so for all that the kernel closes before it; an inotify
    instance takes some 16 ms. If the limit of descriptors is lower (EINVAL), the descriptor gets any free number.
    Raises OSError (EMFILE) after closing it.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    finally:
        os.close(fd)


def fork(main: Callable[[], int]) -> Child:
    """Run `main` in a child, whose exit code is its result. Raises OSError (EAGAIN: no more processes, EMFILE)."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(main)
        pidfd = _hold(pid)
        _OWN.add(pid)
        return Child(pid, pidfd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hold(pid: int) -> int:
    """Open the child's pidfd; without a descriptor for it, end the child too. Raise OSError (EMFILE)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # the number is still its own: no process has waited for it
        os.waitpid(pid, 0)
        raise


def _be_child(main: Callable[[], int]) -> None:
    code = EXIT_AGAIN
    try:
        _OWN.clear()
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = main()
    except BaseException as error:  # noqa: BLE001  (it must not unwind the parent's stack)
        os.write(2, f"nsbridged: child: {type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)
