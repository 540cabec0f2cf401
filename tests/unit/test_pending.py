"""The age of the oldest pending message (agents/journal/pending.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import journalreader, scoreboard
from nsbridge.agents.journal.journalfile import seal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.pending import GRAIN, MOST, PendingGauge, noted_since
from nsbridge.agents.journal.sourcejournal import OLDEST, SourceJournal
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.statefiles import journal_path
from nsbridge.agents.wire import Message

SECOND = 10**9


class Scene:
    """A source's journal, its page, and a clock that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(journal_path(str(directory), "r:a", "out"))
        self.path.parent.mkdir(parents=True)
        self.state_dir = str(directory)
        self.journal = self.open()
        self.page = Scoreboard()
        self.time = 1000.0
        self.gauge = self.begin()

    def open(self) -> SourceJournal:
        return open_source(str(self.path), 2000, 1 << 20, pytest.fail)

    def begin(self) -> PendingGauge:
        return PendingGauge(self.journal, self.page.cells, lambda: self.time)

    def take(self, count: int = 1) -> None:
        for _ in range(count):
            self.journal.append(Message(0, b"x"))
        self.gauge.landed(self.journal.taken, int(self.time * SECOND))

    def confirm(self, seq: int) -> None:
        self.journal.confirm(seq)
        self.gauge.confirmed()

    def age(self) -> float | None:
        """Return what the supervisor makes of the cell."""
        since = self.page.cells[scoreboard.OLDEST]
        return None if not since else self.time - since / SECOND

    def pending(self) -> int:
        return self.page.cells[scoreboard.PENDING]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.journal.close()


def test_age_is_of_the_oldest_message(scene: Scene) -> None:
    assert (scene.age(), scene.pending()) == (None, 0)
    scene.take()
    scene.time += 10
    scene.take()
    scene.time += 5
    assert (scene.age(), scene.pending()) == (15, 2)
    scene.confirm(1)
    assert (scene.age(), scene.pending()) == (5, 1)
    scene.confirm(2)
    assert (scene.age(), scene.pending()) == (None, 0)
    scene.take()
    assert scene.age() == 0


def test_messages_of_one_instant_share_a_mark(scene: Scene) -> None:
    scene.take(10)
    scene.time += GRAIN / SECOND / 2
    scene.take(10)
    scene.time += 1
    scene.confirm(15)
    assert scene.age() == pytest.approx(1 + GRAIN / SECOND / 2)


def test_many_pending_messages_are_never_shown_too_young(scene: Scene) -> None:
    """Take one message a second, for more marks than are kept; the age errs by 1/64 at most, upwards."""
    begun = scene.time
    for _ in range(6 * MOST):
        scene.take()
        scene.time += 1
    span = scene.time - begun
    for seq in range(1, 6 * MOST):
        scene.confirm(seq)
        age, true = scene.age(), scene.time - (begun + seq)
        assert age is not None
        assert true <= age <= true + span / 64


def test_age_outlives_the_agent(scene: Scene) -> None:
    """The page keeps it; the next agent continues."""
    scene.take()
    scene.time += 100
    scene.gauge = scene.begin()
    assert scene.age() == 100
    scene.take()
    scene.confirm(1)
    assert scene.age() == 0


def test_age_outlives_the_daemon_by_the_journal(scene: Scene) -> None:
    """A message cannot be shown to be older than the host's uptime, so the test takes half of that."""
    scene.time = time.monotonic()
    true = min(3600.0, scene.time / 2)
    scene.take(3)
    scene.confirm(1)
    scene.time += true
    scene.gauge.note()
    scene.journal.close()
    page = Scoreboard()
    journalreader.recall(page, scene.state_dir, "r:a")
    assert page.cells[scoreboard.PENDING] == 2
    age = time.monotonic() - page.cells[scoreboard.OLDEST] / SECOND
    assert true - 1 <= age <= true + 60
    scene.journal, scene.page = scene.open(), Scoreboard()
    scene.gauge = scene.begin()
    age_then = scene.age()
    assert age_then is not None
    assert true - 1 <= age_then <= true + 60


def test_a_note_about_another_message_is_not_used(scene: Scene) -> None:
    """The noted message has been confirmed since; the next one is younger."""
    scene.take(2)
    scene.gauge.note()
    now = int(scene.time * SECOND)
    assert noted_since(scene.journal.cells, 0, now)
    assert not noted_since(scene.journal.cells, 1, now)


def test_recall_counts_from_now_if_the_journal_has_no_note(scene: Scene) -> None:
    scene.take()
    before = time.monotonic_ns()
    page = Scoreboard()
    journalreader.recall(page, scene.state_dir, "r:a")
    assert before <= page.cells[scoreboard.OLDEST] <= time.monotonic_ns()


@pytest.mark.parametrize("cell", [1, (1 << 64) - 1, seal(1 << 32 | (1 << 32) - 1), seal(1 << 32)], ids=hex)
def test_a_forged_note_gives_an_age_that_is_a_number(scene: Scene, cell: int) -> None:
    """A compromised agent wrote it: unsealed, from the future, from 1970."""
    scene.take()
    scene.journal.cells[OLDEST] = cell
    now = int(scene.time * SECOND)
    assert 0 <= noted_since(scene.journal.cells, 0, now) <= now


def test_an_idle_source_notes_nothing(scene: Scene) -> None:
    scene.gauge.note()
    assert scene.journal.cells[OLDEST] == 0
