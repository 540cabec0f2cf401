"""Finds what is still open at a place of a TOML text: tomllib only names where it noticed."""

from __future__ import annotations

import re
from typing import NamedTuple

# Whole strings and comments, brackets, quotes that nothing closes. A multi-line string is tried before a short one.
_TOKEN = re.compile(
    r"""(?P<skipped> \#[^\n]*
        | \"{3}(?:[^\\]|\\.)*?\"{3,5} | '{3}.*?'{3,5}
        | "(?!"")(?:[^"\\\n]|\\[^\n])*" | '(?!'')[^'\n]*')
    | (?P<open> [\[{] | \"{3} | '{3}) | (?P<close> [\]}])""",
    re.VERBOSE | re.DOTALL,
)
_NAMES = {"[": ("an array", "]"), "{": ("an inline table", "}"), '"""': ("a string", '"""'), "'''": ("a string", "'''")}


class Unclosed(NamedTuple):
    """Something that was opened: its name for people, its line (from 1), and what closes it."""

    name: str
    line: int
    closing: str


def innermost(text: str, end: int) -> Unclosed | None:
    """Return the innermost array, inline table or long string that is open before the character `end` of `text`."""
    still_open: list[Unclosed] = []
    for found in _TOKEN.finditer(text):
        if found.start() >= end:
            break
        opening, closing = found["open"], found["close"]
        if opening:
            name, ends_with = _NAMES[opening]
            still_open.append(Unclosed(name, text.count("\n", 0, found.start()) + 1, ends_with))
            if name == "a string":
                break
        elif closing and still_open and still_open[-1].closing == closing:
            still_open.pop()
    return still_open[-1] if still_open else None
