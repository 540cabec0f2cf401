"""Engines are asked in few children, whatever they answer: real children, an engine that is a function."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import asker, engines
from nsbridge.supervisor.containers.asker import BATCH, Asker, Located, parse_answer
from nsbridge.supervisor.containers.identity import ContainerRefused, Found, NoAnswer, NotRunning
from tests.descriptors import open_descriptors

LIMIT = 20.0


class Engine:
    """Asks, and keeps the answers by name."""

    def __init__(self, locate: Callable[[Container], Found]) -> None:
        self.loop = Loop()
        self.answers: dict[str, Located] = {}
        self.asker = Asker(self.loop, engines.docker.KIND, locate)
        self.most_children = 0

    def ask(self, *names: str, seen: bool = False) -> list[asker.Inquiry]:
        return [self.asker.ask(Container(engines.docker.KIND, n), self._keep(n), seen=seen) for n in names]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.now() + LIMIT
        while not condition():
            self.loop.run_once(1)
            self.most_children = max(self.most_children, len(self.asker._batches))
            assert self.loop.now() < deadline

    def _keep(self, name: str) -> Callable[[Located], None]:
        def keep(answer: Located) -> None:
            assert name not in self.answers, "answered twice"
            self.answers[name] = answer

        return keep


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def engine() -> Iterator[Callable[[Callable[[Container], Found]], Engine]]:
    before, had, made = open_descriptors(), children(), []

    def make(locate: Callable[[Container], Found]) -> Engine:
        made.append(Engine(locate))
        return made[-1]

    yield make
    for each in made:
        each.asker.close()
        while children() != had:
            each.loop.run_once(LIMIT)
        each.loop.close()
    assert open_descriptors() == before


Make = Callable[[Callable[[Container], Found]], Engine]


def by_name(container: Container) -> Found:
    """Return `12` as process 12."""
    return Found(int(container.name), 34, "")


def hang(_container: Container) -> Found:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    signal.pause()
    raise AssertionError


def test_each_gets_its_own_answer(engine: Make) -> None:
    def locate(container: Container) -> Found:
        match container.name:
            case "gone":
                raise NotRunning('container "gönè" is exited')
            case "odd":
                raise ContainerRefused("cannot be")
        return by_name(container)

    asked = engine(locate)
    asked.ask("7", "gone", "odd", "8")
    asked.until(lambda: len(asked.answers) == 4)
    assert (asked.answers["7"], asked.answers["8"]) == (Found(7, 34, ""), Found(8, 34, ""))
    assert isinstance(asked.answers["gone"], NotRunning)
    assert str(asked.answers["gone"]) == 'container "gönè" is exited'
    assert isinstance(asked.answers["odd"], ContainerRefused)


def test_400_agents_that_ask_at_once_do_not_make_400_children(engine: Make) -> None:
    """All are answered, by one child after the other."""
    asked = engine(by_name)
    asked.ask(*map(str, range(1, 401)))
    asked.until(lambda: len(asked.answers) == 400)
    assert asked.most_children == 1


def test_one_seen_to_start_does_not_wait_for_a_hanging_look(engine: Make) -> None:
    asked = engine(lambda container: hang(container) if container.name == "1" else by_name(container))
    asked.ask("1", "2")
    asked.until(lambda: asked.most_children == 1)
    asked.ask("3", seen=True)
    asked.until(lambda: "3" in asked.answers)
    assert "1" not in asked.answers


def test_a_silent_engine_costs_its_limit_once_and_no_other(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker, "ANSWER_LIMIT", 0.1)
    asked = engine(hang)
    asked.ask(*map(str, range(BATCH)))
    asked.until(lambda: len(asked.answers) == BATCH)
    assert {str(answer) for answer in asked.answers.values()} == {"docker did not answer in 0.1 s"}


def test_a_silent_engine_is_not_asked_again_by_the_same_child(engine: Make) -> None:
    """Each would cost the time limit."""

    def locate(container: Container) -> Found:
        assert container.name == "1", "asked again"
        raise NoAnswer("stuck")

    asked = engine(locate)
    asked.ask("1", "2", "3")
    asked.until(lambda: len(asked.answers) == 3)
    assert {(type(answer), str(answer)) for answer in asked.answers.values()} == {(NotRunning, "stuck")}


def test_a_child_that_dies_is_no_answer(engine: Make) -> None:
    def locate(container: Container) -> Found:
        os.kill(os.getpid(), signal.SIGSEGV)
        return by_name(container)

    asked = engine(locate)
    asked.ask("1")
    asked.until(lambda: asked.answers)
    assert "did not answer" in str(asked.answers["1"])


def test_what_is_cancelled_is_not_answered(engine: Make) -> None:
    asked = engine(by_name)
    cancelled, _ = asked.ask("1", "2")
    cancelled.cancel()
    asked.until(lambda: asked.answers)
    assert list(asked.answers) == ["2"]


def test_a_failed_fork_is_reported(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asker, "LineChild", no_fork)
    asked = engine(by_name)
    asked.ask("1")
    asked.until(lambda: asked.answers)
    assert str(asked.answers["1"]) == "cannot fork to ask docker: Resource temporarily unavailable"


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b"[1,2]", b'[1,"absent",2]', b'[1,"x","y"]', b"null"]))
def test_what_is_no_answer_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        parse_answer(line)
