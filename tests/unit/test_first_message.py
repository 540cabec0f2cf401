"""The first message of a new agent, which it sends into the queue itself, and what a kill around that leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.exact_queue import ExactQueueSink
from nsbridge.agents.fork import fork
from nsbridge.agents.heartbeat import Voucher
from nsbridge.agents.sinkjournal import IN_DOUBT, SENDERS, open_sink
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt, QueueEndpoint, QueueIn
from tests.fake_host import FakeHost

EPOCH = 7
FOREIGN = "import sys, sysv_ipc; sysv_ipc.MessageQueue(int(sys.argv[1])).send(b'foreign', type=9)"
Send = Callable[[int, int, int], int]


class Host(FakeHost):
    """Of a sink whose journal is kept from one life to the next."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.journal = open_sink(str(path))
        self._senders: tuple[int, ...] = ()
        if not self.journal.epoch:
            self.journal.adopt(EPOCH, 0)

    def close(self) -> None:
        """Also the journal, and the senders."""
        super().close()
        for pid in self._senders:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.journal.close()

    def vouch(self, voucher: Voucher) -> None:
        """Nobody asks."""

    def senders(self, pids: tuple[int, ...]) -> None:
        """To be ended with it."""
        self._senders = pids

    def sink_ready(self) -> None:
        """The test offers what it wants itself."""

    def handed(self, run: Run) -> None:
        """As the agent does."""
        self.journal.hand(run.last)


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    made = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600, 8192)
    yield made
    made.remove()


@contextmanager
def _live(path: Path, key: int) -> Iterator[tuple[Host, ExactQueueSink]]:
    """An agent that has just started."""
    host = Host(path)
    sink = ExactQueueSink(host, QueueEndpoint(in_=QueueIn(key, 1)), key, host.journal, InDoubt.RESEND)
    sink.start()
    try:
        yield host, sink
    finally:
        host.close()


def _killed(send: Send, *, after: bool) -> Send:
    """msgsnd, in which SIGKILL falls."""

    def do(queue: int, address: int, size: int) -> int:
        if after:
            send(queue, address, size)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return do


def _die_sending(path: Path, key: int, *, after: bool) -> None:
    """A life that ends with the first message, just before or just after it is in the queue."""

    def life() -> int:
        setattr(linux, "try_msgsnd", _killed(linux.try_msgsnd, after=after))  # noqa: B010  (a function, for mypy)
        with _live(path, key) as (_, sink):
            sink.put(Run(EPOCH, 1, 1, [b"one"]))
        return 0

    assert fork(life).reap() == -signal.SIGKILL


def _contents(queue: sysv_ipc.MessageQueue) -> list[bytes]:
    return [queue.receive()[0] for _ in range(queue.current_messages)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_kill_while_the_agent_sends_loses_and_repeats_nothing(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, after: bool, foreign: bool
) -> None:
    """Also where somebody else has sent since, which is evidence of nothing; if it is still there, it is found."""
    key, path, run = queue.key, tmp_path / "a.in", Run(EPOCH, 1, 1, [b"one"])
    _die_sending(path, key, after=after)
    if foreign:
        subprocess.run([sys.executable, "-c", FOREIGN, str(key)], check=True)
    with _live(path, key) as (host, sink):
        if host.journal.handed < run.last:
            assert sink.put(run) == 1
        assert host.journal.handed == 1
        assert sorted(_contents(queue)) == sorted([b"one", *([b"foreign"] if foreign else [])])
        assert host.journal.cells[IN_DOUBT] == (foreign and not after), host.said


def test_a_doubt_outlives_a_kill_before_it_is_resolved(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The message was not sent, somebody else has sent since, and the next agent dies before it is offered it again."""
    key, path = queue.key, tmp_path / "a.in"
    _die_sending(path, key, after=False)
    subprocess.run([sys.executable, "-c", FOREIGN, str(key)], check=True)
    for _ in range(2):
        with _live(path, key):
            pass  # it has looked at the evidence
    with _live(path, key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, [b"one"])) == 1
        assert (host.journal.handed, host.journal.cells[IN_DOUBT]) == (1, 1)


def test_the_next_message_is_for_the_other_sender(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The agent sends one message and no more; those after it wait for the senders, and keep their order."""
    bodies = [b"one", b"two", b"three", b""]
    with _live(tmp_path / "a.in", queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, bodies)) == len(bodies)
        assert (host.journal.handed, host.journal.last_sender) == (1, 0)
        assert host.journal.cells[SENDERS] == queue.last_send_pid == os.getpid()
        host.run_until(lambda: host.journal.handed == len(bodies), "the senders send the others")
        assert _contents(queue) == bodies
        assert os.getpid() not in (queue.last_send_pid, host.journal.cells[SENDERS])


def test_a_full_queue_leaves_even_the_first_message_to_the_senders(
    tmp_path: Path, queue: sysv_ipc.MessageQueue
) -> None:
    """And no trace that the agent might have sent it."""
    while queue.current_messages < 2:
        queue.send(bytes(8192), False)
    with _live(tmp_path / "a.in", queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, [b"one" * 1000])) == 1
        assert (host.journal.handed, host.journal.cells[SENDERS]) == (0, 0)
        host.run_until(lambda: host.reason.startswith("queue full"), "it waits for room")
        assert len(_contents(queue)) == 2
        host.run_until(lambda: host.journal.handed == 1, "it is sent")
        assert _contents(queue) == [b"one" * 1000]
