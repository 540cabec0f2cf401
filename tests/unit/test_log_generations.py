"""Rotations that overtake each other: late writers, compression, odd names, stalled consumers, dead agents, copies."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path

import pytest

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.log.cells import LOG_MORE, LOG_MORE_SLOT
from nsbridge.agents.endpoints.log.model import HELD
from tests.log_life import Life, Make

CLOCK_REALTIME_COARSE = 5


def packed(path: Path) -> None:
    """Compress a file like gzip(1): the packed file keeps the times."""
    about = path.stat()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    os.utime(path.with_name(path.name + ".gz"), ns=(about.st_atime_ns, about.st_mtime_ns))
    path.unlink()


def shift(life: Life, *, to: str = "app.log.1") -> None:
    """Rotate as logrotate does: every number goes up by one. The program makes its new file by its next line."""
    for number in range(9, 0, -1):
        for suffix in ("", ".gz"):
            old = life.directory / f"app.log.{number}{suffix}"
            if old.exists():
                old.rename(life.directory / f"app.log.{number + 1}{suffix}")
    life.log.rename(life.directory / to)


def step(life: Life, body: bytes) -> None:
    """Let the program write a line, and the agent see it."""
    life.append(body + b"\n")
    life.host.settle()


def test_late_write_does_not_hide_the_generation_between(life: Life) -> None:
    """Issue 13, F1. The kind: any time of change or name that a writer or a rotation can move after the fact."""
    life.start()
    with life.log.open("ab", buffering=0) as late:
        late.write(b"a1\n")
        life.expect(b"a1")
        shift(life)
        step(life, b"b1")
        shift(life)
        step(life, b"c1")
        late.write(b"a2\n")
    life.expect(b"a1", b"a2", b"b1", b"c1")
    assert life.host.missing == (0, 0)


def test_odd_and_compressed_generations_are_read_while_held(life: Life) -> None:
    """Issue 13, F2. The kind: compress, delete, date names, names without the log's own, while an agent runs."""
    life.start()
    with life.log.open("ab", buffering=0) as late:
        late.write(b"a1\n")
        life.expect(b"a1")
        life.log.rename(life.directory / "app-1.log")
        step(life, b"b1")
        life.log.rename(life.directory / "b.log")
        packed(life.directory / "b.log")
        step(life, b"c1")
        life.log.rename(life.directory / "app.2026-11-28.log")
        step(life, b"d1")
        life.log.unlink()
        step(life, b"e1")
        late.write(b"a2\n")
    life.expect(b"a1", b"a2", b"b1", b"c1", b"d1", b"e1")
    assert life.host.missing == (0, 0)


def test_generations_that_come_between_two_looks_are_found(life: Life) -> None:
    life.start()
    life.append(b"a1\n")
    life.expect(b"a1")
    for body in (b"b1", b"c1", b"d1"):
        shift(life)
        life.append(body + b"\n")
    life.log.rename(life.directory / "somewhere")
    life.append(b"e1\n")
    life.expect(b"a1", b"b1", b"c1", b"d1", b"e1")
    assert life.host.missing == (0, 0)


def test_generations_that_went_between_two_looks_are_counted(life: Life) -> None:
    life.start()
    life.append(b"a1\n")
    life.expect(b"a1")
    for body in (b"b1", b"c1"):
        shift(life)
        life.append(body + b"\n")
    shift(life)
    (life.directory / "app.log.1").unlink()
    packed(life.directory / "app.log.2")
    life.append(b"d1\n")
    life.expect(b"a1", b"d1")
    assert life.host.missing == (2, 0)
    assert life.warned("2 files of this log, an unknown number of bytes") == 1
    life.kill()
    life.start()
    assert life.host.missing == (2, 0), "the count is the journal's"


def test_files_that_are_renamed_away_and_back_are_not_counted(life: Life) -> None:
    life.start()
    step(life, b"a1")
    for _ in range(3):
        life.log.rename(life.directory / "aside")
        (life.directory / "aside").rename(life.log)
        life.host.settle()
    step(life, b"a2")
    life.expect(b"a1", b"a2")
    assert life.host.missing == (0, 0)


