"""IDs of dead letters (AGENT/NUMBER, or AGENT/EPOCH-NUMBER), for a line that people read."""

from __future__ import annotations

import re

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER = re.compile(r"(.*\D)([0-9]+)", re.DOTALL)
MOST = 20  # ranges that are listed


def in_short(ids: Iterable[str], most: int = MOST) -> str:
    """Return the IDs with ranges for consecutive numbers: `orders:legacy/7..9, orders:legacy/12`; at most `most`."""
    ranges: list[tuple[str, int, int]] = []
    for prefix, number in _parts(ids):
        if ranges and ranges[-1][0] == prefix and ranges[-1][2] + 1 == number:
            ranges[-1] = (prefix, ranges[-1][1], number)
        else:
            ranges.append((prefix, number, number))
    shown = [f"{prefix}{first}" + (f"..{last}" if last > first else "") for prefix, first, last in ranges[:most]]
    left = sum(last - first + 1 for _, first, last in ranges[most:])
    return ", ".join([*shown, f"and {left:,} more"] if left else shown)


def _parts(ids: Iterable[str]) -> list[tuple[str, int]]:
    """Return what is before the number of each ID, and the number; in their order."""
    found = filter(None, map(_NUMBER.fullmatch, ids))
    return sorted({(each[1], int(each[2])) for each in found})
