"""Files that a spool's source can never take: counted for the life of the journal, and moved to `error`."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.spool.cells import COUNTED
from nsbridge.agents.journal.sourcejournal import REFUSED
from tests.kills import killed_at
from tests.spool_life import Life, Make

LARGE = b"x" * 1001  # max_message is 1000


@pytest.fixture
def error(tmp_path: Path) -> Path:
    return tmp_path / "error"


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a symbolic link": lambda path: path.symlink_to("/etc/passwd"),
    "a socket": bind,
}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_large_file_is_moved_with_its_reason(make_spool: Make, error: Path) -> None:
    life = make_spool(error=str(error))
    life.put("big", LARGE)
    life.put("small", b"1")
    life.expect(b"1")
    assert names(error) == ["big", "big.reason"]
    assert (error / "big").read_bytes() == LARGE
    assert (error / "big.reason").read_text() == f"{life.out}/big has more than max_message = 1000 bytes\n"
    assert (life.host.refused_files, life.host.refused_ever, life.host.refused_moved) == (0, 1, 1)
    assert life.said(f"has more than max_message = 1000 bytes; moved to {error}/big") == 1


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_moved_itself(make_spool: Make, error: Path, kind: str) -> None:
    """A link is not followed."""
    life = make_spool(error=str(error))
    SPECIAL[kind](life.out.parent / "odd")
    (life.out.parent / "odd").rename(life.out / "odd")
    life.put("small", b"1")
    life.expect(b"1")
    assert names(error) == ["odd", "odd.reason"]
    assert f"is {kind}" in (error / "odd.reason").read_text()


def test_directory_stays_and_counts_once(make_spool: Make, error: Path) -> None:
    """A program may make its files ready there."""
    life = make_spool(error=str(error))
    (life.out / "ready").mkdir()
    life.put("1", b"1")
    life.expect(b"1")
    for _ in range(2):
        life.kill()
        life.start()
        life.host.settle()
        assert (life.host.refused_files, life.host.refused_ever) == (1, 1)
    assert names(life.out) == ["ready"]


def test_nothing_in_error_is_overwritten(make_spool: Make, error: Path) -> None:
    """Neither a file, nor a reason that another program wrote, nor an earlier one of the same name."""
    error.mkdir()
    (error / "a").write_bytes(b"theirs")
    (error / "b.reason").write_bytes(b"theirs")
    life = make_spool(error=str(error))
    for name in ("a", "b", "c", "c"):
        life.put(name, LARGE)
        life.host.settle()
    life.host.run_until(lambda: not names(life.out), "all are moved")
    assert names(error) == [
        *("a", "a.1", "a.1.reason", "b.2", "b.2.reason", "b.reason", "c", "c.4", "c.4.reason", "c.reason"),
    ]
    assert [(error / name).read_bytes() for name in ("a", "b.reason")] == [b"theirs"] * 2
    assert life.host.refused_ever == 4


def test_long_name_is_cut_before_its_reason(make_spool: Make, error: Path) -> None:
    life = make_spool(error=str(error))
    for _ in range(2):
        life.put("x" * 253 + "ä", LARGE)
        life.host.run_until(lambda: not names(life.out), "it is moved")
    assert names(error) == sorted(["x" * 248, "x" * 248 + ".reason", "x" * 246 + ".2", "x" * 246 + ".2.reason"])


def test_unreadable_file_is_moved_at_the_second_look(
    make_spool: Make, error: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may be about to change its mode."""
    life = make_spool(error=str(error))
    opened, unreadable = life.host.tree.open_and_stat, {b"slow", b"never"}

    def denied(directory: int, name: bytes, flags: int) -> tuple[int, os.stat_result]:
        if name in unreadable:
            raise PermissionError(13, "Permission denied")
        return opened(directory, name, flags)

    monkeypatch.setattr(life.host.tree, "open_and_stat", denied)
    life.put("slow", b"1")
    life.put("never", b"2")
    life.host.settle()
    assert names(error) == []
    assert life.host.refused_files == 2
    unreadable.remove(b"slow")
    aside = life.source._names._aside
    aside._timer.callback()  # type: ignore[union-attr,misc]  # not due for ten seconds
    for each in aside._names.values():
        each.due = 0
    aside._due = [(0, name) for name in aside._names]
    aside._look_at_due()
    life.expect(b"1")
    assert names(error) == ["never", "never.reason"]
    assert "Permission denied" in (error / "never.reason").read_text()


