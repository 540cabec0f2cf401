"""IDs of dead letters in one line: consecutive numbers as ranges."""

from __future__ import annotations

import pytest

from nsbridge.agents.dead.ids import in_short


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], ""),
        (["a:b/7"], "a:b/7"),
        (["a:b/9", "a:b/7", "a:b/8", "a:b/8"], "a:b/7..9"),
        (["a:b/0f-1", "a:b/0f-2", "a:b/0e-3", "a:b/0f-10"], "a:b/0e-3, a:b/0f-1..2, a:b/0f-10"),
        (["a:b/1", "a:c/2", "a:c/3"], "a:b/1, a:c/2..3"),
        (["0f-12", "0f-13"], "0f-12..13"),
        (["a:b/odd"], ""),
    ],
)
def test_consecutive_numbers_are_a_range(ids: list[str], text: str) -> None:
    assert in_short(ids) == text


def test_many_ranges_are_counted() -> None:
    assert in_short([f"a:b/{number}" for number in range(0, 100, 2)], most=2) == "a:b/0, a:b/2, and 48 more"
