"""Both sinks of a queue, over a real queue: what is sent, what becomes a dead letter, and what ends each wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.endpoints.queue.sink import QueueSink
from nsbridge.agents.endpoints.removals import Removals
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt
from tests.exact_life import EPOCH, Host, a_queue

BOTH = pytest.mark.parametrize("is_exact", [False, True], ids=["at-least-once", "exactly-once"])
LOOKED_AT = 1.0  # seconds: some ten looks at the senders, and several retries


class SinkHost(Host):
    """Offers one run for as long as the sink does not accept it, and has room for dead letters or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.offered: list[Run] = []
        self.has_space = True
        self.letter = ""  # why one waits

    def offer(self, run: Run | None = None) -> None:
        """Offer messages like an agent: when they arrive, and when the sink is ready again."""
        assert self.sink is not None
        self.offered += [] if run is None else [run]
        while self.offered:
            run = self.offered.pop(0)
            count = self.sink.put(run)
            if count < len(run.bodies):
                self.offered.insert(0, run.after(count))
                return

    def sink_ready(self) -> None:
        """See AgentApi."""
        if self.sink is not None:
            self.offer()

    def put_back(self, run: Run) -> None:
        """See AgentApi."""
        self.offered.insert(0, run)

    def dead(self, one: Run, where: str, why: str) -> bool:
        """See AgentApi."""
        if not self.has_space:
            self.letter = "dead letter: No space left on device"
            self.loop.call_later(0.05, self.sink_ready)
            return False
        self.letter = ""
        return super().dead(one, where, why)


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    with a_queue() as made:
        yield made


@contextmanager
def life(
    path: Path, key: int, *, is_exact: bool, mtype: int | None = None, max_message: int = 1 << 20
) -> Iterator[SinkHost]:
    """Yield an agent that has just started, with its senders."""
    host = SinkHost(path / "a.in")
    config = QueueEndpoint(in_=QueueIn(key, mtype), max_message=max_message)
    sink = (
        ExactQueueSink(host, config, key, host.journal, InDoubt.RESEND)
        if is_exact
        else QueueSink(host, config, key, host.journal)
    )
    sink.start()
    host.sink = sink
    try:
        if is_exact:
            host.run_until(lambda: bool(host._senders), "the senders")
        yield host
    finally:
        host.close()


def take(queue: sysv_ipc.MessageQueue) -> tuple[int, bytes]:
    """Take the next message, of any type; sysv_ipc knows no type beyond a C int."""
    buffer = bytearray(8 + (1 << 16))
    length = linux.try_msgrcv(queue.id, linux.address_of(buffer), len(buffer) - 8, 0, linux.IPC_NOWAIT)
    assert length >= 0, "there is a message"
    return int.from_bytes(buffer[:8], "little"), bytes(buffer[8 : 8 + length])


