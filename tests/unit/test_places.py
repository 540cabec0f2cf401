"""Something happens at a path: real inotify, directories that come and go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.loop import Loop
from nsbridge.supervisor.containers import places
from nsbridge.supervisor.containers.places import Places, WatchedPlace
from tests.child import in_child
from tests.descriptors import open_descriptors

LIMIT = 20.0  # seconds for an event to come


class Waiting:
    """Places, and how often each was notified."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.places = Places(self.loop)
        self.notified = 0

    def expect(self, directory: Path, name: str = "") -> WatchedPlace:
        return self.places.expect(str(directory), name, self.notify)

    def notify(self) -> None:
        self.notified += 1

    def is_notified(self) -> bool:
        """True if something was notified by now; all that has happened is read."""
        before = self.notified
        while True:
            turns = self.turns
            self.loop.run_once(0)
            if self.turns == turns:
                break
        return self.notified > before

    @property
    def turns(self) -> int:
        """Return how many events were read."""
        return self._turns

    _turns = 0

    def count(self, read: Callable[[int], None], events: int) -> None:
        self._turns += 1
        read(events)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    before = open_descriptors()
    made = Waiting()
    read = Places._read
    monkeypatch.setattr(Places, "_read", lambda self, events: made.count(lambda e: read(self, e), events))
    yield made
    made.places.close()
    made.loop.close()
    assert open_descriptors() == before


def test_a_name_that_comes_is_notified_and_no_other(waiting: Waiting, tmp_path: Path) -> None:
    waiting.expect(tmp_path, "pid")
    (tmp_path / "other").write_text("1", encoding="ascii")
    assert not waiting.is_notified()
    (tmp_path / "pid").write_text("1", encoding="ascii")
    assert waiting.is_notified()
    (tmp_path / "new").write_text("2", encoding="ascii")
    assert not waiting.is_notified()
    (tmp_path / "new").rename(tmp_path / "pid")
    assert waiting.is_notified()
    (tmp_path / "pid").unlink()
    assert waiting.is_notified()


def test_anything_in_a_directory_is_notified(waiting: Waiting, tmp_path: Path) -> None:
    """For example, runc removes exec.fifo when it starts a container."""
    (tmp_path / "web").mkdir()
    os.mkfifo(tmp_path / "web/exec.fifo")
    waiting.expect(tmp_path / "web")
    assert not waiting.is_notified()
    (tmp_path / "web/exec.fifo").unlink()
    assert waiting.is_notified()


def test_a_missing_path_is_followed_down_as_it_appears(waiting: Waiting, tmp_path: Path) -> None:
    place = waiting.expect(tmp_path / "run/runc/web")
    assert place.is_watched
    for made in ("run", "run/runc", "run/runc/web", "run/runc/web/state.json"):
        assert not waiting.is_notified()
        (tmp_path / made).mkdir()
        assert waiting.is_notified(), made


def test_a_whole_path_that_comes_at_once_is_followed_to_its_end(waiting: Waiting, tmp_path: Path) -> None:
    waiting.expect(tmp_path / "a/b/c/d")
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    assert waiting.is_notified()
    (tmp_path / "a/b/c/d/x").touch()
    assert waiting.is_notified()


def test_a_directory_that_is_removed_and_made_again_is_followed(waiting: Waiting, tmp_path: Path) -> None:
    place = waiting.expect(tmp_path / "runc/web")
    for _ in range(3):
        (tmp_path / "runc/web").mkdir(parents=True)
        assert waiting.is_notified()
        (tmp_path / "runc/web/state.json").touch()
        assert waiting.is_notified()
        shutil.rmtree(tmp_path / "runc")
        assert waiting.is_notified()
        assert place.is_watched


def test_a_directory_removed_while_it_is_open_is_found_again(waiting: Waiting, tmp_path: Path) -> None:
    """The kernel reports no event of the removed directory before it is closed."""
    (tmp_path / "web").mkdir()
    held = os.open(tmp_path / "web", os.O_RDONLY)
    try:
        waiting.expect(tmp_path / "web")
        (tmp_path / "web").rmdir()
        (tmp_path / "web").mkdir()
        assert waiting.is_notified()
        (tmp_path / "web/x").touch()
        assert waiting.is_notified()
    finally:
        os.close(held)


def test_waiters_of_one_directory_may_cancel_independently(waiting: Waiting, tmp_path: Path) -> None:
    made = [waiting.expect(tmp_path, name) for name in ("a", "a", "b")]
    (tmp_path / "a").touch()
    waiting.is_notified()
    assert waiting.notified == 2
    made[0].cancel()
    made[0].cancel()
    (tmp_path / "a").unlink()
    waiting.is_notified()
    assert waiting.notified == 3
    for place in made:
        place.cancel()
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    assert not waiting.is_notified()
    assert not waiting.places._index


def test_one_may_be_cancelled_by_another_s_callback(waiting: Waiting, tmp_path: Path) -> None:
    made: list[WatchedPlace] = []

    def cancel_all() -> None:
        waiting.notify()
        for place in made:
            place.cancel()

    made += [waiting.places.expect(str(tmp_path), "a", cancel_all) for _ in range(2)]
    (tmp_path / "a").touch()
    waiting.is_notified()
    assert waiting.notified == 1


def test_events_of_others_are_read_with_rests_and_drop_nothing(waiting: Waiting, tmp_path: Path) -> None:
    """Many of them cost a read each MANY and more; the awaited event is notified all the same."""
    waiting.expect(tmp_path, "pid")
    for number in range(5 * places.MANY):
        (tmp_path / str(number)).touch()
    (tmp_path / "pid").touch()
    while not waiting.notified:
        waiting.loop.run_once(LIMIT)
    assert waiting.turns < 10


def test_an_overflow_notifies_every_waiter(waiting: Waiting, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    waiting.expect(tmp_path, "pid")
    first, second = (tmp_path / name for name in "ab")
    for _ in range(limit // 2 + 10):
        first.write_bytes(b"")
        second.write_bytes(b"")
    while not waiting.notified:
        waiting.loop.run_once(LIMIT)
    assert waiting.notified == 1


def test_a_relative_path_is_not_watched_and_does_not_hang(waiting: Waiting) -> None:
    assert not waiting.expect(Path("no/such"), "x").is_watched


def test_a_file_where_a_directory_is_awaited_does_not_hang(waiting: Waiting, tmp_path: Path) -> None:
    (tmp_path / "web").touch()
    waiting.expect(tmp_path / "web")
    (tmp_path / "web").unlink()
    assert waiting.is_notified()


def test_used_up_instances_are_reported_and_can_be_retried(tmp_path: Path) -> None:
    """Runs as another user, whose instances nobody else uses."""

    def child() -> list[str]:
        os.setresuid(54322, 54322, 54322)
        loop, made, reason = Loop(), [], ""
        while not reason:
            made.append(Places(loop))
            try:
                made[-1].expect("/tmp", "x", lambda: None)
            except Blocked as blocked:
                reason = str(blocked)
        made[0].close()
        return [reason, str(made[-1].expect("/tmp", "x", lambda: None).is_watched)]

    reason, watched = in_child(child)
    assert reason == "inotify instances of uid 54322 are used up: raise sysctl fs.inotify.max_user_instances"
    assert watched == "True"
