"""Makes the lives of a source or sink that a test asks for, and ends them: what the fixtures of endpoints share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest


class Mortal(Protocol):
    """A life that can be ended."""

    def kill(self) -> object:
        """End it, as SIGKILL does."""


L = TypeVar("L", bound=Mortal)


def lives(make: Callable[..., L], directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., L]]:
    """Yield a maker; the lives are killed at the end, and no descriptor may be left open."""
    monkeypatch.chdir("/")
    before = len(os.listdir("/proc/self/fd"))
    made: list[L] = []

    def one_more(**options: object) -> L:
        made.append(make(directory, **options))
        return made[-1]

    yield one_more
    for life in made:
        life.kill()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
