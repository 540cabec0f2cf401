"""Describes a file that a spool's source took: the note in its journal, and the same in memory."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from nsbridge.agents.identity.walk import shown
from nsbridge.config.filenames import is_file_name

_NOTE = struct.Struct("<QqQ")  # an Identity; the name follows
_LONGEST_NAME = 1024  # bytes, on a FUSE file system; 255 on others
_HALF = 1 << 63  # of the numbers that a time has room for


class SpoolFileId(NamedTuple):
    """Identifies a file and its content."""

    inode: int
    mtime_ns: int
    size: int


class Taken(NamedTuple):
    """A file that was taken and not yet removed. `body` is its content; None if an earlier agent took it."""

    seq: int
    name: bytes
    identity: SpoolFileId
    body: bytes | None = None


_NO_FILE = (SpoolFileId(0, 0, 0), b"a damaged note")


def identity_of(status: os.stat_result) -> SpoolFileId:
    """Return the identity in a file's `status`.

    Its program sets the time to any year. What does not fit the note wraps round: only equality counts.
    """
    mtime_ns = status.st_mtime_ns
    if not -_HALF <= mtime_ns < _HALF:
        mtime_ns = (mtime_ns + _HALF) % (2 * _HALF) - _HALF
    return SpoolFileId(status.st_ino, mtime_ns, status.st_size)


def has_identity(status: os.stat_result, identity: SpoolFileId) -> bool:
    """True if it is the identity in a file's `status`: as `identity_of`, but faster."""
    if status.st_ino != identity.inode or status.st_size != identity.size:
        return False
    return status.st_mtime_ns == identity.mtime_ns or identity_of(status) == identity


def pack(identity: SpoolFileId, name: bytes) -> bytes:
    """Return the note for the journal."""
    return _NOTE.pack(*identity) + name


def unpack(note: bytes) -> tuple[SpoolFileId, bytes]:
    """Return the file's identity and name; those of a file that cannot exist if the name is impossible.

    A compromised agent may have written the note.
    """
    name = note[_NOTE.size :]
    if not 0 < len(name) <= _LONGEST_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
        return _NO_FILE
    return SpoolFileId(*_NOTE.unpack_from(note)), name


def sent_name(note: bytes) -> bytes:
    """Return the name that travels with the message of a note; empty if no file of the other side can have it."""
    name = unpack(note)[1]
    return name if is_file_name(name) else b""


def described(note: bytes, _seq: int) -> tuple[int, str]:
    """Describe a note to a person: return the message's bytes, and the name of its file."""
    identity, name = unpack(note)
    return identity.size, f"file {shown(name)}"
