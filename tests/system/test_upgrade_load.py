"""An upgrade from 0.1.0 with messages pending loses and repeats none; `make upgrade` does it with 10,000 each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.upgrade_load import KINDS, prepare, upgrade


@pytest.fixture(scope="module", autouse=True)
def former(tmp_path_factory: pytest.TempPathFactory) -> None:
    prepare(tmp_path_factory.mktemp("former"))


@pytest.mark.counter  # 0.1.0 knows no `evidence`
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_upgrade_under_load_keeps_every_message(tmp_path: Path, kill: bool) -> None:
    found = upgrade(tmp_path, pending=300, more=300, kill=kill)
    assert found == {kind: {"lost": 0, "repeated": 0, "displaced": 0, "pending": 300} for kind in KINDS}