def test_file_that_was_replaced_meanwhile_is_moved_back(
    make_spool: Make, error: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = make_spool(error=str(error))
    rename = linux.rename_noreplace

    def late(directory: int, old: bytes, new: bytes, other: int | None = None) -> None:
        if old == b"a":
            monkeypatch.undo()
            os.rename(life.out.parent / "good", life.out / "a")
        rename(directory, old, new, other)

    (life.out.parent / "good").write_bytes(b"good")
    monkeypatch.setattr(linux, "rename_noreplace", late)
    life.put("a", LARGE)
    life.expect(b"good")
    assert names(error) == []


def test_error_on_another_mount_blocks_and_says_so(make_spool: Make, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        life = make_spool(error=f"{elsewhere}/error")
        assert "choose a directory on the same mount for error" in life.host.reason
        life.put("1", b"1")
        life.host.settle()
        assert life.received == []


def test_lost_error_directory_leaves_files_and_is_made_again(make_spool: Make, error: Path) -> None:
    life = make_spool(error=str(error))
    error.rmdir()
    life.put("big", LARGE)
    life.host.run_until(lambda: not names(life.out), "it is moved")
    assert names(error) == ["big", "big.reason"]


@pytest.mark.parametrize("files", [3, len(COUNTED) - 1])
def test_files_that_stay_are_counted_once_by_all_agents(make_spool: Make, files: int) -> None:
    life = make_spool()
    for number in range(files):
        life.put(f"{number}", LARGE)
    for _ in range(3):
        life.host.run_until(lambda: life.host.refused_files == files, "all are refused")
        assert life.host.refused_ever == files
        life.kill()
        life.start()
    (life.out / "0").unlink()
    life.put("0", LARGE)
    life.host.run_until(lambda: life.host.refused_ever == files + 1, "a new file of the same name counts")


def test_count_that_cannot_be_begins_anew(make_spool: Make) -> None:
    life = make_spool()
    life.host.journal.cells[REFUSED] = (1 << 64) - 1
    life.kill()
    life.start()
    assert life.host.refused_ever == 0


# -- kills

FILES = ("spool/refused.py", "spool/errordirectory.py", "spool/sidedirectory.py", "spool/source.py")


def put(life: Life, name: str) -> None:
    life.put(name, LARGE if name == "big" else name.encode())


def life_killed_at(directory: Path, line: int) -> int:
    """Kill the source before that line, then have another one finish; return how many lines there were."""
    directory.mkdir()
    error = directory / "error"
    life = Life(directory, error=str(error))
    to_put = ["2", "big", "big", "1"]
    with killed_at(line, *FILES) as ran:
        while to_put:
            put(life, to_put.pop())
            life.host.settle()
    life.kill()
    life.start()
    while to_put:
        put(life, to_put.pop())
        life.host.settle()
    life.host.run_until(lambda: not names(life.out) and life.host.bodies() == [b"1", b"2"], "all is done")
    life.host.run_until(lambda: life.host.refused_ever >= 2, f"killed before line {line}: both are counted")
    moved = [name for name in names(error) if not name.endswith(".reason")]
    reasons = [name for name in names(error) if name.endswith(".reason")]
    assert len(moved) == life.host.refused_ever == 2, f"killed before line {line}"
    assert {f"{name}.reason" for name in moved} <= set(reasons), f"killed before line {line}"
    assert len(reasons) <= 3, f"killed before line {line}"
    life.kill()
    return ran[0]


def test_kills_while_files_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other line: each is moved once, has its reason and counts once; no message is lost."""
    monkeypatch.chdir("/")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for line in count(1, 2):
            if life_killed_at(Path(directory) / str(line), line) < line:
                return
