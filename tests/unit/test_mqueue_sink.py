"""The sink of a POSIX queue: killed at any line, and what a hostile container does to its queue."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.evidence import CountedSends
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, MqueueIn
from nsbridge.agents.journal.counted import SentCount
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED
from nsbridge.agents.wire import Run
from nsbridge.config.schema import Delivery, InDoubt, RouteConfig
from tests.fake_counter import FakeCounter
from tests.kills import killed_at
from tests.mqueue_life import EPOCH, counter_fixture, offer, polling_fixture, queue_fixture, route, sink_life  # noqa: F401  (fixtures)
from tests.posix_queue import PosixQueue

SENDING = ("mqueue/sink.py", "endpoints/evidence.py", "journal/counted.py", "journal/sinkjournal.py")
BODIES = [b"one", b"", b"three" * 50, b"four", b"five", b"six"]
RUNS = [Run(EPOCH, 1, 0, BODIES[:4]), Run(EPOCH, 5, 7, BODIES[4:])]


@pytest.mark.usefixtures("polling")
def test_sink_killed_at_any_line_sends_each_message_once(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter
) -> None:
    line = 0
    for line in count(1):
        path, is_whole = tmp_path / f"{line}.in", False
        with sink_life(path, queue.name, counter) as (host, sink):
            host.journal.adopt(EPOCH, 0)
            with killed_at(line, *SENDING):
                offer(sink, RUNS)
                is_whole = True
        with sink_life(path, queue.name, counter) as (host, sink):
            offer(sink, RUNS)
            sent = sorted(body for body, _ in queue.drained())
            assert (sent, host.journal.cells[IN_DOUBT]) == (sorted(BODIES), 0), f"killed at line {line}"
        path.unlink()
        if is_whole:
            break
    assert line > 60


@pytest.mark.usefixtures("polling")
@pytest.mark.parametrize(
    ("promise", "most", "least"),
    [
        (route(), 7, 6),
        (route(in_doubt=InDoubt.SKIP), 6, 5),
        (route(Delivery.AT_LEAST_ONCE), 7, 6),
    ],
    ids=["resend", "skip", "at-least-once"],
)
def test_sink_without_counter_doubts_one_message(
    tmp_path: Path, queue: PosixQueue, promise: RouteConfig, most: int, least: int
) -> None:
    """One is sent twice, or lost, as in_doubt says; all others arrive once."""
    line, found = 0, set()
    for line in count(1):
        path, is_whole = tmp_path / f"{line}.in", False
        with sink_life(path, queue.name, None, promise) as (host, sink):
            host.journal.adopt(EPOCH, 0)
            with killed_at(line, *SENDING):
                offer(sink, RUNS)
                is_whole = True
        with sink_life(path, queue.name, None, promise) as (host, sink):
            offer(sink, RUNS)
            sent = queue.drained()
            found.add(len(sent))
            doubts = host.journal.cells[IN_DOUBT]
            assert least <= len(sent) <= most, f"killed at line {line}"
            assert doubts <= (promise.delivery is Delivery.EXACTLY_ONCE)
            assert host.journal.cells[NOT_DELIVERED] == (doubts if promise.in_doubt is InDoubt.SKIP else 0)
        if is_whole:
            break
    assert most in found or least in found
    assert line > 60


def test_sink_decides_when_the_counter_comes_or_goes(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    path = tmp_path / "a.in"
    with sink_life(path, queue.name, counter) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, RUNS[:1])
        SentCount(host.journal, counter).begin(6)
    with sink_life(path, queue.name, None) as (host, sink):
        assert host.journal.cells[IN_DOUBT] == 2
        sink._evidence.before(5)
    with sink_life(path, queue.name, counter) as (host, sink):
        assert host.journal.cells[IN_DOUBT] == 3
        offer(sink, RUNS[1:])
        assert isinstance(sink._evidence, CountedSends)
    assert sorted(body for body, _ in queue.drained()) == sorted(BODIES)


def test_sink_carries_priorities(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    with sink_life(tmp_path / "a.in", queue.name, counter) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, [Run(EPOCH, 1, 3, [b"c"]), Run(EPOCH, 2, 32767, [b"a"]), Run(EPOCH, 3, 32768, [b"x"])])
        assert host.letters == [(3, "its type is 32768, and a priority is at most 32767: set in.priority")]
    assert queue.drained() == [(b"a", 32767), (b"c", 3)]
    config = MqueueEndpoint(in_=MqueueIn(queue.name, 9))
    with sink_life(tmp_path / "b.in", queue.name, counter, config=config) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, [Run(EPOCH, 1, 1 << 40, [b"y"])])
    assert queue.drained() == [(b"y", 9)]


def test_too_long_message_becomes_a_dead_letter(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    with sink_life(tmp_path / "a.in", queue.name, counter) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, [Run(EPOCH, 1, 0, [b"a", bytes(513), b"b"])])
        assert host.letters == [(2, "513 bytes are more than the queue takes: its mq_msgsize is 512")]
    assert queue.drained() == [(b"a", 0), (b"b", 0)]
    config = MqueueEndpoint(in_=MqueueIn(queue.name), max_message=100)
    with sink_life(tmp_path / "b.in", queue.name, counter, config=config) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, [Run(EPOCH, 1, 0, [bytes(101)])])
        assert host.letters == [(1, "101 bytes are more than max_message = 100 of this agent")]


def test_queue_remade_with_a_lower_limit_buries_nothing(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter
) -> None:
    """A message within the former limit waits, also after a kill; one beyond it is a dead letter at once."""
    path, remade = tmp_path / "a.in", []
    with sink_life(path, queue.name, counter) as (host, _sink):
        host.journal.adopt(EPOCH, 0)
    try:
        queue.unlink()
        remade.append(PosixQueue(queue.name, max_message=10, is_waiting=False))
        with sink_life(path, queue.name, counter) as (host, _sink):
            host.send(Run(EPOCH, 1, 0, [b"a", bytes(513), bytes(500), b"b"]))
            host.run_until(lambda: "mq_msgsize = 10, and a message of 500 bytes waits" in host.reason, "it waits")
            assert [seq for seq, _ in host.letters] == [2]
            remade[0].unlink()
            assert remade[0].drained() == [(b"a", 0)]
            remade.append(PosixQueue(queue.name, max_message=512, is_waiting=False))
            host.run_until(lambda: not host.waiting, "it is sent")
            assert host.reason == ""
            assert remade[1].drained() == [(bytes(500), 0), (b"b", 0)]
    finally:
        for made in remade:
            made.close()


def test_full_queue_is_waited_for_in_the_loop(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    with sink_life(tmp_path / "a.in", queue.name, counter) as (host, _sink):
        host.journal.adopt(EPOCH, 0)
        bodies = [b"%d" % number for number in range(25)]
        host.send(Run(EPOCH, 1, 0, bodies))
        assert host.reason == f"POSIX queue {queue.name} is full: 10 messages"
        taken = []
        for _ in range(5):
            taken += queue.drained()
            host.settle()
        assert [body for body, _ in taken] == bodies
        assert host.reason == ""


def test_sink_follows_a_queue_that_is_removed_and_made_again(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter
) -> None:
    with sink_life(tmp_path / "a.in", queue.name, counter) as (host, sink):
        host.journal.adopt(EPOCH, 0)
        offer(sink, [Run(EPOCH, 1, 0, [b"a"])])
        queue.unlink()
        host.send(Run(EPOCH, 2, 0, [b"b"]))
        assert "the program started?" in host.reason
        with PosixQueue(queue.name, max_message=20, is_waiting=False) as again:
            host.run_until(lambda: host.journal.handed == 2, "it is sent into the new queue")
            assert again.drained() == [(b"b", 0)]
            offer(sink, [Run(EPOCH, 3, 0, [bytes(513)])])
            assert host.letters == [(3, "513 bytes are more than the queue takes: its mq_msgsize is 20")]
        assert [line for line in host.said if "was removed" in line] == [
            f"POSIX queue {queue.name} was removed, with what was in it"
        ]


def test_missing_queue_is_made_with_mode_and_limits(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    queue.unlink()
    config = MqueueEndpoint(in_=MqueueIn(queue.name), create=True, mode=0o642, max_messages=3, max_message=77)
    with sink_life(tmp_path / "a.in", queue.name, counter, config=config) as (host, _sink):
        with PosixQueue(queue.name) as made:
            assert (made.max_messages, made.max_message) == (3, 77)
            assert os.fstat(made.fd).st_mode & 0o777 == 0o642
        assert host.reason == ""


def test_limits_of_the_namespace_are_named(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's errors mean several things; each names the setting to raise."""
    queue.unlink()
    texts = {
        errno.EINVAL: r"max_messages = 10 or max_message = 99 .*fs\.mqueue\.msg_max or fs\.mqueue\.msgsize_max",
        errno.ENOSPC: r"fs\.mqueue\.queues_max",
        errno.EMFILE: r"RLIMIT_MSGQUEUE, ulimit -q",
    }
    config = MqueueEndpoint(in_=MqueueIn(queue.name), create=True, max_message=99)
    for number, text in texts.items():

        def refuse(call: str, _number: int, _name: bytes, flags: int, *rest: object, why: int = number) -> int:
            raise OSError(why if flags & os.O_CREAT else errno.ENOENT, "")

        monkeypatch.setattr(linux, "syscall", refuse)
        with (
            pytest.raises(Blocked, match=text),
            sink_life(tmp_path / f"{number}.in", queue.name, counter, config=config) as (_host, sink),
        ):
            sink.queue.open()