def test_generations_beyond_the_held_ones_are_read_or_counted(life: Life) -> None:
    """A consumer stalls for more rotations than there are descriptors; every third file is compressed meanwhile."""
    life.start(confirms=False)
    bodies, lost = [b"0"], 0
    step(life, b"0")
    with life.log.open("ab"):
        for number in range(1, HELD + 31):
            path = life.directory / f"app.log-{number:04}"
            life.log.rename(path)
            step(life, b"%d" % number)
            if number > 1 and number % 3 == 0:
                packed(path)  # it has the line number - 1
                lost += number - 1 > HELD
            if not (number - 1 > HELD and number % 3 == 0):
                bodies.append(b"%d" % (number - 1)) if number > 1 else None
    bodies.append(b"%d" % (HELD + 30))
    life.host.confirms = True
    life.host.confirm()
    life.expect(*bodies)
    assert life.host.missing == (lost, 0)


def test_deleted_current_file_is_counted_and_later_ones_found(life: Life) -> None:
    """Its own file went by `rotate 3`; those after it still have names, also dates and numbers before the suffix."""
    life.start()
    step(life, b"a1")
    life.expect(b"a1")
    life.kill()
    life.append(b"a2\n")
    life.log.rename(life.directory / "old")
    for name, body in (("app.log.2", b"b"), ("app.2026-11-28.log", b"c"), ("app-1.log", b"d")):
        life.append(body + b"\n")
        wait_for_tick()
        life.log.rename(life.directory / name)
    life.append(b"e\n")
    (life.directory / "old").unlink()
    life.start()
    life.expect(b"a1", b"b", b"c", b"d", b"e")
    assert life.host.missing == (1, 0)


def wait_for_tick(ticks: int = 1) -> None:
    """Return when files that are made from now on have another time than those before (the kernel's coarse clock)."""
    for _ in range(ticks):
        first = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == first:
            pass


def test_numbers_may_count_up_or_down(life: Life) -> None:
    """Some programs call the oldest file .1: only birth times show the order."""
    life.start()
    step(life, b"a1")
    life.expect(b"a1")
    life.kill()
    for number, body in enumerate((b"b1", b"c1", b"d1"), 1):
        wait_for_tick()
        life.rotate(f"app.log.{number}", create=False)
        life.append(body + b"\n")
    life.start()
    life.expect(b"a1", b"b1", b"c1", b"d1")


@pytest.mark.parametrize("rest", [b"", b"a2\na3\n"])
def test_a_dead_agent_counts_what_was_compressed(life: Life, rest: bytes) -> None:
    life.start()
    step(life, b"a1")
    life.expect(b"a1")
    life.kill()
    wait_for_tick()
    life.append(rest)
    os.utime(life.log)
    shift(life)
    life.append(b"b1\n")
    packed(life.directory / "app.log.1")
    wait_for_tick()
    shift(life)
    life.append(b"c1\n")
    packed(life.directory / "app.log.1")
    life.start()
    life.expect(b"a1", b"c1")
    assert life.host.missing == ((2, 9) if rest else (1, 3))
    life.kill()
    life.start()
    life.expect(b"a1", b"c1")
    assert life.host.missing == ((2, 9) if rest else (1, 3)), "it is counted once"


def test_another_programs_log_is_not_taken_for_a_generation(life: Life) -> None:
    """app-1.log may be a generation of app.log; here it is written after the rotation, so it is a different log."""
    life.start()
    step(life, b"a1")
    life.expect(b"a1")
    life.kill()
    wait_for_tick()
    life.append(b"foreign\n", to=life.directory / "app-1.log")
    shift(life)
    life.append(b"b1\n")
    wait_for_tick()
    life.append(b"foreign\n", to=life.directory / "app-1.log")
    life.start()
    life.expect(b"a1", b"b1")


def test_short_generations_with_the_same_lines_are_no_copies(life: Life) -> None:
    life.start()
    step(life, b"tick")
    life.expect(b"tick")
    life.kill()
    wait_for_tick()
    for _ in range(3):
        shift(life)
        life.append(b"tick\n")
        wait_for_tick()
    life.start()
    life.expect(*[b"tick"] * 4)


