"""Journals: what one side of a direction must not forget when its process is killed, in files mapped into memory.

A SIGKILL can fall between any two instructions, so these are the crash rules:
* A mapped file outlives the process that wrote it. It is a fact once its store is done; nothing is buffered.
* Whatever takes several stores is made first and published last, by ONE store of eight bytes (which no kill divides).
  `taken` publishes a record, `confirmed` lets go of it, `handed` confirms to the source, `which` exchanges two slots.
* What is not published is not believed. The one exception is the landing place of a queue source (`land`): the kernel
  writes a message's type there first, and a type is never 0, so a type that is not 0 proves that a message has left the
  queue. It is therefore zeroed BEFORE the index points to it; the other order recovers messages that never came.
* Pages are allocated before they are written: a full tmpfs would otherwise kill the writer (SIGBUS), or make the kernel
  lose a message that it is handing out (EFAULT).
Who may use a journal, and when it is believed at all, is said in journalfile.py.
"""

from __future__ import annotations

import errno
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from nsbridge.agents import linux
from nsbridge.agents.journalfile import (
    PAGE,
    PATIENCE,
    SINK,
    SOURCE,
    DamagedError,
    FullError,
    Header,
    JournalFile,
    Report,
    allocate,
    create,
    move_aside,
    open_or_create,
)
from nsbridge.agents.wire import Message

RECORD = struct.Struct("<IIq")  # length, checksum; type, then the body, as in a msgbuf
_TYPE_AT = 8
_ALIGN = 8
NOWHERE = (1 << 64) - 1  # an index entry that points nowhere
_SEED = 0x6E736272  # of the checksum, so that a record of nothing but zeros is a wrong one
_GROW = 256 << 10  # bytes allocated at a time

# Cells of a source
CONFIRMED, TAKEN, RELEASED, NOTE = 0, 1, 2, 3  # NOTE is two cells
# Cells of a sink: two slots of four, `WHICH` tells the one that counts
WHICH = 0
_EPOCH, _BASE, _HANDED, _EARLIER = 0, 1, 2, 3  # within a slot
_SLOTS = (1, 5)
INTENT, BYTES, REPEATS, IN_DOUBT, DEAD, NOT_DELIVERED, PLACE, SENDERS, BASELINE = 9, 10, 11, 12, 13, 14, 15, 16, 18


def checksum(mtype: int, body: bytes | memoryview) -> int:
    """Of a record: its length, type and body."""
    return zlib.crc32(body, (mtype ^ mtype >> 32 ^ len(body) ^ _SEED) & 0xFFFFFFFF)


