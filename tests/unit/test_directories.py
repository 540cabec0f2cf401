"""Changes in directories and below them are reported in lines: real inotify, directories that come and go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.supervisor.containers.directories import REST, DirectoryFollower

LIMIT = 20.0  # seconds for a report to come


class Followed:
    """A follower of two roots, which are not there at first, and its reports."""

    def __init__(self, base: Path) -> None:
        self.loop = Loop()
        self.roots = (base / "runc/k8s.io", base / "crun")
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK)
        self.follower = DirectoryFollower(self.loop, [str(root) for root in self.roots], "exec.fifo", self.writer)

    def reports(self) -> bytes:
        """Return what is reported until the follower rests; wait for the first report."""
        reported = b""
        deadline = self.loop.now() + LIMIT
        while not reported or self.follower._rests:
            self.loop.run_once(REST)
            assert self.loop.now() < deadline
            try:
                reported += os.read(self.reader, 4096)
            except BlockingIOError:
                pass
        return reported

    def is_quiet(self) -> bool:
        """True if nothing is reported of what has happened by now."""
        self.loop.run_once(0)
        self.loop.run_once(0)
        return not self.follower._is_due and not self.follower._rests


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    made = Followed(tmp_path)
    yield made
    made.follower.close()
    made.loop.close()
    os.close(made.reader)
    os.close(made.writer)


def test_each_step_of_a_start_is_reported(followed: Followed) -> None:
    container = followed.roots[0] / "c1"
    container.mkdir(parents=True)
    assert followed.reports()
    (container / "state.json").touch()
    assert followed.is_quiet()
    (container / "exec.fifo").touch()
    assert followed.reports()
    (container / "exec.fifo").unlink()
    assert followed.reports()
    shutil.rmtree(container)
    assert followed.reports()


def test_roots_that_are_made_again_are_followed(followed: Followed) -> None:
    for _ in range(3):
        (followed.roots[1] / "c1").mkdir(parents=True)
        assert followed.reports()
        (followed.roots[1] / "c1/exec.fifo").touch()
        assert followed.reports()
        shutil.rmtree(followed.roots[1])
        assert followed.reports()


def test_many_changes_are_few_reports(followed: Followed) -> None:
    for number in range(300):
        (followed.roots[1] / f"c{number}").mkdir(parents=True)
    assert len(followed.reports().splitlines()) < 30


def test_directories_that_are_gone_are_forgotten(followed: Followed) -> None:
    (followed.roots[1] / "c1").mkdir(parents=True)
    followed.reports()
    assert list(followed.follower._below) == [f"{followed.roots[1]}/c1"]
    shutil.rmtree(followed.roots[1] / "c1")
    followed.reports()
    assert not followed.follower._below
    assert followed.is_quiet()
