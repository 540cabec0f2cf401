"""docs/configuration.md as man(7) source: the part of Markdown that it uses, and nothing else.

Headings, paragraphs, lists of one level, fenced code and tables; in a line: `code`, **bold** and [links](to.md). A row
of a table is a term and its meaning, so that it fits any width of a terminal.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice

from nsbridge.supervisor.cli.commands import roff

_INLINE = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*|\[(?P<shown>[^\]]+)\]\([^)]*\)")
_ITEM = re.compile(r"\* +(.*)")
_RULE = re.compile(r"\|[-:| ]+\|")
_FENCE = "```"
_INDENT = 4  # columns
_LONGEST_TERM = 40  # characters of a row's first cell, if it is a term and no sentence
_WIDTH = 70  # characters of a line of source: mandoc counts bytes, up to 80


def sections(markdown: str) -> Iterator[str]:
    """Yield the lines of the page's sections, without its title."""
    source = markdown.splitlines()
    at = 0
    is_fresh = True  # after a heading, where a paragraph needs no macro
    while at < len(source):
        end = _end(source, at)
        block = source[at:end]
        yield from _block(block, is_fresh=is_fresh)
        if block[0].strip():
            is_fresh = block[0].startswith("#")
        at = end


def _end(source: Sequence[str], at: int) -> int:
    """Return where the block ends that begins at `at`."""
    first = source[at]
    if first.startswith(_FENCE):
        return next((number for number in range(at + 1, len(source)) if source[number] == _FENCE), len(source) - 1) + 1
    if not first.strip() or first.startswith("#"):
        return at + 1
    kind = first[0] == "|"
    for number in range(at + 1, len(source)):
        now = source[number]
        if not now.strip() or now.startswith(("#", _FENCE)) or (now[0] == "|") != kind or _ITEM.match(now):
            return number
    return len(source)


def _block(block: Sequence[str], *, is_fresh: bool) -> Iterator[str]:
    first = block[0]
    if not first.strip() or first.startswith("# "):
        return
    if first.startswith("#"):
        level, _, title = first.partition(" ")
        title = title.replace("`", "")
        yield f".SH {roff.quoted(title.upper())}" if level == "##" else f".SS {roff.quoted(title)}"
    elif first.startswith(_FENCE):
        yield from (
            "" if is_fresh else ".PP",
            f".RS {_INDENT}",
            ".nf",
            *(roff.line(roff.text(each)) for each in block[1:-1]),
            ".fi",
            ".RE",
        )
    elif first.startswith("|"):
        yield from _table(block)
    elif found := _ITEM.match(first):
        yield ".IP \\(bu 2"
        yield from _prose(" ".join([found[1], *(part.strip() for part in block[1:])]))
    else:
        yield from (() if is_fresh else (".PP",))
        yield from _prose(" ".join(part.strip() for part in block))


def _table(rows: Sequence[str]) -> Iterator[str]:
    """Yield a term for each row: its first cell, and the others with the names of their columns."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not _RULE.fullmatch(row)]
    names, *found = cells
    for key, meaning, *others in found:
        is_term = len(key) <= _LONGEST_TERM
        yield from (".TP", _inline(key)) if is_term else (".IP \\(bu 2",)
        more = [
            f"{name.capitalize()}: {cell}" for name, cell in zip(islice(names, 2, None), others, strict=False) if cell
        ]
        about = meaning if is_term else f"{key}: {meaning}"
        yield from _prose(". ".join([about.rstrip("."), *more]) + ".")


def _prose(markdown: str) -> list[str]:
    """Return a paragraph as lines of source."""
    wrapped = textwrap.wrap(_inline(markdown), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [roff.line(part) for part in wrapped]


def _inline(markdown: str) -> str:
    """Return the text of a line with its marks as fonts, word by word, so that it can be wrapped."""
    parts, at = [], 0
    for found in _INLINE.finditer(markdown):
        parts.append(roff.text(markdown[at : found.start()]))
        marked = found["code"] or found["bold"]
        words = (marked or found["shown"]).replace("`", "").split(" ")
        parts.append(" ".join(f"\\fB{roff.text(word)}\\fR" if marked else roff.text(word) for word in words))
        at = found.end()
    return "".join([*parts, roff.text(markdown[at:])])
