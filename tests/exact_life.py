"""Lives of an exactly-once queue's sink in this process, over one journal and a real queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.fork import fork
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt
from tests.fake_host import OfferedSinkHost

EPOCH = OfferedSinkHost.EPOCH
FOREIGN = """
import sys, sysv_ipc
queue = sysv_ipc.MessageQueue(int(sys.argv[1]))
for _ in sys.stdin:
    queue.send(b"foreign", type=9)
    print(flush=True)
"""
Send = Callable[[int, int, int], int]


class Host(OfferedSinkHost):
    """With the senders that it may have by then."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._senders: tuple[int, ...] = ()

    def close(self) -> None:
        """Close it, and its senders."""
        for pid in self._senders:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        super().close()

    def senders(self, pids: tuple[int, ...]) -> None:
        """Return the senders, which end with it."""
        self._senders = pids

    def confine_sender(self) -> None:
        """Do nothing: nothing confines this process either."""


@contextmanager
def a_queue() -> Iterator[sysv_ipc.MessageQueue]:
    """Yield a queue with a key of its own."""
    made = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600, 8192)
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def live(path: Path, key: int) -> Iterator[tuple[Host, ExactQueueSink]]:
    """Yield an agent that has just started."""
    host = Host(path)
    sink = ExactQueueSink(host, QueueEndpoint(in_=QueueIn(key, 1)), key, host.journal, InDoubt.RESEND)
    sink.start()
    try:
        yield host, sink
    finally:
        host.close()


def killed(send: Send, *, after: bool) -> Send:
    """Return a msgsnd in which SIGKILL falls."""

    def do(queue: int, address: int, size: int) -> int:
        if after:
            send(queue, address, size)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return do


def die_sending(path: Path, key: int, *, after: bool) -> None:
    """Run a life that ends with the first message, just before or just after it is in the queue."""

    def life() -> int:
        setattr(linux, "try_msgsnd", killed(linux.try_msgsnd, after=after))  # noqa: B010  (a function, for mypy)
        with live(path, key) as (_, sink):
            sink.put(Run(EPOCH, 1, 1, [b"one"]))
        return 0

    assert fork(life).reap() == -signal.SIGKILL


def contents(queue: sysv_ipc.MessageQueue) -> list[bytes]:
    return [queue.receive()[0] for _ in range(queue.current_messages)]


class Foreigner:
    """A different program, which sends into the queue on request; a context manager."""

    def __init__(self, key: int) -> None:
        command = [sys.executable, "-c", FOREIGN, str(key)]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Foreigner:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._program.communicate()

    def send(self) -> None:
        """Send one message, of type 9."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(b"\n")
        self._program.stdin.flush()
        self._program.stdout.readline()
