"""The Debian package in a new Debian system: install, messages, upgrade, remove, purge (packaging/check-deb)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_package_installs_upgrades_and_leaves_nothing(tmp_path: Path) -> None:
    built = subprocess.run([ROOT / "packaging/build-deb", tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [ROOT / "packaging/check-deb", built.stdout.splitlines()[-1]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.removeprefix("check-deb: ") for line in done.stdout.splitlines() if line.startswith("check-deb: ")]
    assert steps == [
        "lintian: no errors, no warnings",
        "installed: nsbridged 0.2.0",
        "two containers exchange messages",
        "upgraded with 100 messages pending: each was delivered once, in order",
        "removed and purged with 10 messages pending: they are kept, and reported",
        "purged without pending messages: nothing is left",
    ]
