"""The first message of a new agent, which it sends into the queue itself, and what a kill around that leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents.endpoints.queue.cells import SENDERS
from nsbridge.agents.journal.sinkjournal import IN_DOUBT
from nsbridge.agents.wire import Run
from tests.exact_life import EPOCH, Foreigner, a_queue, contents, die_sending, live


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    with a_queue() as made:
        yield made


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_kill_while_the_agent_sends_loses_and_repeats_nothing(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, after: bool, foreign: bool
) -> None:
    """Also where somebody else has sent since, which is evidence of nothing; if it is still there, it is found."""
    key, path, run = queue.key, tmp_path / "a.in", Run(EPOCH, 1, 1, [b"one"])
    die_sending(path, key, after=after)
    if foreign:
        with Foreigner(key) as foreigner:
            foreigner.send()
    with live(path, key) as (host, sink):
        if host.journal.handed < run.last:
            assert sink.put(run) == 1
        assert host.journal.handed == 1
        assert sorted(contents(queue)) == sorted([b"one", *([b"foreign"] if foreign else [])])
        assert host.journal.cells[IN_DOUBT] == (foreign and not after), host.said


def test_a_doubt_outlives_a_kill_before_it_is_resolved(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The message was not sent, somebody else has sent since, and the next agent dies before it is offered it again."""
    key, path = queue.key, tmp_path / "a.in"
    die_sending(path, key, after=False)
    with Foreigner(key) as foreigner:
        foreigner.send()
    for _ in range(2):
        with live(path, key):
            pass  # it has looked at the evidence
    with live(path, key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, [b"one"])) == 1
        assert (host.journal.handed, host.journal.cells[IN_DOUBT]) == (1, 1)


def test_the_next_message_is_for_the_other_sender(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The agent sends one message and no more; those after it wait for the senders, and keep their order."""
    bodies = [b"one", b"two", b"three", b""]
    with live(tmp_path / "a.in", queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, bodies)) == len(bodies)
        assert (host.journal.handed, host.journal.last_sender) == (1, 0)
        assert host.journal.cells[SENDERS] == queue.last_send_pid == os.getpid()
        host.run_until(lambda: host.journal.handed == len(bodies), "the senders send the others")
        assert contents(queue) == bodies
        assert os.getpid() not in (queue.last_send_pid, host.journal.cells[SENDERS])


def test_a_full_queue_leaves_even_the_first_message_to_senders(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """No trace stays that the agent might have sent it."""
    while queue.current_messages < 2:
        queue.send(bytes(8192), False)
    with live(tmp_path / "a.in", queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 1, 1, [b"one" * 1000])) == 1
        assert (host.journal.handed, host.journal.cells[SENDERS]) == (0, 0)
        host.run_until(lambda: host.reason.startswith("queue full"), "it waits for room")
        assert len(contents(queue)) == 2
        host.run_until(lambda: host.journal.handed == 1, "it is sent")
        assert contents(queue) == [b"one" * 1000]
