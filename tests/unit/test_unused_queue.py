"""A queue that nsbridge made and no program uses is reported after a while: probably its key is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents.endpoints.queue.cells import MADE
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn
from nsbridge.agents.endpoints.queue.queue import QueueOwner, open_queue, shown
from nsbridge.agents.endpoints.queue.unused import WatchedKey
from nsbridge.agents.endpoints.unused import AFTER, UnusedQueue
from tests.fake_host import SinkHost

KEY = 0x6E736231  # of this test


class Scene:
    """An agent with a queue of KEY, and a clock of the test's own."""

    def __init__(self, path: Path, side: str) -> None:
        self.path, self.side = path, side
        self.start()

    def start(self) -> None:
        """Begin, or begin again over the same journal."""
        self.host = SinkHost(self.path, [])
        self.now = 1000.0
        self.host.loop.now = lambda: self.now
        self.owner = QueueOwner(self.host, (KEY,), is_user_configured=True)
        queue = WatchedKey(self.side, KEY, self.owner)
        self.watch = UnusedQueue(self.host, self.side, shown(KEY), queue, (self.host.journal, MADE))

    def open(self) -> sysv_ipc.MessageQueue:
        return open_queue(KEY, QueueEndpoint(in_=QueueIn(KEY), create=True), self.host, self.owner)

    def after(self, seconds: float) -> str:
        """Return what is shown after that time."""
        self.now += seconds
        self.watch.look()
        return self.host.notices.get(self.side, "")

    def warnings(self) -> int:
        return sum("was made by nsbridge and nobody has" in text for text in self.host.said)

    def close(self) -> None:
        self.host.close()


@pytest.fixture(params=["in"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "journal", request.param)
    yield made
    made.close()
    for key in (KEY,):
        try:
            sysv_ipc.MessageQueue(key).remove()
        except sysv_ipc.ExistentialError:
            pass


out = pytest.mark.parametrize("scene", ["out"], indirect=True)


def test_messages_without_a_reader_are_reported_and_counted(scene: Scene) -> None:
    queue = scene.open()
    assert scene.after(10 * AFTER) == "", "an empty queue has nothing to be read"
    queue.send(b"1", type=7)
    assert scene.after(0) == scene.after(AFTER - 1) == ""
    made = f"{shown(KEY)} was made by nsbridge and nobody has read from it"
    assert scene.after(2) == f"{made}: 1 message waits there"
    for _ in range(4):
        queue.send(b"more", type=7)
    assert scene.after(1) == f"{made}: 5 messages wait there"
    assert scene.warnings() == 1


def test_report_ends_for_good_when_a_program_has_read(scene: Scene) -> None:
    queue = scene.open()
    queue.send(b"1")
    queue.send(b"2")
    scene.after(0)
    assert scene.after(AFTER)
    queue.receive()
    assert scene.after(1) == ""
    assert scene.after(10 * AFTER) == "", "a slow reader is no wrong key"
    assert scene.host.journal.cells[MADE] == 0


def test_report_outlives_the_agent(scene: Scene) -> None:
    queue = scene.open()
    queue.send(b"1")
    scene.after(0)
    scene.close()
    scene.start()
    scene.open()
    scene.after(0)
    assert "1 message waits there" in scene.after(AFTER)


def test_queue_of_a_program_is_never_reported(scene: Scene) -> None:
    queue = sysv_ipc.MessageQueue(KEY, sysv_ipc.IPC_CREX, 0o600)
    scene.open()
    queue.send(b"1")
    scene.after(0)
    assert scene.after(AFTER) == ""


def test_queue_that_a_program_makes_anew_is_not_reported(scene: Scene) -> None:
    """The program has removed nsbridge's."""
    scene.open().send(b"1")
    scene.after(0)
    assert scene.after(AFTER)
    sysv_ipc.MessageQueue(KEY).remove()
    sysv_ipc.MessageQueue(KEY, sysv_ipc.IPC_CREX, 0o600).send(b"1")
    assert scene.after(1) == scene.after(2 * AFTER) == ""


def test_queue_that_is_made_again_is_reported_again(scene: Scene) -> None:
    for turn in range(2):
        scene.open().send(b"1")
        assert scene.after(0) == ""
        assert scene.after(AFTER)
        assert scene.warnings() == turn + 1
        sysv_ipc.MessageQueue(KEY).remove()
        assert scene.after(0) == ""


@out
def test_queue_that_no_program_writes_to_is_reported(scene: Scene) -> None:
    queue = scene.open()
    assert scene.after(0) == scene.after(AFTER - 1) == ""
    assert scene.after(1) == f"{shown(KEY)} was made by nsbridge and nobody has written to it: is the key right?"
    queue.send(b"1")
    assert scene.after(1) == scene.after(AFTER) == ""
