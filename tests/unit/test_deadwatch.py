"""The allowed content of an agent's directories, and the detection of more. The kill is a system test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal import state
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import DeadConfig, Window
from nsbridge.supervisor.health import deadwatch
from nsbridge.supervisor.health.deadwatch import Content, DeadWatch
from nsbridge.supervisor.lifecycle.table import State

MANY = 84  # files that ten letters are forgiven
LARGE = (1 << 20) + (64 << 20)


class Agent:
    """The part of a managed agent that the watch uses."""

    def __init__(self, name: str) -> None:
        self.config: Any = SimpleNamespace(name=name, endpoint=SpoolEndpoint(out="/o"))
        self.route = SimpleNamespace(window=Window())
        self.state = State.RUNNING
        self.pid = 1
        self.killed = False
        self.refused = ""
        self.process = SimpleNamespace(last_words="", child=SimpleNamespace(kill=self._kill))

    def _kill(self) -> None:
        self.killed = True

    def refuse(self, reason: str) -> None:
        self.refused = reason
        self.state = State.FATAL


class Scene:
    """A watch over two agents, with a real child that measures."""

    def __init__(self, state_dir: Path) -> None:
        self.loop = Loop()
        self.agents = [Agent("r:a"), Agent("r:b")]
        self.limits = SimpleNamespace(limits=DeadConfig(max_letters=10, max_bytes=1 << 20))
        self.said: list[str] = []
        log = SimpleNamespace(warning=lambda _name, text: self.said.append(text))
        services: Any = SimpleNamespace(loop=self.loop, log=log, state_dir=str(state_dir), dead=self.limits)
        roster: Any = SimpleNamespace(agents=self.agents)
        self.watch = DeadWatch(services, roster)

    def look(self, *, grown: bool = True) -> None:
        """Wait until the child, if one was made, has ended. The disk is shared: nothing else depends on its content."""
        if grown:
            self.watch._lowest = (0, 0)
        self.watch.look()
        deadline = self.loop.now() + 10
        while self.watch._child is not None:
            assert self.loop.now() < deadline
            self.loop.run_once(0.1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    for box in ("dead/r/a", "dead/r/b", "dead/r/.retry/a"):
        (tmp_path / box).mkdir(parents=True)
    made = Scene(tmp_path)
    yield made
    made.loop.close()


def fill(box: Path, count: int, size: int = 0) -> None:
    for number in range(count):
        (box / f"{number}\n\x1b[2J").write_bytes(b"x" * size)


@pytest.mark.parametrize("box", ["dead/r/a", "dead/r/.retry/a"])
def test_agent_with_more_files_than_its_quota_is_stopped(tmp_path: Path, scene: Scene, box: str) -> None:
    scene.look()
    fill(tmp_path / box, MANY)
    scene.look()
    assert not scene.agents[0].killed
    fill(tmp_path / box, MANY + 1)
    scene.look()
    one, other = scene.agents
    assert one.killed
    assert one.refused.startswith("its dead letters hold more than 84 files, which no healthy agent writes: inspect /")
    assert not other.killed


def test_agent_with_more_bytes_than_its_quota_is_stopped(tmp_path: Path, scene: Scene) -> None:
    scene.look()
    os.truncate(_made(tmp_path / "dead/r/a/sparse"), 1 << 40)
    scene.look()
    assert not scene.agents[0].killed, "a hole takes nothing of the disk"
    os.posix_fallocate(os.open(tmp_path / "dead/r/a/full", os.O_RDWR | os.O_CREAT), 0, LARGE + 4096)
    scene.look()
    assert scene.agents[0].killed


def _made(path: Path) -> Path:
    path.touch()
    return path


def test_agent_with_a_journal_that_no_agent_accepts_is_stopped(tmp_path: Path, scene: Scene) -> None:
    """Without a dead letter: an agent that appends to a log may write files of any size, and it holds its journal."""
    (tmp_path / "journal/r").mkdir(parents=True)
    journal = os.open(_made(tmp_path / "journal/r/a.in"), os.O_RDWR)
    scene.look()
    os.truncate(journal, 1 << 40)
    scene.look()
    assert not scene.agents[0].killed, "a hole takes nothing of the disk"
    most = state.largest_journals(scene.agents[0].config, scene.agents[0].route.window)
    os.posix_fallocate(journal, 0, most + (1 << 20))
    os.close(journal)
    scene.look()
    assert scene.agents[0].refused.startswith("its journals hold 2")
    assert not scene.agents[1].killed


def test_directory_among_the_letters_stops_the_agent(tmp_path: Path, scene: Scene) -> None:
    """Files in subdirectories are not counted, so subdirectories are not allowed."""
    scene.look()
    (tmp_path / "dead/r/a/x").mkdir()
    scene.look()
    assert "a directory" in scene.agents[0].refused


def test_what_was_there_before_the_daemon_is_forgiven(tmp_path: Path, scene: Scene) -> None:
    """Its limits were larger once, and letters are not dropped for that; only what comes in addition is too much."""
    fill(tmp_path / "dead/r/a", MANY + 50)
    scene.look()
    scene.look()
    assert not scene.agents[0].killed
    fill(tmp_path / "dead/r/a", MANY + 51)
    scene.look()
    assert scene.agents[0].killed


def test_lower_limits_after_a_reload_stop_no_agent(tmp_path: Path, scene: Scene) -> None:
    scene.look()
    fill(tmp_path / "dead/r/a", MANY)
    scene.limits.limits = DeadConfig(max_letters=1, max_bytes=1)
    scene.look()
    assert not scene.agents[0].killed


def test_nothing_is_measured_while_the_disk_does_not_fill(tmp_path: Path, scene: Scene) -> None:
    """No tick: one statvfs when the agents' health is looked at."""
    scene.look()
    fill(tmp_path / "dead/r/a", 1)
    scene.watch._lowest = (1 << 60, 1 << 60)
    made: list[object] = []
    scene.watch._measure = lambda: made.append(None)  # type: ignore[method-assign]
    scene.look(grown=False)
    assert made == []


def test_nothing_is_measured_where_there_are_no_letters(tmp_path: Path, scene: Scene) -> None:
    """Others may fill the disk as they like."""
    scene.look()
    scene.watch._lowest = (0, 0)
    scene.watch.look()
    assert scene.watch._child is None
    fill(tmp_path / "dead/r/a", 1)
    scene.watch._lowest = (0, 0)
    scene.watch.look()
    assert scene.watch._child is not None
    scene.look()


def test_stopped_agent_is_looked_at_again_when_it_is_started(tmp_path: Path, scene: Scene) -> None:
    scene.look()
    fill(tmp_path / "dead/r/a", MANY + 1)
    scene.look()
    one = scene.agents[0]
    one.killed, one.state, scene.watch._lowest = False, State.RUNNING, (1 << 60, 1 << 60)
    scene.look(grown=False)
    assert one.killed


def test_count_ends_where_an_agent_is_guilty_anyway(tmp_path: Path) -> None:
    """A million files would take minutes."""
    fill(tmp_path, 50)
    assert deadwatch._content([tmp_path], 20).files == 21


def test_hostile_names_and_kinds_are_only_counted(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    os.mkfifo(tmp_path / "box/fifo")
    os.symlink("/etc", tmp_path / "box/link")
    fill(tmp_path / "box", 2)
    assert deadwatch._content([tmp_path / "box", tmp_path / "missing"], 100)[::2] == (4, "")
    os.symlink(tmp_path / "box", tmp_path / "other")
    assert "not a directory" in deadwatch._content([tmp_path / "other"], 100).odd
    assert Content(0, 0) == deadwatch._content([], 5)
