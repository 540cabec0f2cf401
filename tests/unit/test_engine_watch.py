"""Waiters for a container of an engine get its events: real children, which write what the test gave them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nsbridge.agents.loop import Loop
from nsbridge.config.schema import LogConfig
from nsbridge.supervisor.containers import engine_watch, engines
from nsbridge.supervisor.containers.engine_watch import EngineWatch
from nsbridge.supervisor.log.log import Log, open_log
from tests.descriptors import open_descriptors

LIMIT = 20.0  # seconds for anything to happen
ID = "5203" * 16


class Engine:
    """A watch whose children say what `script` has, one entry each, and then end or (with "…") stay."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self.loop = loop
        self.log = log
        self.script: list[bytes] = []
        self.children = 0
        self.notified: list[str] = []
        self.watch = _Counted(self)

    def expect(self, name: str) -> engine_watch.Awaited:
        return self.watch.expect(name, lambda: self.notified.append(name))

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.now() + LIMIT
        while not condition():
            self.loop.run_once(1)
            assert self.loop.now() < deadline

    def complaints(self) -> list[str]:
        return [entry.message for entry in self.log.ring.recent(100)]

    def main(self, writer: int) -> int:
        says = self.script[min(self.children, len(self.script)) - 1]
        os.write(writer, says.removesuffix("…".encode()))
        if says.endswith("…".encode()):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            signal.pause()
        return 1


class _Counted(EngineWatch):
    """A child cannot count for us."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.loop, engine.log, engines.docker.KIND, engine.main)
        self._engine = engine

    def _start(self) -> None:
        self._engine.children += 1
        super()._start()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engine_watch, "AGAIN", (0.01, 0.02))
    before, had = open_descriptors(), children()
    loop, log = Loop(), open_log(LogConfig(file=str(tmp_path / "log")))
    made = Engine(loop, log)
    yield made
    made.watch.close()
    while children() != had:
        loop.run_once(LIMIT)
    loop.close()
    log.close()
    assert open_descriptors() == before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def says(*lines: str, stays: bool = True) -> bytes:
    return ("".join(line + "\n" for line in lines) + ("…" if stays else "")).encode()


def test_waiters_hear_first_of_the_watch_and_then_of_the_start(engine: Engine) -> None:
    engine.script = [says("+", f"{ID} web")]
    web = engine.expect("web")
    engine.expect("other")
    assert not web.is_watched
    engine.until(lambda: len(engine.notified) == 3)
    assert sorted(engine.notified) == ["other", "web", "web"]
    assert web.is_watched
    assert engine.complaints() == []


@pytest.mark.parametrize("name", [ID, ID[:12], ID[:40]])
def test_a_container_may_be_awaited_by_id_or_its_beginning(engine: Engine, name: str) -> None:
    engine.script = [says("+", f"{ID} web")]
    engine.expect(name)
    engine.expect(ID[:11])  # which is a name
    engine.until(lambda: len(engine.notified) == 3)
    assert engine.notified.count(name) == 2


def test_an_event_without_a_name_wakes_every_waiter(engine: Engine) -> None:
    engine.script = [says("+", "?")]
    for name in "ab":
        engine.expect(name)
    engine.until(lambda: len(engine.notified) == 4)
    assert sorted(engine.notified) == ["a", "a", "b", "b"]


def test_one_child_serves_all_and_late_waiters_hear_it_stands(engine: Engine) -> None:
    engine.script = [says("+")]
    engine.expect("first")
    engine.until(lambda: engine.notified)
    for number in range(400):
        engine.expect(str(number))
    engine.until(lambda: len(engine.notified) == 401)
    assert engine.children == 1


def test_a_cancelled_waiter_hears_nothing_and_the_child_lingers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is restarted is gone for a moment only: the child is there for the next time."""
    engine.script = [says("+")]
    awaited = engine.expect("web")
    engine.until(lambda: engine.notified)
    awaited.cancel()
    awaited.cancel()
    again = engine.expect("web")
    engine.until(lambda: len(engine.notified) == 2)
    assert engine.children == 1
    monkeypatch.setattr(engine_watch, "LINGER", 0.01)
    had = children()
    again.cancel()
    engine.until(lambda: len(children()) < len(had))
    engine.expect("web")
    engine.until(lambda: len(engine.notified) == 3)
    assert engine.children == 2


def test_an_engine_that_ends_is_watched_again(engine: Engine) -> None:
    """The log has one line that it cannot be watched, with the engine's words, and one when it can again."""
    engine.script = [
        says("+", "! engine socket ended its events", stays=False),
        *[says("! engine socket is \x1b[2J not there", stays=False)] * 5,
        says("+", f"{ID} web"),
    ]
    web = engine.expect("web")
    engine.until(lambda: engine.children == 7 and web.is_watched and len(engine.notified) >= 9)
    broken, mended = engine.complaints()
    assert broken.startswith("docker cannot be watched (engine socket ended its events)")
    assert mended.startswith("docker is watched again")
    assert engine.notified == ["web"] * 9  # the two watches that stood, six ends, its start


@pytest.mark.parametrize("garbage", ["web", f"{ID} a b", "\x1b[2J", "+ ", "x" * 5000])
def test_a_child_that_writes_garbage_is_ended_and_retried(engine: Engine, garbage: str) -> None:
    engine.script = [says(garbage), says("+")]
    web = engine.expect("web")
    engine.until(lambda: web.is_watched)
    assert "not understood" in engine.complaints()[0]
    assert "\x1b" not in engine.complaints()[0]


def test_a_child_that_dies_silently_is_logged_with_its_exit_code(engine: Engine) -> None:
    engine.script = [says(stays=False), says("+")]
    web = engine.expect("web")
    engine.until(lambda: web.is_watched)
    assert "the child that reads its events ended with 1" in engine.complaints()[0]
