"""Stop a process, from its fork on, at each of its system calls, by ptrace(2), so that nothing is left to chance.

strace's tampering (tampering.py) waits at the n-th call of one name, and its start costs a tenth of a second. Here one
tracer counts the calls of every name, and what a call is given is read from its registers' copy.

Facts that bind this: all requests come from the thread that attached; a process that is seized is not stopped by that;
a forked child of a traced process begins with a SIGSTOP or PTRACE_EVENT_STOP, and the parent may be released before it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

_CONT, _DETACH, _SYSCALL = 7, 17, 24  # linux/ptrace.h
_SEIZE, _GET_EVENT, _GET_INFO = 0x4206, 0x4201, 0x420E
_TRACE_SYSGOOD, _TRACE_FORKS = 0x01, 0x02 | 0x04 | 0x08
_FORK_EVENTS = {1, 2, 3}
_EVENT_STOP = 128
_ENTRY = 1  # PTRACE_SYSCALL_INFO_ENTRY
_WALL = 0x4000_0000
_SIZE = 88  # of struct ptrace_syscall_info

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Call(NamedTuple):
    """A system call that a process is about to make: its number, and its first two arguments."""

    number: int
    first: int
    second: int


def _ptrace(request: int, pid: int, address: int = 0, data: int | ctypes.Array[ctypes.c_char] = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {pid}: {os.strerror(number)}")


class Stepper:
    """Traces a process until it forks; then traces its child. Use it from one thread, and end it by `release`."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._threads = [int(name) for name in os.listdir(f"/proc/{parent}/task")]
        for thread in self._threads:
            _ptrace(_SEIZE, thread, 0, _TRACE_FORKS)
        self.child = 0

    def wait_fork(self) -> int:
        """Wait until the parent has forked; let it go, and return its child, which stands still."""
        while not self.child:
            pid, status = os.waitpid(self._parent, _WALL)
            event = status >> 16
            if event in _FORK_EVENTS:
                message = ctypes.create_string_buffer(8)
                _ptrace(_GET_EVENT, pid, 0, message)
                self.child = struct.unpack("Q", message.raw)[0]
                os.waitpid(self.child, _WALL)
            else:
                _ptrace(_CONT, pid, 0, 0 if event == _EVENT_STOP else os.WSTOPSIG(status))
        _ptrace(_DETACH, self._parent)
        _ptrace(0x4200, self.child, 0, _TRACE_SYSGOOD)  # PTRACE_SETOPTIONS
        return self.child

    def calls(self) -> Iterator[Call]:
        """Yield each system call of the child before the kernel makes it, until the child ends."""
        delivered = 0
        while True:
            try:
                _ptrace(_SYSCALL, self.child, 0, delivered)
                _, status = os.waitpid(self.child, _WALL)
            except (ProcessLookupError, ChildProcessError):
                return
            if not os.WIFSTOPPED(status):
                return
            delivered = 0
            if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
                info = ctypes.create_string_buffer(_SIZE)
                _ptrace(_GET_INFO, self.child, _SIZE, info)
                if info.raw[0] == _ENTRY:
                    yield Call(*struct.unpack_from("=QQQ", info.raw, 24))
            elif status >> 16 != _EVENT_STOP:
                delivered = os.WSTOPSIG(status)

    def release(self) -> None:
        """Release the child; its parent too, if it has not forked."""
        for pid in [self.child] if self.child else self._threads:
            with suppress(OSError):
                _ptrace(_DETACH, pid)


@contextmanager
def next_fork(parent: int, trigger: Callable[[], object]) -> Iterator[Stepper]:
    """Yield a stepper of the child that `trigger` makes the process fork."""
    stepper = Stepper(parent)
    asking = threading.Thread(target=trigger)  # the parent answers only after its fork
    asking.start()
    try:
        stepper.wait_fork()
        asking.join()
        yield stepper
    finally:
        stepper.release()
