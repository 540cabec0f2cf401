"""A spool's source that is killed before any line, while its program renames and links what it has put there."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.kills import killed_at
from tests.spool_life import Life

STEP = 7  # lines: the end of an inotify instance takes the kernel some 20 ms
FILES = (
    "endpoints/spool/source.py",
    "spool/names.py",
    "spool/aside.py",
    "spool/taken.py",
    "spool/delivered.py",
    "spool/search.py",
    "spool/done.py",
    "endpoints/directory.py",
)


def serve(life: Life, program: str, number: int) -> None:
    """Have the program do what it does with a file that was taken, at two moments; serve what follows."""
    life.host.settle()
    name = life.out / f"{number}.unfinished"
    if program == "renames":
        with suppress(FileNotFoundError):
            name.rename(life.out / f"{number}")
    elif program == "links":
        with suppress(FileNotFoundError):
            (life.out / f".{number}").hardlink_to(name)
    life.host.settle()


def life_killed_at(directory: Path, program: str, line: int, move: bool) -> int:
    """Kill the source before that line, then have another one finish; returns how many lines there were."""
    directory.mkdir()
    life = Life(directory, move=move, window=2)
    for number in range(3):
        life.put(f"{number}.unfinished", b"%d" % number)
    with killed_at(line, *FILES) as ran:
        for number in range(3):
            serve(life, program, number)
    life.kill()
    for number in range(3):
        with suppress(FileNotFoundError):
            (life.out / f"{number}.unfinished").rename(life.out / f"{number} at last")
    life.start()
    life.put("9", b"9")
    life.expect(b"0", b"1", b"2", b"9")
    life.host.run_until(lambda: not [name for name in life.out.iterdir() if name.name[0] != "."], "all are removed")
    if move:
        assert sorted(path.read_bytes() for path in life.done.iterdir()) == [b"0", b"1", b"2", b"9"]
    life.kill()
    return ran[0]


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("program", ["waits", "renames", "links"])
def test_every_kill_of_a_source_whose_program_acts(monkeypatch: pytest.MonkeyPatch, program: str, move: bool) -> None:
    """Each message comes once, under any name of its file, and no file is left.

    Every seventh line; which ones differs for each of the six.
    """
    monkeypatch.chdir("/")
    first = 1 + ("waits", "renames", "links").index(program) * 2 + move
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for line in count(first, STEP):
            if life_killed_at(Path(directory) / str(line), program, line, move) < line:
                return