class SourceJournal:
    """What was taken and not yet confirmed: a ring of records, found by seq through an index. A SourceStore."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._entries = file.header.entries
        self._index = file.view[PAGE : PAGE + 8 * self._entries].cast("Q")
        self._ring_at = PAGE + 8 * self._entries
        self._ring = file.header.ring
        self._allocated = 0
        self.fd = file.fd
        self._address = linux.address_of(file.view)
        self.epoch = file.header.epoch
        self.pending_bytes = 0
        self.recovered = 0  # 1 if a message had landed whose taking was not published
        try:
            self._check()
        except DamagedError:
            self._index.release()  # or the file could not be closed
            raise

    @property
    def confirmed(self) -> int:
        """The last seq that the sink has confirmed."""
        return self._file.cells[CONFIRMED]

    @property
    def taken(self) -> int:
        """The last seq that was given out."""
        return self._file.cells[TAKEN]

    @property
    def cells(self) -> memoryview[int]:
        """For what an endpoint keeps: RELEASED and NOTE."""
        return self._file.cells

    def append(self, message: Message) -> int:
        """Keep the message; returns its seq. Raises FullError."""
        seq = self.taken + 1
        at = self._place(seq, len(message.body))
        self._index[seq % self._entries] = NOWHERE  # no landing place, which a type would make a message
        RECORD.pack_into(self._file.map, at, len(message.body), checksum(message.type, message.body), message.type)
        start = at + RECORD.size
        self._file.map[start : start + len(message.body)] = message.body
        self._index[seq % self._entries] = at
        self._publish(seq, len(message.body))
        return seq

    def land(self, length: int) -> int:
        """Prepare the place where msgrcv puts a message of exactly `length` bytes; returns the address of its msgbuf.

        Until `landed`, a type that is not 0 there proves that the message left the queue. Raises FullError.
        """
        seq = self.taken + 1
        at = self._place(seq, length)
        self._index[seq % self._entries] = NOWHERE
        RECORD.pack_into(self._file.map, at, length, 0, 0)
        self._index[seq % self._entries] = at
        return self._address + at + _TYPE_AT

    def landed(self, length: int | None = None) -> int:
        """The message has come, in the announced length or this one; returns its seq."""
        seq = self.taken + 1
        at = self._index[seq % self._entries]
        if length is not None:
            struct.pack_into("<I", self._file.map, at, length)
        size, _, mtype = RECORD.unpack_from(self._file.map, at)
        start = at + RECORD.size
        struct.pack_into("<I", self._file.map, at + 4, checksum(mtype, self._file.view[start : start + size]))
        self._publish(seq, size)
        return seq

    def get(self, seq: int) -> Message:
        """The message `seq`, which must be pending."""
        at = self._index[seq % self._entries]
        length, _, mtype = RECORD.unpack_from(self._file.map, at)
        start = at + RECORD.size
        return Message(mtype, self._file.map[start : start + length])

    def confirm(self, seq: int) -> None:
        """Let go of all up to `seq`, which must be pending."""
        index, entries, unpack = self._index, self._entries, RECORD.unpack_from
        for done in range(self.confirmed + 1, seq + 1):
            self.pending_bytes -= unpack(self._file.map, index[done % entries])[0]
        self._file.cells[CONFIRMED] = seq

    def close(self) -> None:
        """Unmap and unlock."""
        self._index.release()
        self._file.close()

    def _publish(self, seq: int, length: int) -> None:
        """One store makes it a fact. The next entry is no stale one by then: it would look like a landing place."""
        self._index[(seq + 1) % self._entries] = NOWHERE
        self._file.cells[TAKEN] = seq
        self.pending_bytes += length

    def _place(self, seq: int, length: int) -> int:
        """Where the record of `seq` goes: after the last, or at the start if it does not fit before the end."""
        need = -(-(RECORD.size + length) // _ALIGN) * _ALIGN
        start, end = self._ring_at, self._ring_at + self._ring
        if self.confirmed == self.taken:
            at, limit = start, end
        else:
            last = self._index[self.taken % self._entries]
            at = -(-(last + RECORD.size + RECORD.unpack_from(self._file.map, last)[0]) // _ALIGN) * _ALIGN
            first = self._index[(self.confirmed + 1) % self._entries]
            limit = end if first < at else first
            if limit is end and at + need > end:
                at, limit = start, first
        if at + need > limit or seq - self.confirmed >= self._entries - 1:
            raise FullError(errno.ENOBUFS, f"journal: no room for a message of {length} bytes beside what is pending")
        self._allocate(at + need)
        return at

    def _allocate(self, upto: int) -> None:
        if upto > self._allocated:
            start = max(self._allocated, self._ring_at)
            end = min(max(upto, start + _GROW), self._file.size)
            allocate(self._file.fd, start, end - start)
            self._allocated = end

    def _check(self) -> None:
        """Believe what is published, if it is whole; and a landed message. Raises DamagedError."""
        if self.taken < self.confirmed or self.taken - self.confirmed >= self._entries:
            raise DamagedError(f"it says that {self.taken} were taken and {self.confirmed} confirmed")
        for seq in range(self.confirmed + 1, self.taken + 1):
            self.pending_bytes += len(self._checked(seq, self._index[seq % self._entries]))
        candidate = self._index[(self.taken + 1) % self._entries]
        if self._is_record(candidate) and RECORD.unpack_from(self._file.map, candidate)[2]:
            self.landed()
            self.recovered = 1

    def _is_record(self, at: int) -> bool:
        end = self._ring_at + self._ring
        return self._ring_at <= at <= end - RECORD.size and (
            at + RECORD.size + RECORD.unpack_from(self._file.map, at)[0] <= end
        )

    def _checked(self, seq: int, at: int) -> bytes:
        if not self._is_record(at):
            raise DamagedError(f"message {seq} is outside the ring")
        length, check, mtype = RECORD.unpack_from(self._file.map, at)
        body = self._file.map[at + RECORD.size : at + RECORD.size + length]
        if checksum(mtype, body) != check:
            raise DamagedError(f"message {seq} has a wrong checksum")
        return body


class SinkJournal:
    """How far a sink has handed over, what it intends, and its flow's counters. A SinkStore."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self.cells = file.cells
        self.fd = file.fd
        self.may_adopt: Callable[[], bool] = lambda: True  # set by a sink that has messages in flight
        if file.cells[WHICH] > 1 or self.handed < self.cells[self._slot + _BASE]:
            raise DamagedError("its cells contradict each other")

    @property
    def _slot(self) -> int:
        return _SLOTS[self.cells[WHICH]]

    @property
    def epoch(self) -> int:
        """Of the source that is heard; 0 before the first."""
        return self.cells[self._slot + _EPOCH]

    @property
    def handed(self) -> int:
        """The last seq that was handed over, was dead, or was not for this sink."""
        return self.cells[self._slot + _HANDED] >> 1

    @property
    def last_sender(self) -> int:
        """Which of two sender processes, 0 or 1, made the last note; kept in the same cell, so both are one store."""
        return self.cells[self._slot + _HANDED] & 1

    @property
    def delivered(self) -> int:
        """Messages handed over in the life of this journal."""
        slot, cells = self._slot, self.cells
        return cells[slot + _EARLIER] + self.handed - cells[slot + _BASE] - cells[NOT_DELIVERED]

    @property
    def handed_cell(self) -> int:
        """The cell that has handed * 2 + last_sender, for a sender process that stores into it itself."""
        return self._slot + _HANDED

    def adopt(self, epoch: int, handed: int) -> None:
        """Start with another source: all up to `handed` is not for this sink. Made aside, then exchanged."""
        cells = self.cells
        if not self.may_adopt():
            raise OSError(errno.EBUSY, "the source has a new journal while messages of the old one are in flight")
        earlier = self.delivered + cells[NOT_DELIVERED]
        other = 1 - cells[WHICH]
        slot = _SLOTS[other]
        cells[INTENT] = 0
        cells[slot + _EPOCH], cells[slot + _BASE] = epoch, handed
        cells[slot + _HANDED] = handed << 1 | self.last_sender
        cells[slot + _EARLIER] = earlier
        cells[WHICH] = other

    def hand(self, seq: int) -> None:
        """Everything up to `seq` has been handed over; nothing new where a sender process has noted it already."""
        if seq > self.handed:
            self.cells[self._slot + _HANDED] = seq << 1 | self.last_sender

    def sent(self, seq: int, sender: int) -> None:
        """What a sender would have noted had it not been killed."""
        self.cells[self._slot + _HANDED] = seq << 1 | sender

    def set_last_sender(self, which: int) -> None:
        """For two new sender processes, before either has sent."""
        self.cells[self._slot + _HANDED] = self.handed << 1 | which

    def close(self) -> None:
        """Unmap and unlock."""
        self._file.close()


