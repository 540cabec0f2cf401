"""A record in a source's journal: a message or a note, as a msgbuf with its length and checksum before it."""

from __future__ import annotations

import struct
import zlib

from nsbridge.agents.journal.journalfile import seal

RECORD = struct.Struct("<IIq")  # length, checksum; type, then the body, as in a msgbuf
RECORD_SIZE = RECORD.size
TYPE_AT = 8
ALIGN = 8
NOWHERE = seal((1 << 48) - 1)  # an index entry that points nowhere
LENGTH = 0xFFFFFFFF  # the part of a record's first word
_SEED = 0x6E736272  # of the checksum, so that a record of nothing but zeros is a wrong one


def checksum(mtype: int, body: bytes | memoryview) -> int:
    """Return the checksum of a record's length, type and body."""
    return zlib.crc32(body, (mtype ^ mtype >> 32 ^ len(body) ^ _SEED) & 0xFFFFFFFF)


def checksum_of_none(mtype: int, length: int) -> int:
    """Return the value from which zlib.crc32 continues with the body of a record of that type and length."""
    return (mtype ^ mtype >> 32 ^ length ^ _SEED) & 0xFFFFFFFF
