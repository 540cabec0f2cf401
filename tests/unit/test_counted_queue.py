"""Queues whose messages the kernel counts: killed at any line, each message is sent once and received once."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents import linux as counted_linux
from nsbridge.agents.counter import LENGTHS
from nsbridge.agents.endpoints.doubt import leave_counter
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.queue.counted_sink import CountedQueueSink
from nsbridge.agents.endpoints.queue.counted_source import CountedQueueSource
from nsbridge.agents.journal import counted
from nsbridge.agents.journal.counted import SentCount, recover_landed
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt
from tests.exact_life import EPOCH, Host, a_queue
from tests.fake_counter import FakeCounter
from tests.fake_host import FakeHost
from tests.kills import killed_at

SENDING = ("queue/sink.py", "queue/counted_sink.py", "journal/counted.py", "journal/sinkjournal.py")
RECEIVING = ("queue/counted_source.py", "journal/counted.py", "journal/sourcejournal.py")
BODIES = [b"one", b"", b"three" * 50, b"four", b"five", b"six"]


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    with a_queue() as made:
        yield made


@contextmanager
def sink_life(
    path: Path, key: int, counter: FakeCounter, in_doubt: InDoubt = InDoubt.RESEND
) -> Iterator[tuple[Host, CountedQueueSink]]:
    """Start an agent's sink."""
    host = Host(path)
    config = QueueEndpoint(in_=QueueIn(key, 1))
    sink = CountedQueueSink(host, config, key, SentCount(host.journal, counter), in_doubt)
    sink.start()
    try:
        yield host, sink
    finally:
        host.close()


def offer(sink: CountedQueueSink, runs: list[Run]) -> None:
    """Offer all messages, as a source does that knows nothing of the sink's life before."""
    for run in runs:
        assert sink.put(run) == len(run.bodies)


def drained(queue: sysv_ipc.MessageQueue) -> list[bytes]:
    """Return what is in the queue, but for what a stranger sent."""
    found = []
    with suppress(sysv_ipc.BusyError):
        while True:
            body, mtype = queue.receive(False)
            found += [body] if mtype == 1 else []
    return found


RUNS = [Run(EPOCH, 1, 0, BODIES[:4]), Run(EPOCH, 5, 0, BODIES[4:])]


def killed_in_flight(
    path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch, last: int
) -> FakeCounter:
    """Let an agent send the first run and be killed when it had just begun with the messages up to `last`."""
    counter = FakeCounter()
    counter.count(monkeypatch)
    with sink_life(path, queue.key, counter) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, RUNS[:1])
        SentCount(host.journal, counter).begin(last)
    return counter


