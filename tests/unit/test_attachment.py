"""When a container that is waited for is looked for: hints, questions and looks in every order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Container, HealthConfig, LogConfig, Namespace
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals, Expectation
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.attachment import LOOK_AT_LEAST_EVERY, LOOK_FIRST, Attachment
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import open_log

WEB = Container(engines.docker.KIND, "web")


class Wait:
    """An expectation that the test fulfils."""

    def __init__(self, callback: Callable[[], None], *, is_watched: bool) -> None:
        self.hint = callback
        self.is_watched = is_watched
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ByHand(Arrivals):
    """Arrivals whose hints and answers are given by the test."""

    def __init__(self) -> None:
        self.expected: list[Wait] = []
        self.asked: list[tuple[Inquiry, bool]] = []
        self.is_watched = True

    def expect(self, container: Container, callback: Callable[[], None]) -> Expectation:
        self.expected.append(Wait(callback, is_watched=self.is_watched))
        return self.expected[-1]

    def ask(self, container: Container, on_answer: Callable[[Located], None], *, seen: bool) -> Inquiry:
        self.asked.append((Inquiry(container, on_answer), seen))
        return self.asked[-1][0]

    def close(self) -> None:
        pass


class Agent:
    """A Listener that does as lifecycle/agent.py does in WAITING, without an agent."""

    def __init__(self, services: Services, container: Container) -> None:
        self.heard: list[str] = []
        self.delay = 0.0
        self.attachment = Attachment(services.loop, services.arrivals, container, Namespace.IPC, self)

    def container_found(self) -> None:
        self.heard.append("found")

    def container_absent(self, reason: str) -> None:
        self.heard.append(reason)
        self.delay = self.attachment.wait()

    def container_refused(self, reason: str) -> None:
        self.heard.append(reason)

    def container_ended(self, how: str) -> None:
        self.heard.append(how)

    def container_may_have_come(self) -> None:
        self.attachment.locate()


@pytest.fixture
def arrivals() -> ByHand:
    return ByHand()


@pytest.fixture
def make(arrivals: ByHand, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    loop, log = Loop(), open_log(LogConfig(file=str(tmp_path / "log")))
    services = Services(loop, log, Events(), str(tmp_path), arrivals, HealthConfig())
    yield lambda container=WEB: Agent(services, container)
    loop.close()
    log.close()


@pytest.fixture
def agent(make: Callable[..., Agent]) -> Agent:
    made = make()
    made.attachment.locate()
    return made


def serve(agent: Agent, seconds: float = 0.1) -> None:
    """Let pass what is due within that time."""
    loop = agent.attachment._loop
    end = loop.now() + seconds
    while (left := end - loop.now()) > 0:
        loop.run_once(left)


def absent(arrivals: ByHand) -> None:
    arrivals.asked[-1][0].answer(NotRunning("exited"))


def test_a_hint_brings_a_look_at_once_that_goes_before_others(agent: Agent, arrivals: ByHand) -> None:
    absent(arrivals)
    arrivals.expected[0].hint()
    serve(agent)
    assert [seen for _, seen in arrivals.asked] == [False, True]


def test_a_hundred_hints_bring_one_look(agent: Agent, arrivals: ByHand) -> None:
    """A start has many steps, and other containers' are not always recognised."""
    absent(arrivals)
    for _ in range(100):
        arrivals.expected[0].hint()
    serve(agent)
    assert len(arrivals.asked) == 2


def test_a_hint_while_the_engine_is_asked_brings_another_look(agent: Agent, arrivals: ByHand) -> None:
    """Its answer may be from before the start: without this the container was found at the next look."""
    absent(arrivals)
    agent.attachment.locate()
    arrivals.expected[0].hint()
    absent(arrivals)
    serve(agent)
    assert len(arrivals.asked) == 3


def test_hints_that_find_nothing_are_answered_with_backoff(agent: Agent, arrivals: ByHand) -> None:
    """A container whose program ends at once and is started again and again does not keep a core busy with askers."""
    absent(arrivals)
    looks = []
    for _ in range(6):
        arrivals.expected[0].hint()
        hint = agent.attachment._hint
        assert hint is not None
        looks.append(hint.due - agent.attachment._looked)
        serve(agent, looks[-1] + 0.01)
        absent(arrivals)
    assert looks == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.5])
    agent.attachment.locate()  # nothing was hinted: it has become quiet
    absent(arrivals)
    arrivals.expected[0].hint()
    assert agent.attachment._hint is not None
    assert agent.attachment._hint.due - agent.attachment._looked == pytest.approx(0.02)


def test_steps_of_one_start_are_answered_without_backoff(
    agent: Agent, arrivals: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may report that a container is created before it reports the start."""
    monkeypatch.setattr(type(engines.engine_of(WEB.kind)), "steps_of_a_start", 3)
    absent(arrivals)
    looks = []
    for _ in range(5):
        arrivals.expected[0].hint()
        assert agent.attachment._hint is not None
        looks.append(agent.attachment._hint.due - agent.attachment._looked)
        serve(agent, looks[-1] + 0.01)
        absent(arrivals)
    assert looks == pytest.approx([0.02, 0.02, 0.02, 0.04, 0.08])


def test_without_hints_polling_backs_off(agent: Agent, arrivals: ByHand) -> None:
    absent(arrivals)
    delays = [agent.delay, *(agent.attachment.wait() for _ in range(10))]
    assert delays[:3] == [LOOK_FIRST, 2 * LOOK_FIRST, 4 * LOOK_FIRST]
    assert delays[-1] == LOOK_AT_LEAST_EVERY[True]
    assert len(arrivals.expected) == 1
    arrivals.expected[0].is_watched = arrivals.is_watched = False
    assert agent.attachment.wait() == LOOK_AT_LEAST_EVERY[False]


def test_what_cannot_be_watched_is_tried_again_at_each_look(agent: Agent, arrivals: ByHand) -> None:
    """For example when inotify instances were used up."""
    arrivals.is_watched = False
    absent(arrivals)
    arrivals.is_watched = True
    agent.attachment.wait()
    agent.attachment.wait()
    assert [wait.cancelled for wait in arrivals.expected] == [True, False]


@pytest.mark.parametrize("end", ["abandon", "close", "refused"])
def test_nothing_is_expected_any_more_when_nobody_waits(agent: Agent, arrivals: ByHand, end: str) -> None:
    absent(arrivals)
    agent.attachment.locate()
    arrivals.expected[0].hint()
    if end == "refused":
        arrivals.asked[-1][0].answer(ContainerRefused("no"))
    else:
        getattr(agent.attachment, end)()
    arrivals.expected[0].hint()
    serve(agent)
    assert arrivals.expected[0].cancelled
    assert len(arrivals.asked) == 2
    assert agent.heard in (["exited"], ["exited", "no"])


def test_a_pid_file_is_looked_at_for_each_hint_and_asks_nobody(
    make: Callable[..., Agent], arrivals: ByHand, tmp_path: Path
) -> None:
    agent = make(Container(engines.pidfile.KIND, str(tmp_path / "pid")))
    agent.attachment.locate()
    assert "is not there" in agent.heard[-1]
    (tmp_path / "pid").touch()
    arrivals.expected[0].hint()
    serve(agent)
    assert "is empty" in agent.heard[-1]
    assert arrivals.asked == []
