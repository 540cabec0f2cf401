"""The promises of tests/conftest.py for test files in several processes, over small files that the test writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]

# Each test notes that it runs, lets the other worker run for a moment, and looks at who else does.
BUSY = """
import os, time, pytest
DIRECTORY = os.path.dirname(__file__) + "/running"

def others(own):
    os.mkdir(f"{DIRECTORY}/{own}")
    time.sleep(0.02)  # long enough for the other worker to begin a test
    found = set(os.listdir(DIRECTORY)) - {own}
    os.rmdir(f"{DIRECTORY}/{own}")
    return found
"""
BESIDE = """
@pytest.mark.parametrize("number", range({}))
def test_beside(number, record_property):
    record_property("others", len(others(__name__)))
"""
ALONE = """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    assert others(__name__) == set()
"""
SKIPPED = """
def test_skipped():
    pytest.skip("no such machine")
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest over a copy of this project's settings."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests/running").mkdir(parents=True)
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "tests")
    for name, tests in (("a", ALONE), ("b", BESIDE.format(5)), ("c", BESIDE.format(20) + SKIPPED)):
        (tmp_path / f"tests/test_{name}.py").write_text(BUSY + tests)
    return tmp_path


def cases(report: Path) -> dict[str, ET.Element]:
    return {f"{case.get('classname')}.{case.get('name')}": case for case in ET.parse(report).iter("testcase")}


def test_files_run_side_by_side_and_alone_means_alone(project: Path) -> None:
    done = run(project, "--junit-xml=report.xml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = cases(project / "report.xml")
    assert len(found) == 29, "the report has the tests of both workers"
    assert [name for name, case in found.items() if case.find("skipped") is not None] == ["tests.test_c.test_skipped"]
    seen = [value.get("value") for case in found.values() for value in case.iter("property")]
    assert "1" in seen, "two tests have run at the same time"


def test_named_files_run_in_one_process(project: Path) -> None:
    """Their output is seen, and --pdb is to be had."""
    done = run(project, "-v", "tests/test_a.py", "tests/test_c.py::test_skipped")
    assert done.returncode == 0
    assert "workers" not in done.stdout
    assert "4 items" in done.stdout
    assert "workers" in run(project, "-v").stdout