def test_a_journal_of_the_previous_version_is_read_on(life: Life) -> None:
    """Its place has no birth and no beginning: those cells were not used."""
    life.start()
    step(life, b"a1")
    life.expect(b"a1")
    for cell in range(LOG_MORE, LOG_MORE + 2 * LOG_MORE_SLOT):
        life.host.journal.cells[cell] = 0
    life.kill()
    life.append(b"a2\n")
    wait_for_tick()
    shift(life)
    life.append(b"b1\n")
    wait_for_tick()
    shift(life)
    life.append(b"c1\n")
    life.start()
    life.expect(b"a1", b"a2", b"b1", b"c1")
    life.kill()
    life.append(b"c2\n")
    life.start()
    life.expect(b"a1", b"a2", b"b1", b"c1", b"c2")
    assert not life.said + life.host.said


# -- copytruncate


def copytruncate(life: Life, to: str) -> None:
    wait_for_tick()
    shutil.copy(life.log, life.directory / to)
    os.truncate(life.log, 0)


@pytest.mark.parametrize("dies", [False, True])
def test_what_a_truncation_took_is_read_from_the_copy(make: Make, dies: bool) -> None:
    """A consumer stalls, or the agent is dead, while the log is copied and truncated, three times."""
    life = make(window=4)
    life.start(confirms=False)
    first = [b"a%06d" % number + b"x" * 60 for number in range(9000)]  # more than one read
    life.append(b"\n".join(first) + b"\npart")
    life.host.settle()
    if dies:
        life.kill()
    wait_for_tick()
    copytruncate(life, "app.log.3")
    life.append(b"b1\nb2\n")
    copytruncate(life, "app.log.2")
    life.append(b"c1\n")
    copytruncate(life, "app.log.1")
    life.append(b"d1\n")
    if dies:
        life.start()
    life.host.confirms = True
    life.host.confirm()
    life.expect(*first, b"part", b"b1", b"b2", b"c1", b"d1")
    assert life.host.missing == (0, 0)


def test_old_copies_are_not_read_when_the_log_is_truncated(life: Life) -> None:
    life.append(b"older than the agent\n")
    shutil.copy(life.log, life.directory / "app.log.1")
    wait_for_tick(4)
    life.log.write_bytes(b"a1\n")
    life.start()
    life.expect(b"a1")
    os.truncate(life.log, 0)
    step(life, b"b1")
    life.expect(b"a1", b"b1")


def test_truncated_bytes_without_a_copy_are_counted(make: Make) -> None:
    life = make(window=4)
    life.start(confirms=False)
    lines = [b"%06d" % number + b"x" * 60 for number in range(9000)]
    life.append(b"\n".join(lines) + b"\n")
    life.host.settle()
    os.truncate(life.log, 0)
    life.append(b"b1\n")
    life.host.settle()
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: life.host.bodies()[-1:] == [b"b1"], "the new content is read")
    delivered = life.host.bodies()[:-1]
    assert delivered == lines[: len(delivered)]
    read = life._source._items  # type: ignore[union-attr]
    assert not read
    files, size = life.host.missing
    assert files == 1
    assert 0 <= 67 * len(lines) - size - 67 * len(delivered) < 67, "all but a part of a line is counted"


def test_rotations_are_read_where_inotify_is_used_up(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is at the whole directory then; a copy that somebody keeps there is reported once."""
    monkeypatch.setattr(watch, "DirectoryWatch", no_watch)
    monkeypatch.setattr(watch, "_PACE", 0.02)
    life.start()
    life.append(b"one" * 100 + b"\n")
    life.expect(b"one" * 100)
    wait_for_tick(4)
    shutil.copy(life.log, life.directory / "app.log.2026-01-01")
    for body in (b"two", b"three", b"four"):
        wait_for_tick()
        life.append(body + b"\n")
        life.host.run_until(lambda body=body: body in life.host.bodies(), "it is read")  # type: ignore[misc]
        shift(life)
        life.append(body * 2 + b"\n")
    life.expect(b"one" * 100, b"two", b"twotwo", b"three", b"threethree", b"four", b"fourfour")
    assert life.warned("taken for a copy") <= 1
    assert life.warned("lost events") == 0


def no_watch(directory: int, mask: int) -> watch.DirectoryWatch:
    """Return a watch without an instance of inotify."""
    raise watch.UsedUp("inotify instances are used up")
