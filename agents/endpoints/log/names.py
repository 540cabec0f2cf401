"""Recognises and orders the names of a log's rotated files. Pure: no I/O.

    app.log     app.log.1  app.log-20261128  app.log.2026-11-28T10   rotated: they begin with the log's name
                app-1.log  app.2026-11-28.log                        inside: the number stands before the suffix
                app.log.1.gz  app.2026-11-28.log.zst                 compressed: can be counted, not read

A name of the second form may also belong to another program's log ("worker-1.log"), so it proves less (model.py).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

_NUMBER = rb"[.\-_][0-9][0-9TZ:.\-_+]*"
_OLD = rb"[.\-_](?:old|bak|prev)"
_COMPRESSED = rb"\.(?:gz|bz2|xz|zst|lz4|lzma|Z|zip)"
_PACKED = re.compile(_COMPRESSED + rb"$")
_COUNT = re.compile(rb"[^0-9]*[.\-_]([0-9]{1,4})")


class Form(Enum):
    """The kind of file that a name stands for."""

    ROTATED = 1
    INSIDE = 2
    COMPRESSED = 3
    OTHER = 4


class LogNames(NamedTuple):
    """The patterns for one log."""

    rotated: re.Pattern[bytes]
    inside: re.Pattern[bytes]
    compressed: re.Pattern[bytes]

    def form(self, name: bytes) -> Form:
        """Return what `name` says; OTHER for everything that is not of this log, and for the log itself."""
        if self.rotated.fullmatch(name):
            return Form.ROTATED
        if self.inside.fullmatch(name):
            return Form.INSIDE
        return Form.COMPRESSED if self.compressed.fullmatch(name) else Form.OTHER


def names_of(log: bytes) -> LogNames:
    """Return the patterns for a log of this name."""
    stem, dot, suffix = log.rpartition(b".")
    if not stem:
        stem, dot, suffix = log, b"", b""
    after = re.escape(log) + b"(?:" + _NUMBER + b"|" + _OLD + b")"
    before = re.escape(stem) + _NUMBER + re.escape(dot + suffix)
    inside = before if dot else after
    packed = b"(?:" + re.escape(log) + b"|" + after + b"|" + inside + b")" + _COMPRESSED
    return LogNames(re.compile(after), re.compile(inside), re.compile(packed))


def age(log: bytes, name: bytes) -> int:
    """Return the number that a rotation counts up: the higher, the older. 0 where there is no such number."""
    found = _COUNT.fullmatch(_PACKED.sub(b"", name.removeprefix(log)))
    return int(found[1]) if found else 0
