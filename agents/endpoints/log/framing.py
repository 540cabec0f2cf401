"""Splits and joins messages that stand one after the other in an append-only file: pure functions of bytes, no I/O.

line    the bytes up to a newline, which is not part of the message; an empty line is an empty message, "\\r" is data
length  a big-endian u32, then that many bytes

A splitter is fed with the file's bytes in any pieces and gives back what is complete. A message that is longer than the
limit is not kept: only its place in the file is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from nsbridge.agents.endpoints.log.config import Framing

_LENGTH = struct.Struct(">I")


class TooLong(NamedTuple):
    """In the place of a message beyond the limit: how many bytes of the file it takes."""

    size: int


class Unended(NamedTuple):
    """The last bytes of a file to which nothing will be appended any more."""

    body: bytes


Item = bytes | TooLong


class Splitter(Protocol):
    """Splits bytes into messages; `overhead` is how many bytes of the file a message takes in addition to its own.

    `holds_zeros`: zeros at the end of a file complete no message, so they may wait for later data.
    """

    overhead: int
    holds_zeros: bool

    @property
    def kept(self) -> int:
        """Return how many of the bytes that were fed are kept for an item that is still incomplete."""
        ...

    def feed(self, data: bytes) -> Sequence[Item]:
        """Add bytes of the file, and return the items that are complete now."""
        ...

    def skip(self, count: int) -> Sequence[Item]:
        """Return the items that are complete after `count` zeros of a hole; `count` may be very large."""
        ...

    def body_of(self, extent: bytes) -> bytes | None:
        """Return the message that takes exactly this part of a file; None if no message does."""
        ...

    def end(self) -> Unended | TooLong | None:
        """Return what the last bytes are, given that nothing follows. It is TooLong if they can be no message."""
        ...


def splitter(framing: Framing, limit: int) -> Splitter:
    """Return a splitter for messages of at most `limit` bytes."""
    return LineSplitter(limit) if framing is Framing.LINE else LengthSplitter(limit)


class LineSplitter:
    """Splits at newlines."""

    overhead = 1
    holds_zeros = True

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._passed = 0  # bytes of a line that is already too long

    @property
    def kept(self) -> int:
        """See Splitter."""
        return len(self._rest)

    def feed(self, data: bytes) -> Sequence[Item]:
        """See Splitter."""
        items: list[Item] = []
        if self._passed:
            line, newline, data = data.partition(b"\n")
            self._passed += len(line) + len(newline)
            if not newline:
                return items
            items.append(TooLong(self._passed))
            self._passed = 0
        lines: list[Item] = [*(self._rest + data if self._rest else data).split(b"\n")]
        self._rest = bytes(lines.pop())
        if len(self._rest) > self._limit:
            self._rest, self._passed = b"", len(self._rest)
        if lines and max(map(len, lines)) > self._limit:
            lines = [TooLong(len(line) + 1) if len(line) > self._limit else line for line in lines]
        return items + lines if items else lines

    def skip(self, count: int) -> Sequence[Item]:
        """See Splitter."""
        if self._passed:
            self._passed += count
        elif len(self._rest) + count > self._limit:
            self._rest, self._passed = b"", len(self._rest) + count
        else:
            self._rest += bytes(count)
        return []

    def body_of(self, extent: bytes) -> bytes | None:
        """See Splitter. The newline is missing where the file ended without one."""
        body = extent.removesuffix(b"\n")
        return None if b"\n" in body else body

    def end(self) -> Unended | TooLong | None:
        """See Splitter: the last line is a message without its newline too."""
        rest, passed = self._rest, self._passed
        self._rest, self._passed = b"", 0
        if passed:
            return TooLong(passed)
        return Unended(rest) if rest else None


class LengthSplitter:
    """Splits by the length before each message."""

    overhead = _LENGTH.size
    holds_zeros = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._size = 0  # of a record that is too long; 0 if it is not inside one
        self._passed = 0

    @property
    def kept(self) -> int:
        """See Splitter."""
        return len(self._rest)

    def feed(self, data: bytes) -> Sequence[Item]:
        """See Splitter."""
        items: list[Item] = []
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while at < end:
            if self._size:
                step = min(self._size - self._passed, end - at)
                self._passed += step
                at += step
                if self._passed == self._size:
                    items.append(TooLong(self._size))
                    self._size = self._passed = 0
            elif end - at < _LENGTH.size:
                break
            else:
                (length,) = _LENGTH.unpack_from(data, at)
                if length > self._limit:
                    self._size = _LENGTH.size + length
                    continue
                if at + _LENGTH.size + length > end:
                    break
                at += _LENGTH.size + length
                items.append(data[at - length : at])
        self._rest = data[at:]
        return items

    def skip(self, count: int) -> Sequence[Item]:
        """See Splitter. A hole between records is skipped as a whole; it is not a series of empty messages."""
        items: list[Item] = []
        while count:
            if self._size:
                step = min(self._size - self._passed, count)
                self._passed += step
                if self._passed == self._size:
                    items.append(TooLong(self._size))
                    self._size = self._passed = 0
            elif self._rest:
                length = int.from_bytes(self._rest[: _LENGTH.size]) if len(self._rest) >= _LENGTH.size else 0
                step = min(_LENGTH.size + length - len(self._rest), count)
                items += self.feed(bytes(step))
            else:
                step = count
                items.append(TooLong(step))
            count -= step
        return items

    def body_of(self, extent: bytes) -> bytes | None:
        """See Splitter."""
        body = extent[_LENGTH.size :]
        return body if extent[: _LENGTH.size] == _LENGTH.pack(len(body)) else None

    def end(self) -> Unended | TooLong | None:
        """See Splitter: a part of a record is no message."""
        size = len(self._rest) + self._passed
        self._rest, self._size, self._passed = b"", 0, 0
        return TooLong(size) if size else None


def grouped(items: Sequence[Item | Unended]) -> Iterator[list[bytes] | TooLong | Unended]:
    """Put messages that follow each other into lists."""
    for kind, group in groupby(items, type):
        if kind is bytes:
            yield [item for item in group if isinstance(item, bytes)]
        else:
            yield from (item for item in group if not isinstance(item, bytes))


def joined(framing: Framing, bodies: Sequence[bytes]) -> bytes:
    """Return the bytes that append these messages. With `line` framing, no message may have a newline."""
    if framing is Framing.LINE:
        return b"\n".join((*bodies, b""))
    parts: list[bytes] = []
    for body in bodies:
        parts += (_LENGTH.pack(len(body)), body)
    return b"".join(parts)
