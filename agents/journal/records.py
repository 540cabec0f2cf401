"""The records of journals, and the crash rules of all journals: files mapped into memory that outlive their process.

A SIGKILL can fall between any two instructions, so these are the crash rules:
* A mapped file outlives the process that wrote it. It is a fact once its store is done; nothing is buffered.
* Whatever takes several stores is made first and published last, by ONE store of eight bytes (which no kill divides).
  `taken` publishes a record, `confirmed` releases it, `handed` confirms to the source, `which` exchanges two slots.
* What is not published is ignored. The one exception are the landing places of a queue source (`land`): the kernel
  writes a message's type there first, and a type is never 0, so a type that is not 0 proves that a message has left the
  queue. It is therefore zeroed BEFORE the index points to it; the other order recovers messages that never came. Of
  several places the index gets the first last, so that where one is found those behind it are places too.
* Every number that makes something valid is kept with its checksum in the same eight bytes (`seal`), or with its
  record. Damage is found when a journal is opened, but for the eight bytes of a landing place's type.
* Pages are allocated before they are written: a full tmpfs would otherwise kill the writer (SIGBUS), or make the kernel
  lose a message that it is handing out (EFAULT).

journalfile.py defines who may use a journal, and when it is valid at all. The source's journal is in
sourcejournal.py, the sink's in sinkjournal.py.
"""

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
# The type of a place in which nothing has landed, where 0 may be a type. Its first word then has this value too, which
# is no record's.
BLANK = 0xFFFFFFFF
_SEED = 0x6E736272  # of the checksum, so that a record of nothing but zeros is a wrong one


def checksum(mtype: int, body: bytes | memoryview) -> int:
    """Return the checksum of a record's length, type and body."""
    return zlib.crc32(body, (mtype ^ mtype >> 32 ^ len(body) ^ _SEED) & 0xFFFFFFFF)


def checksum_of_none(mtype: int, length: int) -> int:
    """Return the value from which zlib.crc32 continues with the body of a record of that type and length."""
    return (mtype ^ mtype >> 32 ^ length ^ _SEED) & 0xFFFFFFFF
