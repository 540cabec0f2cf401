"""docs/troubleshooting.md has every message that nsbridge prints as an error or as a reason to wait, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.messages import VALUE, Messages

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"
SHORTEST = 10  # letters of a row's message that begins with `…`; a shorter one stands for itself alone
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for part in PAGE.read_text(encoding="utf-8").split("| message | cause | what to do |\n")[1:]
    for line in part.split("\n\n")[0].splitlines()[1:]
]


def messages_of(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def matching(pattern: str) -> re.Pattern[str]:
    """Return what a message of the page fits, each of whose `…` stands for anything."""
    is_wide = pattern.startswith(VALUE) and len(re.sub(r"\W", "", pattern)) < SHORTEST
    return re.compile(re.escape(pattern) if is_wide else ".*".join(map(re.escape, pattern.split(VALUE))), re.DOTALL)


def plain(message: str) -> str:
    return message.replace("`", "")


@pytest.fixture(scope="module")
def messages() -> dict[str, set[str]]:
    return Messages().found


def test_every_message_has_a_row(messages: dict[str, set[str]]) -> None:
    patterns = [matching(message) for row in ROWS for message in messages_of(row[0])]
    missing = [
        f"{', '.join(sorted(places))}: {message}"
        for message, places in messages.items()
        if not any(pattern.fullmatch(plain(message)) for pattern in patterns)
    ]
    assert missing == []


def test_every_row_is_of_a_message(messages: dict[str, set[str]]) -> None:
    """A message that was changed leaves no row of its former words."""
    known = [plain(message) for message in messages]
    stale = [
        message
        for row in ROWS
        for message in messages_of(row[0])
        if not any(matching(message).fullmatch(each) for each in known)
    ]
    assert stale == []


def test_rows_are_complete() -> None:
    assert len(ROWS) > 80
    assert [row for row in ROWS if len(row) != 3 or not all(row)] == []


@pytest.mark.parametrize(
    ("pattern", "message", "fits"),
    [
        ("no … in …: is it", "no queue in web: is it", True),
        ("is …, not", "is it", False),
        ("… has …", "it has it", False),
    ],
)
def test_values_stand_for_anything(pattern: str, message: str, fits: bool) -> None:
    assert bool(matching(pattern).fullmatch(message)) == fits
