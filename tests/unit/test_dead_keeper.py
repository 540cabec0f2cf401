"""An agent with a message that can never be delivered while dead letters have no room: it waits, resumes, drops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.dead.keeper import DeadLetterKeeper
from nsbridge.agents.journal.sinkjournal import SinkJournal, open_sink
from nsbridge.agents.loop import Loop
from nsbridge.agents.statefiles import stem
from nsbridge.config.schema import DeadConfig
from tests.dead_box import EPOCH, OLDEST, THREE, Clock, kept, message, take_out


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkJournal]:
    made = open_sink(str(tmp_path / "sink"))
    made.adopt(EPOCH, 0)
    yield made
    made.close()


class Host:
    """The host of an agent with one undeliverable message; records what it shows."""

    def __init__(self, box: int, journal: SinkJournal, limits: DeadConfig) -> None:
        self.loop = Loop()
        self.name = "orders:web"
        self.state_dir = "/run/nsbridge"
        self.said: list[str] = []
        self.shown: list[str] = []
        self.next = 1
        self.last = 0
        self.keeper = DeadLetterKeeper(self, box, journal, limits, None)

    def log(self, level: str, text: str) -> None:
        self.said.append(f"{level}: {text}")

    def show_blocked(self) -> None:
        self.shown.append(self.keeper.reason)

    def show_counters(self) -> None:
        """Do nothing: they are in the journal."""

    def sink_ready(self) -> None:
        while self.next <= self.last and self.keeper.put(message(self.next), "here", "why") is not None:
            self.next += 1

    def send(self, upto: int) -> None:
        self.last = upto
        self.sink_ready()

    def run_until(self, seq: int) -> None:
        deadline = self.loop.now() + 10
        while self.next <= seq:
            assert self.loop.now() < deadline, self.keeper.reason
            self.loop.run_once(0.05)


def test_full_box_blocks_with_the_reason_and_resumes_by_itself(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """The agent gets no order: a person has removed the files."""
    host = Host(box, sink, THREE)
    host.send(5)
    (shown,) = host.shown
    assert shown.startswith("dead letters of orders:web are full (3 letters): nsbridgectl dead ")
    take_out(tmp_path, 1)
    host.run_until(4)
    assert host.keeper.reason == host.shown[-1] != ""
    take_out(tmp_path, 2)
    host.run_until(5)
    assert (host.keeper.reason, kept(tmp_path)) == ("", [3, 4, 5])
    host.loop.close()


def test_supervisor_that_made_room_is_heard_at_once(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    host = Host(box, sink, THREE)
    host.send(4)
    take_out(tmp_path, 2)
    host.keeper.changed()
    assert (host.next, host.keeper.reason) == (5, "")
    host.loop.close()


def test_larger_limits_are_kept_at_once(box: int, sink: SinkJournal) -> None:
    host = Host(box, sink, THREE)
    host.send(4)
    host.keeper.adopt(DeadConfig())
    assert (host.next, host.keeper.reason) == (5, "")
    host.loop.close()


def test_message_that_can_be_delivered_after_all_ends_the_wait(box: int, sink: SinkJournal) -> None:
    """The agent calls `clear` for each message that was handed over."""
    host = Host(box, sink, THREE)
    host.send(4)
    assert host.keeper.reason
    host.keeper.clear()
    assert host.shown[-1] == ""
    host.loop.close()


def test_full_disk_blocks_and_resumes_by_itself(tmp_path: Path, sink: SinkJournal) -> None:
    """Any error of the file system, here a directory that is gone: issue 13, F4."""
    (tmp_path / "box").mkdir()
    fd = os.open(tmp_path / "box", os.O_RDONLY | os.O_DIRECTORY)
    os.mkdir(tmp_path / "box" / f".{stem(EPOCH, 1)}.body")
    host = Host(fd, sink, THREE)
    host.send(1)
    assert host.keeper.reason == "cannot write a dead letter of orders:web in state_dir: Is a directory"
    (tmp_path / "box" / f".{stem(EPOCH, 1)}.body").rmdir()
    host.run_until(1)
    assert (host.keeper.reason, kept(tmp_path)) == ("", [1])
    host.loop.close()
    os.close(fd)


def test_dropped_letters_are_logged_in_few_lines(box: int, sink: SinkJournal) -> None:
    host = Host(box, sink, OLDEST)
    host.send(100)
    host.loop.run_once(0.1)
    (line,) = host.said
    assert line.startswith("warning: 97 dead letters were dropped to make room (drop-oldest): ")
    assert line.endswith(f"the last was {stem(EPOCH, 97)}")
    host.send(103)
    host.loop.run_once(0.1)
    assert len(host.said) == 1, "the next line waits for its second"
    host.loop.close()


def test_old_letters_are_dropped_on_their_day_without_a_tick(tmp_path: Path, box: int, sink: SinkJournal) -> None:
    """One timer for the oldest, also where its day is farther off than epoll can sleep (30 days)."""
    clock = Clock()
    host = Host(box, sink, DeadConfig(max_age=30 * 86400.0))
    host.loop.close()
    host.loop = Loop(clock)
    host.keeper = DeadLetterKeeper(host, box, sink, DeadConfig(max_age=30 * 86400.0), None)
    host.keeper.start()
    host.send(1)
    host.loop.run_once(0)
    wakes = 0
    while kept(tmp_path):
        timeout = host.loop._time_to_sleep(clock.now)
        assert timeout is not None
        assert timeout < 24 * 86400
        clock.now += timeout
        host.loop.run_once(0)
        wakes += 1
    assert clock.now == 1000.0 + 30 * 86400
    assert wakes < 8
    host.loop.run_once(0)
    assert host.said == [f"warning: 1 dead letter was dropped for age (max_age): {host.said[0].split(': ')[2]}"]
    host.loop.close()
