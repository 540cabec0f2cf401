"""Copies of what an agent hands over, for `nsbridgectl tap`: a ring in the memory that it shares with its supervisor.

The agent writes and never waits: nothing depends on whether its copies are read. A reader follows behind, and notices
what it missed. So a reader that is slow, stopped or dead costs the agent nothing, and any number can read.

* A tap must not slow the route down. The agent copies at most RATE messages and BYTE_RATE bytes a second, and the first
  KEPT bytes of each. It only counts the others.
* Each record has the message's number among all that were handed over while the agent was tapped. A gap in these
  numbers is what the reader has not seen. SEEN is the last number, so that a gap at the end shows, too.
* The agent publishes a record by WRITTEN, the number of bytes ever written. A reader copies first, and then looks at
  WRITTEN again: what may have been overwritten meanwhile is dropped.
* The agent may be compromised and write anything there. A reader checks every length, and yields bytes and numbers.

The supervisor shares this memory and never reads it. It forks a child for each tap, which does (control/tap.py).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from nsbridge.agents.wire import Run

SIZE = 128 << 10  # bytes of the shared memory
KEPT = 32 << 10  # bytes of a message, at most
RATE = 1000  # messages a second
BYTE_RATE = 1_000_000  # bytes a second
BURST = 0.1  # seconds' worth of both, at once

_HEAD = 64  # bytes before the ring
_RING = SIZE - _HEAD
_WRITTEN, _SEEN = 0, 1  # cells of the head
_RECORD = struct.Struct(
    "<4QqII"
)  # number, ns of wall time, epoch, seq; type; bytes of the message, bytes that are kept
_MARGIN = _RECORD.size + KEPT  # bytes behind WRITTEN that the agent may be overwriting
_SECOND = 10**9


class TapWriter:
    """The agent's end."""

    def __init__(self, memory: memoryview) -> None:
        self._cells = memory[:_HEAD].cast("Q")
        self._ring = memory[_HEAD:]
        self._at = 0  # when the allowances were raised last, in ns of CLOCK_MONOTONIC
        self._messages = self._bytes = 0.0  # that may be copied now

    def put(self, run: Run, now: int) -> None:
        """Copy as many of the messages as the rates allow; `now` is in ns of CLOCK_MONOTONIC."""
        passed = (now - self._at) / _SECOND
        self._at = now
        self._messages = min(RATE * BURST, self._messages + passed * RATE)
        self._bytes = min(BYTE_RATE * BURST, self._bytes + passed * BYTE_RATE)
        cells = self._cells
        seen = cells[_SEEN]
        if self._messages >= 1 and self._bytes > 0:
            written = cells[_WRITTEN]
            wall = time.time_ns()
            for number, body in enumerate(run.bodies):
                if self._messages < 1 or self._bytes <= 0:
                    break
                kept = min(len(body), KEPT)
                head = _RECORD.pack(seen + number + 1, wall, run.epoch, run.first + number, run.type, len(body), kept)
                written = self._write(self._write(written, head), body[:kept])
                self._messages -= 1
                self._bytes -= _RECORD.size + kept
            cells[_WRITTEN] = written
        cells[_SEEN] = seen + len(run.bodies)

    def _write(self, at: int, data: bytes) -> int:
        start = at % _RING
        first = min(len(data), _RING - start)
        self._ring[start : start + first] = data[:first]
        self._ring[: len(data) - first] = data[first:]
        return at + len(data)


class Tapped(NamedTuple):
    """A message that was handed over: at `time` (ns of wall time), of `size` bytes, which are cut to KEPT."""

    time: int
    epoch: int
    seq: int
    type: int
    size: int
    body: bytes


class TapReader:
    """A reader's end; it begins with what comes next."""

    def __init__(self, memory: memoryview) -> None:
        self._cells = memory[:_HEAD].cast("Q")
        self._ring = memory[_HEAD:]
        self._number = self._cells[_SEEN]
        self._at = self._cells[_WRITTEN]

    def read(self) -> Iterator[int | Tapped]:
        """Yield what has come: messages, and between them how many others are not shown."""
        seen, written = self._cells[_SEEN], self._cells[_WRITTEN]
        for number, message in self._records(written):
            if number > self._number + 1:
                yield number - self._number - 1
            self._number = number
            yield message
        if seen > self._number:
            yield seen - self._number
            self._number = seen

    def _records(self, written: int) -> Iterator[tuple[int, Tapped]]:
        at, self._at = self._at, written
        if not 0 <= written - at <= _RING - _MARGIN:
            return
        data = self._copy(at, written - at)
        if not 0 <= self._cells[_WRITTEN] - at <= _RING - _MARGIN:
            return  # the agent was faster: some of it may be of later messages
        start = 0
        while start + _RECORD.size <= len(data):
            number, wall, epoch, seq, mtype, size, kept = _RECORD.unpack_from(data, start)
            start += _RECORD.size
            if kept > KEPT or start + kept > len(data) or number <= self._number:
                return  # no honest agent wrote that
            yield number, Tapped(wall, epoch, seq, mtype, size, data[start : start + kept])
            start += kept

    def _copy(self, at: int, size: int) -> bytes:
        start = at % _RING
        first = min(size, _RING - start)
        return bytes(self._ring[start : start + first]) + bytes(self._ring[: size - first])
