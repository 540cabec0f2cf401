"""A served container that loses its name: what the engine answers, by id and by name, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Container, LogConfig
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.identity import Found, NotRunning
from nsbridge.supervisor.containers.namewatch import NameWatch, watch_name
from nsbridge.supervisor.log.log import open_log

ID = "5203" * 16
WEB = Container(engines.docker.KIND, "web")
FOUND = Found(100, 7, "", ID, "web")
RENAMED = replace(FOUND, engine_name="web-old")
OTHER = Found(200, 8, "", "1" * 64, "web")


class Asked(Arrivals):
    """Arrivals whose answers are given by the test."""

    def __init__(self, loop: Loop, *rest: object) -> None:
        self.loop = loop
        self.asked: list[Inquiry] = []

    def ask(self, container: Container, on_answer: Callable[[Located], None], *, seen: bool) -> Inquiry:
        assert not seen, "nothing was seen to start"
        self.asked.append(Inquiry(container, on_answer))
        return self.asked[-1]

    def answer(self, expected: str, answer: Located) -> None:
        """Answer the last question, which must have been for that name or id."""
        assert self.asked[-1].container.name == expected
        self.asked[-1].answer(answer)


class Watched:
    """A watch whose period the test ends."""

    def __init__(self, loop: Loop, found: Found = FOUND, container: Container = WEB) -> None:
        self.arrivals = Asked(loop)
        self.moved: list[str] = []
        self.made = watch_name(loop, self.arrivals, container, found, self.moved.append)

    @property
    def watch(self) -> NameWatch:
        assert isinstance(self.made, NameWatch)
        return self.made

    def ask(self) -> None:
        """Let the period pass."""
        before = len(self.arrivals.asked)
        timer = self.watch._timer
        assert timer is not None
        timer.cancel()
        self.watch._ask()
        assert len(self.arrivals.asked) == before + 1


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    loop, log = Loop(), open_log(LogConfig(file=str(tmp_path / "log")))
    yield loop
    loop.close()
    log.close()


def test_watches_ask_at_multiples_of_the_period(loop: Loop) -> None:
    """All watches that are due can then share a child."""
    watched = Watched(loop)
    assert watched.watch._timer is not None
    due = watched.watch._timer.due
    assert loop.now() < due <= loop.now() + 10
    assert due % 10 == pytest.approx(0)


def test_unchanged_name_is_no_news(loop: Loop) -> None:
    watched = Watched(loop)
    watched.ask()
    watched.arrivals.answer(ID, FOUND)
    assert (watched.watch.serves, watched.watch.note, watched.moved) == ("", "", [])


def test_renamed_container_is_served_until_its_name_runs(loop: Loop) -> None:
    watched = Watched(loop)
    watched.ask()
    watched.arrivals.answer(ID, RENAMED)
    watched.arrivals.answer("web", NotRunning("not known"))
    assert watched.watch.note == "serves docker:web-old, which was docker:web; no other container of that name runs"
    watched.ask()
    watched.arrivals.answer(ID, RENAMED)
    watched.arrivals.answer("web", OTHER)
    assert watched.moved == ["names another container now (pid 200): the previous one is docker:web-old"]


def test_container_that_gets_its_name_back_is_as_before(loop: Loop) -> None:
    watched = Watched(loop)
    watched.ask()
    watched.arrivals.answer(ID, RENAMED)
    watched.arrivals.answer("web", NotRunning("not known"))
    watched.ask()
    watched.arrivals.answer(ID, FOUND)
    assert watched.watch.note == ""


@pytest.mark.parametrize("answer", [NotRunning("docker did not answer"), replace(RENAMED, start_time=9)])
def test_engine_that_does_not_answer_is_asked_again(loop: Loop, answer: Located) -> None:
    """An answer that names another process counts as none: the pidfd shows the end of the held process."""
    watched = Watched(loop)
    watched.ask()
    watched.arrivals.answer(ID, answer)
    assert (watched.watch.serves, watched.moved) == ("", [])
    watched.ask()


@pytest.mark.parametrize(
    ("container", "found"),
    [
        (WEB, replace(FOUND, engine_id="")),
        (Container(engines.docker.KIND, ID), FOUND),
        (Container(engines.runc.KIND, "web"), replace(FOUND, engine_id="", engine_name="")),
        (Container(engines.pid.KIND, "100"), FOUND),
    ],
)
def test_container_that_cannot_lose_its_name_is_not_watched(loop: Loop, container: Container, found: Found) -> None:
    assert Watched(loop, found, container).made is None


def test_closed_watch_asks_no_more(loop: Loop) -> None:
    watched = Watched(loop)
    watched.ask()
    watched.watch.close()
    watched.arrivals.answer(ID, RENAMED)
    assert len(watched.arrivals.asked) == 1
    assert watched.watch._timer is None or watched.watch._timer.due
