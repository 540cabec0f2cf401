"""Children that may hang: own memory is measured, answers are worked out, and the loop never waits for either."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.control import errands
from nsbridge.supervisor.control.errands import Errand, Errands, Job, Outcome, answer_line, answering
from nsbridge.supervisor.control.turns import Turns
from nsbridge.supervisor.health import measuring
from nsbridge.supervisor.health.measuring import Found, Measurer
from tests.descriptors import open_descriptors

DEADLINE = 20.0  # seconds


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    before = open_descriptors()
    yield made
    assert open_descriptors() == before, "every descriptor is given back"
    made.close()


def pump(loop: Loop, until: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < end, "it has not happened in time"
        loop.run_once(0.05)


def stand_still() -> None:
    """Hang like a process in state D, but end at a signal, so that the test leaves nothing behind."""
    signal.pause()


# -- measuring


def measured(loop: Loop, measurer: Measurer, *pids: int) -> Found:
    heard: list[Found] = []
    measurer.ask(pids, heard.append)
    assert heard == [], "never before it returns"
    pump(loop, lambda: heard)
    return heard[0]


def test_real_processes_are_measured(loop: Loop) -> None:
    measurer = Measurer(loop)
    found = measured(loop, measurer, os.getpid(), 1 << 30)
    assert (found[os.getpid()] or 0) > 1 << 20
    assert found[1 << 30] is None
    assert measured(loop, measurer) == {}


def test_process_that_cannot_be_read_costs_only_itself(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LIMIT", 0.1)

    def own(pid: int) -> int:
        if pid == 2:
            stand_still()
        return pid * 10

    measurer = Measurer(loop, own)
    assert measured(loop, measurer, 1, 2, 3) == {1: 10, 2: None, 3: 30}
    pump(loop, lambda: not measurer.is_unreadable(2))  # its child is gone
    measurer.close()


def test_no_second_child_reads_what_one_hangs_in(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """In state D not even SIGKILL ends it: here the kill does nothing until the end of the test."""
    monkeypatch.setattr(measuring, "LIMIT", 0.1)
    started: list[tuple[int, ...]] = []
    really = Measurer.start_child

    class Unkillable(Measurer):
        def start_child(self, pids, reading):  # type: ignore[no-untyped-def]
            started.append(tuple(pids))
            child = really(self, pids, reading)
            if 2 in pids:
                self.hanging = child
                self.end = child.kill
                child.kill = lambda: None  # type: ignore[method-assign]
            return child

    def own(pid: int) -> int:
        if pid == 2:
            stand_still()
        return pid

    measurer = Unkillable(loop, own)
    assert measured(loop, measurer, 2, 3) == {2: None, 3: 3}
    assert measurer.is_unreadable(2)
    assert measured(loop, measurer, 2, 3) == {2: None, 3: 3}
    assert started == [(2, 3), (3,), (3,)]
    measurer.end()
    pump(loop, lambda: not measurer.is_unreadable(2))


def test_no_process_to_be_had_is_an_answer_too(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Poor(Measurer):
        def start_child(self, pids, reading):  # type: ignore[no-untyped-def]
            raise OSError(11, "no more processes")

    assert measured(loop, Poor(loop), 1, 2) == {1: None, 2: None}


# -- answers by children


@pytest.fixture
def caller() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the supervisor's end and the caller's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def job(number: int, work: Callable[[], object], limit: float | None = errands.LIMIT) -> Job:
    return replace(answering(lambda: answer_line(number, "look", work)), limit=limit)


def run(
    loop: Loop, end: socket.socket, work: Callable[[], object], limit: float | None = errands.LIMIT
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    errands_ = Errands(loop)
    errands_.add(Errand(errands_, 0, end.fileno(), job(7, work, limit), outcomes.append))
    pump(loop, lambda: outcomes)
    return outcomes


def fail() -> object:
    raise NsbridgeError("cannot")


def bug() -> object:
    return dict[str, object]()["missing"]


@pytest.mark.parametrize(
    ("work", "answer"),
    [
        (lambda: {"a": 1}, {"id": 7, "result": {"a": 1}}),
        (fail, {"id": 7, "error": {"code": 1, "message": "cannot"}}),
        (bug, {"id": 7, "error": {"code": 1, "message": "nsbridged failed in look: a bug: KeyError: 'missing'"}}),
    ],
)
def test_child_answers_the_caller_itself(
    loop: Loop, caller: tuple[socket.socket, socket.socket], work: Callable[[], object], answer: object
) -> None:
    ours, theirs = caller
    assert run(loop, ours, work) == [Outcome.DONE]
    assert json.loads(theirs.recv(1 << 16)) == answer


def test_hanging_child_gives_an_error(loop: Loop, caller: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = caller
    assert run(loop, ours, stand_still, 0.1) == [Outcome.NOTHING]
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_caller_that_does_not_read_is_given_up(loop: Loop, caller: tuple[socket.socket, socket.socket]) -> None:
    """It may have a part of a line: nothing else can be sent to it."""
    ours, theirs = caller
    outcomes: list[Outcome] = []
    queue = Errands(loop)
    errand = Errand(queue, 0, ours.fileno(), job(7, lambda: "x" * (8 << 20), None), outcomes.append)
    queue.add(errand)
    pump(loop, lambda: select.select([theirs], [], [], 0)[0])
    errand._too_late()
    pump(loop, lambda: outcomes)
    assert outcomes == [Outcome.BROKEN]


def test_each_user_has_a_few_children_at_most(loop: Loop, caller: tuple[socket.socket, socket.socket]) -> None:
    """A user whose children hang delays no other user."""
    ours, theirs = caller
    outcomes: list[tuple[int, Outcome]] = []
    queue = Errands(loop)
    for _ in range(5):
        end: Callable[[Outcome], None] = lambda outcome: outcomes.append((1000, outcome))  # noqa: E731
        queue.add(Errand(queue, 1000, ours.fileno(), job(1, stand_still, 0.5), end))
    queue.add(
        Errand(
            queue,
            0,
            ours.fileno(),
            job(2, lambda: 1),
            lambda o: outcomes.append((0, o)),
        )
    )
    pump(loop, lambda: outcomes)
    assert outcomes == [(0, Outcome.DONE)]
    assert json.loads(theirs.recv(100)) == {"id": 2, "result": 1}
    pump(loop, lambda: len(outcomes) == 6)
    assert set(outcomes[1:]) == {(1000, Outcome.NOTHING)}


def test_user_with_many_requests_delays_no_other() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.add(1000, f"a{number}")
    turns.add(0, "root")
    turns.add(1001, "b")
    assert [turns.next() for _ in range(6)] == ["a0", "root", "b", "a1", "a2", None]
    assert not turns
    turns.add(5, "x")
    assert turns.next(lambda uid: uid != 5) is None
    turns.discard(5, "x")
    turns.discard(5, "x")
    assert not turns
