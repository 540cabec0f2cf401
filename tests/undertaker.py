"""Closes inotify instances in a process of its own: each close waits 10 ms for the kernel, and tests kill thousands.

A process that is killed does not make others wait for that either: the kernel closes what it had while it exits.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_AT_ONCE = 8  # the kernel waits once for all of them
_MOST = 12  # that are not closed yet: all processes of a user may have 128 instances


class Undertaker:
    """The process. It ends when every process that could give it something has ended."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pending = 0
        with theirs:  # the first child ends at once: no test finds a child that it has not started
            number = theirs.fileno()
            subprocess.run([sys.executable, "-IS", __file__, str(number)], pass_fds=[number], check=True)

    @contextmanager
    def closing(self, fds: Iterable[int]) -> Iterator[None]:
        """Let the caller close these within the context. The kernel's own close follows, and no caller waits."""
        for fd in fds:
            with suppress(FileNotFoundError):  # a descriptor by which they were listed
                if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify":
                    self._send(fd)
        yield
        with suppress(OSError):
            self._ours.send(b"now")

    def _send(self, fd: int) -> None:
        with suppress(OSError):  # the process was killed: then each close takes as long as it takes
            while self._pending >= _MOST:
                assert self._ours.recv(1), "the undertaker is gone"
                self._pending -= 1
            socket.send_fds(self._ours, [b"fd"], [fd])
            self._pending += 1


def _close_all(end: socket.socket, due: queue.SimpleQueue[int]) -> None:
    while True:
        os.close(due.get())
        end.send(b"!")


def _be_undertaker(number: int) -> None:
    if os.fork():
        return
    os.setsid()
    end = socket.socket(fileno=number)
    due: queue.SimpleQueue[int] = queue.SimpleQueue()
    for _ in range(_AT_ONCE):
        threading.Thread(target=_close_all, args=[end, due], daemon=True).start()
    held: list[int] = []
    while True:
        message, fds, _, _ = socket.recv_fds(end, 8, 1)
        if not message:
            return
        held += fds
        if message == b"now":
            for fd in held:
                due.put(fd)
            held.clear()


if __name__ == "__main__":
    _be_undertaker(int(sys.argv[1]))
