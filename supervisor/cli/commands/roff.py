"""Text as man(7) source: nothing in it that troff obeys, or prints as something else."""

from __future__ import annotations

import textwrap

WIDTH = 78  # of a line of source
_ESCAPED = {"\\": "\\e", "-": "\\-", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", "'": "\\(aq"}


def text(plain: str) -> str:
    """Return `plain`, escaped."""
    return "".join(_ESCAPED.get(c, c) for c in plain)


def lines(plain: str) -> list[str]:
    """Return the lines of a paragraph."""
    return [line(part) for part in textwrap.wrap(text(plain), WIDTH, break_long_words=False, break_on_hyphens=False)]


def line(escaped: str) -> str:
    """Return a line that is no request, whatever it begins with."""
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def quoted(plain: str) -> str:
    """Return an argument of a macro."""
    return f'"{text(plain)}"'
