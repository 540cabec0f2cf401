"""The short form of `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nsbridge.agents import wire
from tests import fuzz

COUNT = 7000  # inputs for each of the targets


def test_whatever_hostile_peers_write_is_taken_or_refused(tmp_path: Path) -> None:
    took = fuzz.fuzz(tmp_path, COUNT, seed=1)
    print({name: f"{seconds:.1f} s" for name, seconds in took.items()})


def test_the_fuzzer_sees_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seq beyond what a journal can keep, which once ended an agent with an internal error."""
    monkeypatch.setattr(wire, "MAX_SEQ", (1 << 64) - 1)
    target = fuzz.AgentTarget(tmp_path, fuzz.Mutator(random.Random(1)))

    def run() -> None:
        for _ in range(COUNT):
            target.run()

    with pytest.raises(Exception, match=r"."):  # whichever of the things that then go wrong comes first
        run()
