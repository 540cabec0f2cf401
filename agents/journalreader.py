"""Reads a journal while its agent may be writing into it, for `nsbridge journal` and for the supervisor.

It only reads, without lock or mapping, so a running agent is not disturbed. The journal's crash rules
(journal/records.py) guarantee that published data is complete, and that a record stays unchanged until its
message is confirmed. So a bad record is damaged only if its message is still unconfirmed at a second look.

A compromised agent can write any length, any number of entries, or a record that is a hole. So the reader needs little
memory and time for any content: it reads lengths before bodies, bodies in chunks, and at most MOST_CHECKED bytes of
MOST_LISTED messages.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from nsbridge.agents import scoreboard
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.journal import sinkjournal, store
from nsbridge.agents.journal import sourcejournal as journal
from nsbridge.agents.journal.journalfile import (
    CELLS,
    PAGE,
    SOURCE,
    VALUE,
    VERSION,
    DamagedError,
    Header,
    NewerVersionError,
    is_journal,
    is_sealed,
    parse_header,
)
from nsbridge.agents.journal.pending import noted_since
from nsbridge.agents.journal.records import RECORD, checksum_of_none
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.statefiles import journal_path
from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.config.schema import MAX_MESSAGE
from nsbridge.config.text import escape

_FIRST_BYTES = 60  # of a message that are shown
_READ = 4096  # bytes of a message that are kept; a note has less
_CHUNK = 1 << 20  # bytes read at a time to check a message
MOST_CHECKED = 256 << 20  # bytes of messages whose checksums are checked; of later messages only the length is
MOST_LISTED = 1 << 20  # messages that are examined; later ones are only counted
_ATTEMPTS = 5  # at a look that a running agent has overtaken

_JOURNALS = "journals are STATE_DIR/journal/ROUTE/AGENT.out and AGENT.in"

Facts = dict[str, object]


def handed(path: str) -> tuple[int, int] | None:
    """Return the last (epoch, seq) that the sink with this journal handed over; None if the file does not show it."""
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            sink = SinkJournal(_Snapshot(os.pread(file.fileno(), PAGE, 0)))
            return sink.epoch, sink.handed
    except (DamagedError, OSError, TypeError, ValueError):
        return None


def recall(page: Scoreboard, state_dir: str, agent: str) -> None:
    """Put the counters of an agent's journals onto its page, until the agent does; nothing where there is none."""
    for side in ("in", "out"):
        with suppress(DamagedError, NewerVersionError, _NoJournalError, OSError, TypeError, ValueError, struct.error):
            path = journal_path(state_dir, agent, side)
            with open(path, "rb", buffering=0, opener=_without_waiting) as file:
                _Reader(file.fileno()).recall(page)


