"""The source of a POSIX queue: killed at any line, and what a hostile container does to its queue."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.counter import LENGTHS
from nsbridge.agents.endpoints.mqueue.calls import NUMBERS
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, MqueueOut
from nsbridge.agents.wire import Message
from tests.fake_counter import FakeCounter
from tests.kills import killed_at
from tests.mqueue_life import TakingHost, counter_fixture, polling_fixture, queue_fixture, source_life  # noqa: F401  (fixtures)
from tests.posix_queue import PosixQueue

RECEIVING = ("mqueue/source.py", "endpoints/receiving.py", "journal/counted.py", "journal/sourcejournal.py")
BODIES = [b"one", b"", b"three" * 50, b"four", b"five", b"six"]
OTHER_USER = 1234


def fill(queue: PosixQueue, bodies: list[bytes]) -> None:
    for number, body in enumerate(bodies):
        queue.send(body, 100 - number)


WHOLE = [Message(100 - number, body) for number, body in enumerate(BODIES)]


@pytest.mark.usefixtures("polling")
def test_source_killed_at_any_line_receives_each_message_once(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter
) -> None:
    """Priorities too; and priority 0 is a priority."""
    line = 0
    whole = [*WHOLE[:-1], Message(0, BODIES[-1])]
    for line in count(1):
        path, is_whole = tmp_path / str(line), False
        fill(queue, BODIES[:-1])
        queue.send(BODIES[-1], 0)
        with source_life(path, queue.name, counter) as (host, source), killed_at(line, *RECEIVING):
            source._take_all()
            is_whole = True
        with source_life(path, queue.name, counter) as (host, _source):
            host.settle()
            assert host.took() == whole, f"killed at line {line}"
        if is_whole:
            break
    assert line > 60


@pytest.mark.usefixtures("polling")
def test_source_without_counter_reports_a_lost_message(tmp_path: Path, queue: PosixQueue) -> None:
    line, lost = 0, 0
    for line in count(1):
        path, is_whole = tmp_path / str(line), False
        for body in BODIES[:3]:
            queue.send(body, 0)
        with source_life(path, queue.name, None) as (host, source), killed_at(line, *RECEIVING):
            source._take_all()
            is_whole = True
        with source_life(path, queue.name, None) as (host, _source):
            host.settle()
            missing = 3 - len(host.took())
            assert missing <= 1
            assert ("1 may be lost" in host.said) == bool(missing), f"killed at line {line}"
            lost += missing
        if is_whole:
            break
    assert lost
    assert line > 60


def test_more_messages_than_lengths_are_received_in_order(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter
) -> None:
    with source_life(tmp_path / "a.out", queue.name, counter) as (host, _source):
        bodies = [b"%d" % number for number in range(3 * LENGTHS)]
        for body in bodies:
            try:
                queue.send(body)
            except BlockingIOError:
                host.settle()
                queue.send(body)
        host.settle()
        assert [message.body for message in host.took()] == bodies


def test_full_window_leaves_messages_in_the_queue(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    with source_life(tmp_path / "a.out", queue.name, counter, messages=2) as (host, source):
        fill(queue, BODIES)
        host.settle()
        assert host.took() == WHOLE[:2]
        host.journal.confirm(2)
        source.room_again()
        host.settle()
        assert host.journal.taken == 4
        assert len(queue.drained()) == 2


def test_removed_queue_is_emptied_first(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    """The window is full while it is removed, so what it has is taken later."""
    with source_life(tmp_path / "a.out", queue.name, counter, messages=2) as (host, source):
        fill(queue, BODIES[:4])
        host.settle()
        queue.unlink()
        with PosixQueue(queue.name, is_waiting=False) as again:
            again.send(b"new", 1)
            host.run_until(lambda: any("was removed; what it still has is taken" in line for line in host.said), "seen")
            assert host.journal.taken == 2
            for _ in range(3):
                host.journal.confirm(host.journal.taken)
                source.room_again()
                host.settle()
            bodies = [message.body for message in host.took()[-1:]]
            assert (host.journal.taken, bodies) == (5, [b"new"])


def test_longest_message_must_fit_max_message(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    config = MqueueEndpoint(out=MqueueOut(queue.name), max_message=511)
    with source_life(tmp_path / "a.out", queue.name, counter, config=config) as (host, _source):
        assert "may have 512 bytes (mq_msgsize), more than max_message = 511 of this agent" in host.reason


@pytest.mark.parametrize("polls", [False, True], ids=["inotify", "polling"])
def test_agent_enters_anew_when_the_owner_changes(
    tmp_path: Path, queue: PosixQueue, counter: FakeCounter, polls: bool, request: pytest.FixtureRequest
) -> None:
    if polls:
        request.getfixturevalue("polling")
    with source_life(tmp_path / "a.out", queue.name, counter) as (host, _source):
        os.fchown(queue.fd, OTHER_USER, OTHER_USER)
        with pytest.raises(Gone, match=rf"now belongs to uid {OTHER_USER} gid {OTHER_USER}.*it enters anew"):
            host.run_until(lambda: False, "it ends")
        os.fchown(queue.fd, 0, 0)


def test_changed_mode_changes_nothing_for_its_owner(tmp_path: Path, queue: PosixQueue, counter: FakeCounter) -> None:
    """The queue is opened again, and messages follow."""
    with source_life(tmp_path / "a.out", queue.name, counter) as (host, source):
        before = source._receiver
        os.fchmod(queue.fd, 0o600)
        host.run_until(lambda: source._receiver is not before, "it is opened again")
        fill(queue, BODIES)
        host.settle()
        assert host.took() == WHOLE


def test_calls_have_the_numbers_of_both_architectures() -> None:
    assert {name: len(numbers) for name, numbers in NUMBERS.items()} == dict.fromkeys(NUMBERS, 2)
