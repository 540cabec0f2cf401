"""A single thread held still by ptrace(2), which neither its process nor its parent can see: it hangs, for them."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.system.room import wait_until

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17  # linux/ptrace.h
_WALL = 0x4000_0000  # __WALL of waitid(2): threads too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {thread}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def held(thread: int) -> Iterator[None]:
    """Hold the thread, until the end or until its process is killed (which it does not delay)."""
    _ptrace(_SEIZE, thread)
    _ptrace(_INTERRUPT, thread)
    os.waitpid(thread, _WALL)
    reaper = threading.Thread(target=_reap, args=(thread,))
    reaper.start()
    try:
        yield
    finally:
        with suppress(OSError):  # it has been killed
            _ptrace(_DETACH, thread)
        reaper.join()


def _reap(thread: int) -> None:
    """Reap: a process is not dead before each thread's tracer has waited for it."""
    with suppress(ChildProcessError):  # it is not traced any more
        while os.WIFSTOPPED(os.waitpid(thread, _WALL)[1]):
            pass


def waiting_in(pid: int, call: str) -> int:
    """Return the thread of it that waits in that system call of the kernel, once one does."""

    def found() -> list[int]:
        places = {tid: Path(f"/proc/{pid}/task/{tid}/wchan").read_text(encoding="ascii") for tid in threads_of(pid)}
        return [tid for tid, place in places.items() if call in place]

    wait_until(lambda: len(found()) == 1, f"a thread waits in {call}")
    return found()[0]


def threads_of(pid: int) -> list[int]:
    """Return its threads, the first being the process itself."""
    return sorted(int(name) for name in os.listdir(Path(f"/proc/{pid}/task")))