def read(path: str, most: int | None) -> Facts:
    """Return the facts for JSON, with at most so many of the pending messages. NsbridgeError: one line."""
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            return _Reader(file.fileno()).facts(most) | {"file": os.path.abspath(path)}  # noqa: PTH100  (keeps a ..)
    except _NoJournalError as error:
        raise NsbridgeError(f"{path} is no nsbridge journal{f': {error}' if str(error) else ''}; {_JOURNALS}") from None
    except (DamagedError, struct.error) as error:
        raise NsbridgeError(f"{path} is damaged: {error}; when its agent starts it is moved aside") from None
    except NewerVersionError as error:
        raise NsbridgeError(f"{path} cannot be read: {error}") from None
    except PermissionError:
        raise NotPermittedError(f"{path} cannot be read: run nsbridge as root") from None
    except OSError as error:
        raise NsbridgeError(f"{path} cannot be read: {error.strerror}; {_JOURNALS}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open what may be a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


class _NoJournalError(Exception):
    """The file has nothing to do with nsbridge."""


class _Snapshot:
    """The cells of a sink's journal, at one instant (a SinkFile)."""

    fd = -1

    def __init__(self, page: bytes) -> None:
        if len(page) < PAGE:
            raise DamagedError(f"it has {len(page)} bytes, less than its first page")
        self.cells = memoryview(page)[CELLS].cast("Q")

    def close(self) -> None:
        """See SinkFile."""
        self.cells.release()


class _Reader:
    """One open file. Raises DamagedError, struct.error (it shrinks), NewerVersionError, _NoJournalError, OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _NoJournalError("it is no regular file")
        page = os.pread(fd, PAGE, 0)
        if not is_journal(page):
            raise _NoJournalError
        self._header: Header = parse_header(page)
        self._ring_at = PAGE + 8 * self._header.entries
        self._end = self._ring_at + self._header.ring
        if status.st_size != self._end:
            raise DamagedError(f"it has {status.st_size} bytes, and should have {self._end}")

    def facts(self, most: int | None) -> Facts:
        """See `read`."""
        about: Facts = {"schema": 1, "version": VERSION}
        return about | (self._source(most) if self._header.kind == SOURCE else self._sink())

    def recall(self, page: Scoreboard) -> None:
        """See `recall`."""
        if self._header.kind == SOURCE:
            confirmed, taken, kind = self._numbers()
            page.cells[scoreboard.TAKEN], page.cells[scoreboard.PENDING] = taken, taken - confirmed
            if taken > confirmed:
                now = time.monotonic_ns()
                page.cells[scoreboard.OLDEST] = noted_since(self._cells(), confirmed, now) or now
            if (noted := kinds.noted(kind)) is not None:
                missed = noted.missed(self._cells(), taken)
                page.cells[scoreboard.MISSED], page.cells[scoreboard.MISSED_BYTES] = missed
        else:
            SinkJournal(_Snapshot(os.pread(self._fd, PAGE, 0))).show(page.cells)

    def _cells(self) -> memoryview[int]:
        return _Snapshot(os.pread(self._fd, PAGE, 0)).cells

    def _sink(self) -> Facts:
        sink = SinkJournal(_Snapshot(os.pread(self._fd, PAGE, 0)))
        cells = sink.cells
        return {
            "kind": "sink",
            "epoch": f"{sink.epoch:016x}" if sink.epoch else None,
            "begun": _time(sink.epoch),
            "handed": sink.handed,
            "intended": sink.intent if sink.intent > sink.handed else None,
            "delivered": sink.delivered,
            "bytes": cells[sinkjournal.BYTES],
            "repeats_dropped": cells[sinkjournal.REPEATS],
            "in_doubt": cells[sinkjournal.IN_DOUBT],
            "dead": cells[sinkjournal.DEAD],
        }

    def _source(self, most: int | None) -> Facts:
        confirmed, taken, kind = self._numbers()
        messages: list[Facts] = []
        count = size = checked = 0
        for seq in range(confirmed + 1, min(taken, confirmed + MOST_LISTED) + 1):
            record = self._record(seq, check=checked < MOST_CHECKED)
            if record is None:
                continue
            checked += record.length
            message = _shown(seq, record, kind)
            count += 1
            size += int(str(message["bytes"]))
            if most is None or len(messages) < most:
                messages.append(message)
        count += max(0, taken - confirmed - MOST_LISTED)
        return {
            "kind": "source",
            "epoch": f"{self._header.epoch:016x}",
            "begun": _time(self._header.epoch),
            "window": {"messages": self._header.entries - 3, "ring_bytes": self._header.ring},
            "taken": taken,
            "confirmed": taken - count,
            "pending": count,
            "pending_bytes": size,
            "messages": messages,
            "omitted": count - len(messages),
        }

    def _numbers(self) -> tuple[int, int, int]:
        """Return what was confirmed, what was taken, and what the records are."""
        confirmed = taken = 0
        for _ in range(_ATTEMPTS):
            cells = self._cells()
            confirmed, taken = cells[journal.CONFIRMED], cells[journal.TAKEN]
            if not is_sealed(confirmed) or not is_sealed(taken):
                raise DamagedError("its numbers have a wrong checksum")
            confirmed, taken = confirmed & VALUE, taken & VALUE
            if confirmed <= taken and taken - confirmed < self._header.entries:
                return confirmed, taken, cells[journal.RECORDS]
        raise DamagedError(f"it says that {taken} were taken and {confirmed} confirmed")

    def _record(self, seq: int, *, check: bool) -> _Record | None:
        """Read a record; None if it was confirmed meanwhile, so that a later message may be in its place."""
        found, problem = None, ""
        for _ in range(_ATTEMPTS):
            try:
                found = self._read_record(seq, check=check)
            except DamagedError as error:
                problem = str(error)
            if self._cells()[journal.CONFIRMED] & VALUE >= seq:
                return None
            if found is not None:
                return found
        raise DamagedError(problem)

    def _read_record(self, seq: int, *, check: bool) -> _Record:
        (entry,) = struct.unpack("<Q", os.pread(self._fd, 8, PAGE + 8 * (seq % self._header.entries)))
        at = entry & VALUE
        if not is_sealed(entry) or not self._ring_at <= at <= self._end - RECORD.size:
            raise DamagedError(f"message {seq} is outside the ring")
        length, expected, mtype = RECORD.unpack(os.pread(self._fd, RECORD.size, at))
        if length > MAX_MESSAGE or at + RECORD.size + length > self._end:
            raise DamagedError(f"message {seq} says that it has {length} bytes, which cannot be")
        start = os.pread(self._fd, min(length, _READ), at + RECORD.size)
        if check and self._checksum(mtype, length, at + RECORD.size) != expected:
            raise DamagedError(f"message {seq} has a wrong checksum")
        return _Record(mtype, length, start)

    def _checksum(self, mtype: int, length: int, at: int) -> int:
        """Compute a checksum in chunks: a long message is never in memory as a whole."""
        crc, left = checksum_of_none(mtype, length), length
        while left:
            chunk = os.pread(self._fd, min(left, _CHUNK), at)
            if not chunk:
                raise DamagedError("it has become shorter")
            crc, left, at = zlib.crc32(chunk, crc), left - len(chunk), at + len(chunk)
        return crc


class _Record(NamedTuple):
    """A message of a journal: its type and length, and the first of its bytes."""

    type: int
    length: int
    start: bytes


def _shown(seq: int, record: _Record, kind: int) -> Facts:
    """Describe a pending message by its first bytes, or by where its content is."""
    mtype, length, body = record
    if kind != journal.MESSAGES and mtype in (store.NOTE, store.BODY):
        noted = kinds.noted(kind) if mtype == store.NOTE else None
        mtype = 0
        if noted is not None:
            try:
                size, text = noted.describe(body, seq)
            except (struct.error, ValueError, IndexError):
                size, text = length, _beginning(body)
            return {"seq": seq, "type": mtype, "bytes": size, "shown": text}
    return {"seq": seq, "type": mtype, "bytes": length, "shown": _beginning(body)}


def _beginning(body: bytes) -> str:
    text = escape(body[:_FIRST_BYTES].decode("utf-8", "backslashreplace"))
    return text + ("…" if len(body) > _FIRST_BYTES else "")


def _time(epoch: int) -> str | None:
    """Return the time of an epoch, which is the nanosecond of its birth."""
    try:
        return datetime.fromtimestamp(epoch // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if epoch else None
    except (OverflowError, ValueError, OSError):
        return None
