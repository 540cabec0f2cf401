"""docs/security.md and docs/hostile.md name a test for what they promise: each is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import calls_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["security.md", "hostile.md"])
def test_the_tests_that_a_promise_rests_on_exist(name: str) -> None:
    """An ellipsis at its end or its beginning stands for the rest of a long name."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    there = [match for path in (ROOT / "tests").rglob("*.py") for match in _tests(path)]
    named = set(re.findall(r"`(test_\w+)(?:…[^`]*)?`", text))
    assert named
    assert sorted(test for test in named if not any(other.startswith(test) for other in there)) == []
    files = re.findall(r"`((?:tests/\w+/)?\w+\.py)`", text)
    assert [file for file in files if not list(ROOT.rglob(file.split("/")[-1]))] == []


def test_the_table_of_system_calls_is_up_to_date() -> None:
    """`make calls` writes it."""
    text = calls_table.DOCUMENT.read_text(encoding="utf-8")
    assert text.count(calls_table.BEGIN) == text.count(calls_table.END) == 1
    assert calls_table.written(text) == text


def _tests(path: Path) -> list[str]:
    return re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