def new_epoch() -> int:
    """A number that no earlier journal of this host had and that orders after theirs: nanoseconds of wall time."""
    return time.time_ns()


def open_source(
    path: str, entries: int, ring: int, report: Report = lambda _text: None, patience: float = PATIENCE
) -> SourceJournal:
    """The journal at `path`, made if it is missing. Another size is made by copying what is pending. Raises OSError."""
    wanted = Header(SOURCE, new_epoch(), entries, ring)
    file = open_or_create(path, wanted, patience, report)
    try:
        journal = SourceJournal(file)
    except DamagedError as error:
        report(f"journal {path} is damaged ({error}); moved to {move_aside(path)}, and begun anew")
        file.close()
        return SourceJournal(create(path, wanted, patience))
    if (file.header.entries, file.header.ring) != (entries, ring):
        return _resized(path, journal, wanted, patience)
    return journal


def _resized(path: str, old: SourceJournal, wanted: Header, patience: float) -> SourceJournal:
    pending = [old.get(seq) for seq in range(old.confirmed + 1, old.taken + 1)]
    entries = max(wanted.entries, len(pending) + 3)
    ring = max(wanted.ring, 2 * sum(len(message.body) + 2 * RECORD.size for message in pending))
    header = wanted._replace(epoch=old.epoch, entries=entries, ring=ring)
    file = create(path, header, patience, publish=False)
    for cell in (RELEASED, NOTE, NOTE + 1):
        file.cells[cell] = old.cells[cell]
    file.cells[CONFIRMED] = file.cells[TAKEN] = old.confirmed
    journal = SourceJournal(file)
    for message in pending:
        journal.append(message)
    Path(f"{path}.new").rename(path)
    old.close()
    return journal


def open_sink(path: str, report: Report = lambda _text: None, patience: float = PATIENCE) -> SinkJournal:
    """The journal at `path`, made if it is missing. Raises OSError."""
    wanted = Header(SINK, 0, 0, 0)
    file = open_or_create(path, wanted, patience, report)
    try:
        return SinkJournal(file)
    except DamagedError as error:
        report(f"journal {path} is damaged ({error}); moved to {move_aside(path)}, and begun anew")
        file.close()
        return SinkJournal(create(path, wanted, patience))
