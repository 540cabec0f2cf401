"""Problems of a configuration, as lines that a person can act on.

Every line is `FILE: KEY.PATH: what is wrong (with what was found); how to fix it`. What was found came from
outside, so it is shortened, and whatever is not printable is escaped: one problem is one line on any terminal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nsbridge.config.text import escape

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # what TOML lets stand without quotes
_LONGEST_SHOWN = 80  # characters of a value
_HUGE = 1 << 64  # str() of an int refuses thousands of digits; from here on they are shown in base 16

KeyPath = tuple[str, ...]


class InvalidValue(ValueError):
    """One value is not what its key takes; `what` is wrong with it, and `fix` says what would be right."""

    def __init__(self, what: str, fix: str) -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}; {fix}")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at `path` (empty: in the file as a whole)."""

    path: KeyPath
    what: str
    fix: str

    def line(self, source: str) -> str:
        """Return the whole line, without a newline, for the file that the operator named as `source`."""
        where = f"{dotted(self.path)}: " if self.path else ""
        return escape(f"{source or 'configuration'}: {where}{self.what}; {self.fix}")


def dotted(path: KeyPath) -> str:
    """Return a key path as TOML writes it: names that need quotes have them."""
    return ".".join(name if _BARE_KEY.fullmatch(name) else quoted(name) for name in path)


def quoted(text: str) -> str:
    """Return `text` in double quotes, escaped, and shortened if it is long."""
    start = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return '"' + escape(start.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shown(value: object) -> str:
    """Return a TOML value as the person will recognise it in the file."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < _HUGE else f"{value:#x}"[:_LONGEST_SHOWN] + "…"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return str(value)  # a float, a date or a time


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` was probably meant to be, or None."""
    close = difflib.get_close_matches(name.lower(), tuple(known), n=1)
    return close[0] if close else None


def unknown_key(path: KeyPath, known: Iterable[str]) -> Problem:
    """Return the problem that the key at the end of `path` is none of `known`."""
    names = sorted(known)
    meant = nearest(path[-1], names)
    guess = f"did you mean {quoted(meant)}? " if meant else ""
    return Problem(path, "unknown key", f"{guess}known here: {', '.join(names)}")
