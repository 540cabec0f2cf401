"""Decides whether two sources that share a directory could take one file: the patterns of names that they take.

The question is exact: a name that both take, and neither ignores, is searched for. All patterns are walked through at
once, byte by byte, as sets of positions: each bit of a number is one position in one pattern. Bytes that all patterns
treat alike are one class, so the search stays small. With very many patterns it could take long; then it gives up, and
the caller has to refuse the pair.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_MOST = 20_000  # sets of positions; then the search gives up
_LONGEST = 255  # bytes of a name
_NEVER = frozenset(b"/\0")  # in no name
_DOT = ord(".")
_READABLE = b"abcdefghijklmnopqrstuvwxyz0123456789"  # of several bytes that do the same, one of these is shown
_ANY = frozenset(range(256)) - _NEVER


@dataclass(frozen=True, slots=True)
class TakenNames:
    """The names that a source takes: one of `match` matches, and none of `ignore`. A hidden name is never taken."""

    match: Sequence[str] = ("*",)
    ignore: Sequence[str] = ()


class TooManyError(Exception):
    """The patterns are too many, or too long, to be compared."""


def common_name(one: TakenNames, other: TakenNames) -> bytes | None:
    """Return a shortest name that both take; None if there is none. Raises TooManyError."""
    search = _Search((one.match, other.match), (*one.ignore, *other.ignore))
    seen: set[int] = set()
    waiting = deque([(search.start, b"")])
    while waiting:
        state, name = waiting.popleft()
        if name and search.accepts(state):
            return name
        if len(name) == _LONGEST:
            continue
        for byte in search.bytes:
            if byte == _DOT and not name:
                continue
            after = search.step(state, byte)
            if after not in seen and search.is_hopeful(after):
                if len(seen) >= _MOST:
                    raise TooManyError
                seen.add(after)
                waiting.append((after, name + bytes((byte,))))
    return None


class _Search:
    """Positions in all patterns at once: of each pattern, one before each token, and one at its end."""

    def __init__(self, matches: Iterable[Sequence[str]], ignore: Sequence[str]) -> None:
        self._stars = 0  # positions before a `*`
        self._takes = [0] * 256  # by byte: positions before another token, which takes this byte
        self._count = 0
        self.start = 0
        wanted = [self._add(patterns) for patterns in matches]
        self._wanted_ends = [ends for _, ends in wanted]
        self._wanted = [positions for positions, _ in wanted]
        _, self._ignored_ends = self._add(ignore)
        self.start = self._close(self.start)
        self.bytes = self._classes()

    def step(self, state: int, byte: int) -> int:
        """Return the positions after one more byte of a name."""
        return self._close((state & self._takes[byte]) << 1 | state & self._stars)

    def accepts(self, state: int) -> bool:
        """True if the name up to here is one that both take."""
        return all(state & ends for ends in self._wanted_ends) and not state & self._ignored_ends

    def is_hopeful(self, state: int) -> bool:
        """True if both could take a name that begins so."""
        return all(state & positions for positions in self._wanted)

    def _add(self, patterns: Sequence[str]) -> tuple[int, int]:
        """Add patterns; return all their positions, and those at their ends."""
        first, ends = self._count, 0
        for pattern in patterns:
            self.start |= 1 << self._count
            for token in _tokens(pattern):
                if token is None:
                    self._stars |= 1 << self._count
                else:
                    for byte in token:
                        self._takes[byte] |= 1 << self._count
                self._count += 1
            ends |= 1 << self._count
            self._count += 1
        return (1 << self._count) - (1 << first), ends

    def _close(self, state: int) -> int:
        """Add the positions behind a `*`, which also matches nothing. No `*` follows another one."""
        return state | (state & self._stars) << 1

    def _classes(self) -> list[int]:
        """Return one byte of each class of bytes that all patterns treat alike; the dot is one by itself."""
        found: dict[tuple[int, bool], int] = {}
        order = [*_READABLE, *(byte for byte in range(256) if byte not in _READABLE)]
        for byte in order:
            if byte not in _NEVER:
                found.setdefault((self._takes[byte], byte == _DOT), byte)
        return sorted(found.values())


def _tokens(pattern: str) -> Iterator[frozenset[int] | None]:
    """Yield the bytes that each part of a pattern takes; None for a `*`, once for several in a row.

    fnmatch itself says which bytes a range takes: agents match by it, too.
    """
    text = os.fsencode(pattern).decode("latin-1")
    at, before_star = 0, False
    while at < len(text):
        end = _end_of_range(text, at) if text[at] == "[" else at + 1
        part, at = text[at:end], end
        if part == "*":
            if not before_star:
                yield None
        elif part == "?":
            yield _ANY
        elif len(part) == 1:
            yield frozenset((ord(part),)) - _NEVER
        else:
            matches = re.compile(fnmatch.translate(part)).match
            yield frozenset(byte for byte in _ANY if matches(chr(byte)))
        before_star = part == "*"


def _end_of_range(text: str, at: int) -> int:
    """Return where a range ends that begins at `at`; the next character if the bracket is one by itself."""
    first = at + 1
    if text[first : first + 1] == "!":
        first += 1
    closed = text.find("]", first + 1)  # a bracket at once is one of its characters
    return closed + 1 if closed >= 0 else at + 1
