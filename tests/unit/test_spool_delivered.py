"""Delivered files of a spool are removed in slices, while new ones are taken; one that is missing is searched for."""

from __future__ import annotations

import errno
import os
import tempfile
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.spool import delivered, search
from nsbridge.agents.endpoints.spool import source as spool
from nsbridge.agents.endpoints.spool.search import RenamedSearch
from tests.kills import killed_at
from tests.spool_life import Life, Make

WINDOW = 8
STEP = 29  # lines between two kills
FILES = (
    "endpoints/spool/source.py",
    "spool/taken.py",
    "spool/delivered.py",
    "spool/search.py",
    "journal/sourcejournal",
)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove one file at a time."""
    monkeypatch.setattr(spool, "_FIRST_REMOVED", 1)
    monkeypatch.setattr(spool, "_SENT_AT_ONCE", 3)
    monkeypatch.setattr(spool, "_FIRST_SENT", 2)
    monkeypatch.setattr(search, "_ENTRIES", 2)


def put_all(life: Life, total: int) -> list[bytes]:
    """Put that many files; return their contents."""
    bodies = [b"%04d" % number for number in range(total)]
    for body in bodies:
        life.put(body.decode(), body)
    return bodies


def with_delivered_files(life: Life, total: int) -> list[bytes]:
    """Put files; kill the source when its window is full and all of that was delivered. Return the contents."""
    life.host.confirms = False
    bodies = put_all(life, total)
    life.host.run_until(lambda: len(life.received) == WINDOW, "the window is full")
    life.host.store.confirm(WINDOW)
    assert len(os.listdir(life.out)) == total
    life.kill()
    return bodies


def expect_all(life: Life, bodies: list[bytes]) -> None:
    """Wait until each came once and in order, and none is left."""
    life.host.run_until(lambda: len(life.received) >= len(bodies), "all arrive")
    life.host.run_until(lambda: life.host.journal.released == len(bodies), "all are removed")
    assert not os.listdir(life.out)
    assert life.host.bodies() == bodies


def test_new_files_are_taken_before_delivered_ones_are_removed(make_spool: Make) -> None:
    life = make_spool(window=WINDOW)
    bodies = with_delivered_files(life, 30)
    life.start()
    life.host.confirms = False
    life.host.run_until(lambda: len(life.received) > WINDOW, "a new one is taken")
    assert len(os.listdir(life.out)) > 30 - WINDOW, "all that was delivered is removed already"
    life.host.confirms = True
    life.host.confirm()
    expect_all(life, bodies)


def test_notes_of_delivered_files_outlive_any_number_of_kills(make_spool: Make) -> None:
    """Each life takes some files before it has removed what its predecessors delivered."""
    life = make_spool(window=WINDOW)
    bodies = with_delivered_files(life, 60)
    while len(life.received) < len(bodies):
        before = len(life.received)
        life.start()
        life.host.run_until(lambda before=before: len(life.received) > before, "some are taken")  # type: ignore[misc]
        life.host.store.confirm(len(life.received))
        life.kill()
    life.start()
    expect_all(life, bodies)


@pytest.mark.parametrize("program", ["waits", "renames", "removes"])
def test_every_kill_between_delivery_and_removal(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Each message comes once and in order, and no file is left, also if the program acts on what was delivered."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(delivered, "AFTERWARDS", 0.0)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for line in count(1 + ("waits", "renames", "removes").index(program) * 9, STEP):
            if life_killed_at(Path(directory) / str(line), program, line) < line:
                return


def life_killed_at(directory: Path, program: str, line: int) -> int:
    """Kill a source before that line, which begins with delivered files; return how many lines there were."""
    directory.mkdir()
    life = Life(directory, window=WINDOW)
    bodies = with_delivered_files(life, 14)
    if program != "waits":
        for body in bodies[2:WINDOW:2]:
            path = life.out / body.decode()
            path.unlink() if program == "removes" else path.rename(life.out / f"{body.decode()} at last")
    life.make()
    with killed_at(line, *FILES) as ran:
        life.begin()
        for _ in range(9):
            life.host.settle()
    life.kill()
    life.start()
    expect_all(life, bodies)
    life.kill()
    return ran[0]


def test_missing_file_delays_no_new_ones(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent was killed after it removed the file, and before it noted that."""
    monkeypatch.setattr(delivered, "AFTERWARDS", 3600.0)
    life = make_spool(window=WINDOW)
    bodies = with_delivered_files(life, 30)
    (life.out / "0000").unlink()
    life.start()
    life.host.confirms = False
    life.host.run_until(lambda: len(life.received) > WINDOW, "a new one is taken")
    assert life.host.journal.released == 0
    life.kill()
    monkeypatch.setattr(delivered, "AFTERWARDS", 0.0)
    life.start()
    expect_all(life, bodies)


def test_failed_search_is_shown_and_repeated(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_search: RenamedSearch) -> bool:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(delivered, "AFTERWARDS", 0.0)
    life = make_spool(window=WINDOW)
    bodies = with_delivered_files(life, 30)
    (life.out / "0000").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(RenamedSearch, "step", fails)
        life.start()
        life.host.run_until(lambda: "Input/output error" in life.host.reason, "the reason is shown")
        assert life.host.reason.startswith("delivered, but cannot be removed: ")
    expect_all(life, bodies)
    assert life.host.reason == ""


def test_stop_removes_all_that_was_delivered(make_spool: Make) -> None:
    life = make_spool(window=WINDOW)
    with_delivered_files(life, WINDOW)
    life.start()
    assert len(os.listdir(life.out)) > 1
    assert life.source.stop_taking()
    assert not os.listdir(life.out)