def test_sink_killed_at_any_line_sends_each_message_once(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger sends into the same queue and reads from it: the count is of the agent's calls alone."""
    counter = FakeCounter()
    counter.count(monkeypatch)
    line = 0
    for line in count(1):
        path, is_whole = tmp_path / f"{line}.in", False
        with sink_life(path, queue.key, counter) as (host, sink):
            host.journal.adopt(EPOCH, 0)
            with killed_at(line, *SENDING):
                offer(sink, RUNS)
                is_whole = True
        queue.send(b"a stranger's", type=9)
        with sink_life(path, queue.key, counter) as (host, sink):
            offer(sink, RUNS)
            assert (drained(queue), host.journal.cells[IN_DOUBT]) == (BODIES, 0), f"killed at line {line}"
        path.unlink()
        if is_whole:
            break
    assert line > 60


def test_sink_resumes_although_its_messages_were_taken(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty queue says nothing; the count does."""
    counter = killed_in_flight(tmp_path / "a.in", queue, monkeypatch, last=6)
    counter.sent += 1  # the fifth was sent, and the kill came before it was noted
    assert drained(queue) == BODIES[:4]
    with sink_life(tmp_path / "a.in", queue.key, counter) as (host, sink):
        assert host.journal.handed == 5
        offer(sink, RUNS[1:])
    assert drained(queue) == BODIES[5:]


@pytest.mark.parametrize(
    ("in_doubt", "sent", "not_delivered"), [(InDoubt.RESEND, BODIES[4:], 0), (InDoubt.SKIP, [], 2)]
)
@pytest.mark.parametrize("cause", ["another life", "a stranger with the agent's pid", "skipped counts"])
def test_count_that_cannot_be_believed_leaves_a_doubt(
    tmp_path: Path,
    queue: sysv_ipc.MessageQueue,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
    in_doubt: InDoubt,
    sent: list[bytes],
    not_delivered: int,
) -> None:
    """The two messages in flight are counted, logged, and sent again or skipped, as configured."""
    counter = killed_in_flight(tmp_path / "a.in", queue, monkeypatch, last=6)
    drained(queue)
    if cause == "another life":
        counter.life = 8
    elif cause == "skipped counts":
        counter.skips = 3
    else:
        counter.sent += 100
    with sink_life(tmp_path / "a.in", queue.key, counter, in_doubt) as (host, sink):
        assert host.journal.cells[IN_DOUBT] == 2
        assert host.journal.cells[NOT_DELIVERED] == not_delivered
        offer(sink, RUNS[1:])
        assert any("unknown whether 2 messages after 4" in line for line in host.said)
    assert drained(queue) == sent


def test_agent_without_counter_knows_what_a_counted_one_left(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_flight(tmp_path / "a.in", queue, monkeypatch, last=5)
    host = Host(tmp_path / "a.in")
    try:
        leave_counter(host, host.journal, InDoubt.SKIP)
        assert (host.journal.cells[IN_DOUBT], host.journal.handed) == (1, 5)
        leave_counter(host, host.journal, InDoubt.SKIP)
        assert host.journal.cells[IN_DOUBT] == 1
    finally:
        host.close()


# -- the source


class TakingHost(FakeHost):
    """Hosts a source that receives into a journal; nothing is confirmed."""

    def __init__(self, journal: SourceJournal) -> None:
        super().__init__()
        self.journal = journal

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        return 1024, 1 << 20

    def landed(self, seq: int) -> None:
        """See AgentApi."""
        assert seq == self.journal.taken

    def flush(self) -> None:
        """See AgentApi."""

    def close(self) -> None:
        """Close the journal too."""
        self.journal.close()
        super().close()


def test_source_killed_at_any_line_receives_each_message_once(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths differ, and nobody looked at them before: the kernel's ring of lengths shows where each message is."""
    counter = FakeCounter()
    counter.count(monkeypatch)
    config = QueueEndpoint(out=QueueOut(queue.key, 0))
    line = 0
    for line in count(1):
        path, is_whole = tmp_path / str(line), False
        for body in BODIES:
            queue.send(body, type=3)
        for attempt in range(2):
            made = _opened(path, counter)
            host = TakingHost(made)
            source = CountedQueueSource(host, config, queue.key, made, counter)
            with killed_at(line if not attempt else 1 << 30, *RECEIVING):
                source._take_all(queue.id)
                is_whole = is_whole or not attempt
            host.close()
        made = _opened(path, counter)
        assert [made.get(seq).body for seq in range(1, made.taken + 1)] == BODIES, f"killed at line {line}"
        made.close()
        if is_whole:
            break
    assert line > 60


def test_killed_source_takes_no_old_message_for_a_landed_one(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is a ring: behind what has just landed it still has what it had one lap ago."""
    counter = FakeCounter()
    counter.count(monkeypatch)
    config = QueueEndpoint(out=QueueOut(queue.key, 0))
    line = 0
    for line in count(1):
        path, is_whole, sent = tmp_path / str(line), False, 0
        host = TakingHost(_opened(path, counter))
        source = CountedQueueSource(host, config, queue.key, host.journal, counter)
        for size in (20, 20, 20, 20, 3):
            for _ in range(size):
                sent += 1
                queue.send(b"%4d" % sent, type=1)
            with killed_at(line if size == 3 else 1 << 30, *RECEIVING):
                source._take_all(queue.id)
                is_whole = size == 3
            if size != 3:
                host.journal.confirm(host.journal.taken)
        host.close()
        made = _opened(path, counter)
        assert made.taken + queue.current_messages == sent, f"killed at line {line}"
        assert [int(made.get(seq).body) for seq in range(81, made.taken + 1)] == list(range(81, made.taken + 1))
        made.close()
        drained(queue)
        if is_whole:
            break
    assert line > 60


class StoppedHost(TakingHost):
    """Is asked to stop while the thread of its source waits in msgrcv."""

    flushes = 0

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        return (0, 0)

    def flush(self) -> None:
        """See AgentApi."""
        self.flushes += 1


def test_agent_can_report_after_an_interrupted_wait(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """With each flush the agent sees if it is drained."""
    made = open_source(str(tmp_path / "a.out"), 35, 1 << 16)
    host = StoppedHost(made)
    source = CountedQueueSource(host, QueueEndpoint(out=QueueOut(queue.key, 0)), queue.key, made, FakeCounter())
    unsent = source._received(-errno.EINTR)
    assert unsent == 0
    source._take_all(queue.id, unsent)
    assert host.flushes == 1
    host.close()


def _opened(path: Path, counter: FakeCounter | None) -> SourceJournal:
    def settle(made: SourceJournal) -> None:
        recover_landed(made, counter)

    return open_source(str(path), 35, 1 << 16, settle=settle)


def test_more_messages_than_lengths_are_received_in_batches(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = FakeCounter()
    counter.count(monkeypatch)
    made = open_source(str(tmp_path / "a.out"), 1027, 1 << 20)
    host = TakingHost(made)
    source = CountedQueueSource(host, QueueEndpoint(out=QueueOut(queue.key, 0)), queue.key, made, counter)
    bodies = [b"%d" % number for number in range(3 * LENGTHS)]
    for body in bodies:
        queue.send(body, type=1)
    source._take_all(queue.id)
    assert [made.get(seq).body for seq in range(1, made.taken + 1)] == bodies
    host.close()


@pytest.mark.parametrize("has_landed", [False, True])
def test_landed_message_without_a_count_is_reported(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch, has_landed: bool
) -> None:
    """Its length died with the process, so nothing can be delivered: the log says that it may be lost."""
    counter = FakeCounter()
    counter.count(monkeypatch)
    made = open_source(str(tmp_path / "a.out"), 35, 1 << 16)
    landing = counted.Landing(made, counter)
    place = landing.begin(8192)
    if has_landed:
        queue.send(b"x", type=5)
        assert counted_receive(queue.id, place) == 1
    made.close()
    made = open_source(str(tmp_path / "a.out"), 35, 1 << 16)
    assert recover_landed(made, None).doubtful == has_landed
    assert recover_landed(made, None).doubtful == 0
    made.close()


def counted_receive(queue: int, place: int) -> int:
    """Receive a message as the source does."""
    return counted_linux.try_msgrcv(queue, place, 8192, 0, counted_linux.IPC_NOWAIT)
