"""A directory of dead letters for tests: what is in it, put and taken out by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.dead.letters import DeadLetters
from nsbridge.agents.statefiles import stem
from nsbridge.agents.wire import Run
from nsbridge.config.schema import DeadConfig, WhenFull

EPOCH = 0xABC
THREE = DeadConfig(max_letters=3)
OLDEST = DeadConfig(max_letters=3, when_full=WhenFull.DROP_OLDEST)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "box").mkdir()
    fd = os.open(tmp_path / "box", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def message(seq: int, body: bytes = b"body") -> Run:
    return Run(EPOCH, seq, 1, (body,))


def put(letters: DeadLetters, *seqs: int, body: bytes = b"body") -> None:
    for seq in seqs:
        assert letters.add(message(seq, body), "here", "why")


def kept(tmp_path: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in (tmp_path / "box").glob("*.json"))


def take_out(tmp_path: Path, seq: int) -> None:
    """Remove a letter, like `dead drop` or a person."""
    for suffix in ("json", "body"):
        (tmp_path / "box" / f"{stem(EPOCH, seq)}.{suffix}").unlink()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now
