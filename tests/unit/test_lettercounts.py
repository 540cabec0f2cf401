"""The number of dead letters is right at every change, and costs a count only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.supervisor.control.lettercounts import LetterCounts

AGENT = "orders:legacy"


class Scene:
    """A directory of dead letters, whose clock the test sets; `counts` are the directories that were read."""

    def __init__(self, state_dir: Path) -> None:
        self.box = state_dir / "dead/orders/legacy"
        self.counted = 0
        self.now = 10**18
        self.letters = LetterCounts(str(state_dir), lambda: self.now, self._count)

    def _count(self, _state_dir: str, _agent: str) -> int:
        self.counted += 1
        return len(list(self.box.iterdir()))

    def put(self, name: str) -> None:
        (self.box / name).touch()
        os.utime(self.box, ns=(self.now, self.now))

    def remove(self, name: str) -> None:
        (self.box / name).unlink()
        os.utime(self.box, ns=(self.now, self.now))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_agent_without_a_directory_has_none(scene: Scene) -> None:
    assert scene.letters.exact(AGENT, 0) == 0
    assert scene.counted == 0


def test_unchanged_directory_is_counted_once(scene: Scene) -> None:
    scene.box.mkdir(parents=True)
    scene.put("a")
    scene.now += 10**9
    assert [scene.letters.exact(AGENT, 1) for _ in range(3)] == [1, 1, 1]
    assert scene.counted == 1


def test_second_change_in_the_same_tick_of_the_clock_is_counted(scene: Scene) -> None:
    scene.box.mkdir(parents=True)
    scene.put("a")
    assert scene.letters.exact(AGENT, 1) == 1
    scene.put("b")  # with the same mtime
    assert scene.letters.exact(AGENT, 2) == 2


def test_removed_letter_is_counted(scene: Scene) -> None:
    scene.box.mkdir(parents=True)
    scene.put("a")
    scene.now += 10**9
    assert scene.letters.exact(AGENT, 1) == 1
    scene.remove("a")
    assert scene.letters.exact(AGENT, 1) == 0


def test_quick_count_looks_again_when_the_agent_has_counted_one(scene: Scene) -> None:
    scene.box.mkdir(parents=True)
    assert scene.letters.quick(AGENT, 0) == 0
    scene.put("a")
    assert scene.letters.quick(AGENT, 0) == 0, "the agent has not counted it yet"
    assert scene.letters.quick(AGENT, 1) == 1
    scene.put("b")
    scene.now += 10**9
    assert scene.letters.quick(AGENT, 2) == 2
    scene.remove("a")
    assert scene.letters.quick(AGENT, 2) == 1


def test_directory_that_is_a_file_is_not_counted(scene: Scene) -> None:
    scene.box.parent.parent.mkdir()
    scene.box.parent.touch()
    assert scene.letters.exact(AGENT, 0) is None