def serve(host: SinkHost, seconds: float) -> None:
    """Run the loop for that long, which is what is measured."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        host.loop.run_once(0.05)


@BOTH
@pytest.mark.parametrize("is_configured", [False, True], ids=["passed on", "configured"])
@pytest.mark.parametrize("mtype", [1, (1 << 31) - 1, 1 << 31, (1 << 63) - 1])
def test_message_of_any_type_is_sent(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, mtype: int, is_configured: bool, is_exact: bool
) -> None:
    """A program or the configuration chooses the type; empty messages and the longest ones pass too.

    The kind: sysv_ipc raises what is no answer of the kernel (OverflowError for a type beyond a C int).
    """
    bodies = [b"", b"x", bytes(8192), b"last"]
    with life(tmp_path, queue.key, is_exact=is_exact, mtype=mtype if is_configured else None) as host:
        host.offer(Run(EPOCH, 1, 0 if is_configured else mtype, bodies))
        for seq, body in enumerate(bodies, 1):
            host.run_until(lambda: queue.current_messages > 0, f"message {seq} is sent")
            assert take(queue) == (mtype, body)
        host.run_until(lambda: host.journal.handed == len(bodies), "all are noted")
        assert host.dead_letters == []


@BOTH
def test_lowered_queue_limit_holds_messages_back(tmp_path: Path, queue: sysv_ipc.MessageQueue, is_exact: bool) -> None:
    """An agent that starts after the limit was lowered waits too. The kind: no limit that was larger buries."""
    with life(tmp_path, queue.key, is_exact=is_exact) as host:
        host.offer(Run(EPOCH, 1, 1, [b"one"]))
        host.run_until(lambda: host.journal.handed == 1, "the first is sent")
        assert take(queue) == (1, b"one")
        queue.max_size = 1
        host.offer(Run(EPOCH, 2, 1, [b"two"]))
        host.run_until(lambda: "msg_qbytes is 1" in host.reason, "the reason is shown")
        assert "larger before" in host.reason
    with life(tmp_path, queue.key, is_exact=is_exact) as host:
        host.offer(Run(EPOCH, 2, 1, [b"two"]))
        host.run_until(lambda: "msg_qbytes is 1" in host.reason, "the next agent shows it too")
        assert (host.dead_letters, host.journal.handed) == ([], 1)
        queue.max_size = 8192
        host.run_until(lambda: host.journal.handed == 2, "the limit is raised again")
        assert take(queue) == (1, b"two")
        host.run_until(lambda: host.reason == "", "nothing is shown any more")


@BOTH
def test_message_beyond_every_limit_is_a_dead_letter(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, is_exact: bool
) -> None:
    """Longer than the queue ever took, and longer than max_message; what is within them passes."""
    with life(tmp_path, queue.key, is_exact=is_exact, max_message=8000) as host:
        host.offer(Run(EPOCH, 1, 1, [bytes(8193), bytes(8001), bytes(8000)]))
        host.run_until(lambda: host.journal.handed == 3, "all are done with")
        assert [one.first for one in host.dead_letters] == [1, 2]
        assert any("8001 bytes are more than max_message = 8000" in line for line in host.said)
        assert take(queue) == (1, bytes(8000))


@BOTH
@pytest.mark.parametrize("size", [8193, 16385, 20001], ids=["msgmax", "msg_qbytes", "max_message"])
def test_dead_letter_is_written_when_there_is_space(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, size: int, is_exact: bool
) -> None:
    """Nothing else happens meanwhile: only the wait itself ends it, and what comes behind passes then."""
    with life(tmp_path, queue.key, is_exact=is_exact, max_message=20000) as host:
        host.has_space = False
        host.offer(Run(EPOCH, 1, 1, [bytes(size), b"behind"]))
        host.run_until(lambda: bool(host.letter), "the reason is shown")
        host.has_space = True
        host.run_until(lambda: host.journal.handed == 2, "both are done with")
        assert [one.first for one in host.dead_letters] == [1]
        assert take(queue) == (1, b"behind")
        host.run_until(lambda: host.reason == "", "nothing is shown any more")


def test_dead_letter_of_a_lost_source_waits_for_space(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The message arrived before that source lost its journal, and was not offered to the queue."""
    with life(tmp_path, queue.key, is_exact=True) as host:
        host.has_space = False
        host.offer(Run(EPOCH - 1, 1, 1, [b"old"]))
        assert host.letter
        host.has_space = True
        host.run_until(lambda: len(host.dead_letters) == 1, "it is put aside")
        host.run_until(lambda: host.reason == "", "nothing is shown any more")


@BOTH
def test_removed_queue_is_reported_once(tmp_path: Path, is_exact: bool) -> None:
    """While a message is offered and the queue is not made again; then status says that it is missing.

    The kind: every warning that a loop can repeat.
    """
    queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600)
    key, size = queue.key, queue.max_size
    try:
        with life(tmp_path, key, is_exact=is_exact) as host:
            host.offer(Run(EPOCH, 1, 1, [bytes(size // 2), bytes(size // 2)]))
            host.run_until(lambda: host.journal.handed == 2, "the queue is full")
            host.offer(Run(EPOCH, 3, 1, [b"next"]))
            host.run_until(lambda: "queue full" in host.reason, "the next waits")
            queue.remove()
            host.run_until(lambda: "is the key right" in host.reason, "the queue is missing")
            serve(host, LOOKED_AT)
            removals = [line for line in host.said if "removed" in line]
            assert removals == [f"queue 0x{key & 0xFFFFFFFF:x} was removed, with what was in it"]
            assert "no queue 0x" in host.reason
            queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, 0o600)
            host.run_until(lambda: host.journal.handed == 3, "it is sent into the next queue")
    finally:
        queue.remove()


def test_many_removals_are_two_lines(tmp_path: Path) -> None:
    """The first at once, the others as a number."""
    host = SinkHost(tmp_path / "a.in")
    now = [0.0]
    host.loop.now = lambda: now[0]
    removals = Removals(host, "queue 0x51")
    for _ in range(1000):
        assert removals.note() == "queue 0x51 was removed"
    now[0] = 11.0
    host.settle()
    removals.note()
    assert host.said == [
        "queue 0x51 was removed, with what was in it",
        "queue 0x51 was removed 999 times more in the last 10 s",
        "queue 0x51 was removed, with what was in it",
    ]
    host.close()
