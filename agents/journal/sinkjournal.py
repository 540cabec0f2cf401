"""A sink's journal: how far it has handed over, and what it intends. records.py has the rules of all journals."""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

from nsbridge.agents import scoreboard
from nsbridge.agents.journal.journalfile import (
    CELL_COUNT,
    PATIENCE,
    SINK,
    VALUE,
    DamagedError,
    Header,
    Report,
    create,
    is_sealed,
    move_aside,
    open_or_create,
    seal,
)
from nsbridge.agents.wire import MAX_EPOCH

# Cells of a sink: two slots of four, `WHICH` selects the one that counts
WHICH = 0
_EPOCH, _BASE, _HANDED, _EARLIER = 0, 1, 2, 3  # within a slot
_SLOTS = (1, 5)
_SLOT_CHECKS = (30, 31)  # of a slot's three numbers that do not change
INTENT, BYTES, REPEATS, IN_DOUBT, DEAD, NOT_DELIVERED = 9, 10, 11, 12, 13, 14
PLACE = 15  # which directory or queue it hands over to, if its kind must know
KIND = 32  # which kind of endpoint it was used by (belonging.py)
DEAD_DROPPED = 33  # dead letters that the agent has dropped, for lack of room or for their age
# These belong to the kind of the endpoint: each kind names its own, and they are wiped when another kind takes over.
# The range at the end has never been used: new kinds take theirs there.
KIND_CELLS = (*range(16, 30), 36, *range(44, CELL_COUNT))
KIND_CELLS_KEPT = (37, 38)  # these belong to a kind, too, and outlive another one

_COUNTERS = (BYTES, REPEATS, IN_DOUBT, DEAD, NOT_DELIVERED, DEAD_DROPPED)
_MOST = 1 << 62  # that may have been counted: then no sum of them is beyond eight bytes


class SinkFile(Protocol):
    """The file that a sink's journal needs: a JournalFile, or the cells of one that is locked elsewhere."""

    fd: int
    cells: memoryview[int]

    def close(self) -> None:
        """Give them back."""


class SinkJournal:
    """The progress of a sink: how far it has handed over, what it intends, and its flow's counters. A SinkStore."""

    def __init__(self, file: SinkFile) -> None:
        self._file = file
        self.cells = file.cells
        self.fd = file.fd
        which = file.cells[WHICH]
        self._select(which & 1)
        slot = self._slot
        if not is_sealed(which) or which & VALUE > 1 or not is_sealed(file.cells[slot + _HANDED]):
            raise DamagedError("its numbers have a wrong checksum")
        if file.cells[_SLOT_CHECKS[which & 1]] != self._check_of(slot) or self.handed < file.cells[slot + _BASE]:
            raise DamagedError("its epoch has a wrong checksum")
        if file.cells[slot + _EARLIER] > _MOST or self.epoch > MAX_EPOCH:
            raise DamagedError("it says what no journal can have counted")

    def _select(self, which: int) -> None:
        """Use this slot from now on; only this object changes which one counts."""
        self._slot = _SLOTS[which]
        self.handed_cell = self._slot + _HANDED  # holds handed * 2 + last_sender, sealed; a sender stores into it, too
        self.epoch = self.cells[self._slot + _EPOCH]  # of the source whose messages are accepted; 0 before the first

    def _check_of(self, slot: int) -> int:
        numbers = struct.pack("<3Q", *(self.cells[slot + cell] for cell in (_EPOCH, _BASE, _EARLIER)))
        return zlib.crc32(numbers) ^ zlib.crc32(bytes(24))  # 0 in a new journal

    @property
    def handed(self) -> int:
        """Return the last seq that was handed over, was dead, or was not for this sink."""
        return (self.cells[self.handed_cell] & VALUE) >> 1

    @property
    def last_sender(self) -> int:
        """Return which of two sender processes, 0 or 1, made the last note.

        It is kept in the same cell as `handed`, so one store writes both.
        """
        return self.cells[self.handed_cell] & 1

    @property
    def delivered(self) -> int:
        """Return how many messages were handed over in the life of this journal."""
        slot, cells = self._slot, self.cells
        return cells[slot + _EARLIER] + self.handed - cells[slot + _BASE] - cells[NOT_DELIVERED]

    @property
    def intent(self) -> int:
        """Return the seq that is about to be handed over, to be settled after a kill.

        It is 0 if there is none, or if the cell is damaged.
        """
        cell = self.cells[INTENT]
        return cell & VALUE if is_sealed(cell) else 0

    @intent.setter
    def intent(self, seq: int) -> None:
        self.cells[INTENT] = seal(seq)

    def repair(self, report: Report) -> None:
        """Count anew where the counters say what cannot be. Nothing depends on them, and they have no checksum."""
        wrong = [cell for cell in _COUNTERS if self.cells[cell] > _MOST]
        if self.delivered < 0 and NOT_DELIVERED not in wrong:
            wrong.append(NOT_DELIVERED)
        for cell in wrong:
            self.cells[cell] = 0
        if wrong:
            report("counters of the sink's journal say what cannot be: they begin anew")

    def show(self, page: memoryview[int]) -> None:
        """Put its counters onto an agent's page, where the supervisor sees them (scoreboard.py)."""
        page[scoreboard.HANDED] = self.delivered
        page[scoreboard.HANDED_BYTES] = self.cells[BYTES]
        page[scoreboard.REPEATS_DROPPED] = self.cells[REPEATS]
        page[scoreboard.IN_DOUBT] = self.cells[IN_DOUBT]
        page[scoreboard.DEAD] = self.cells[DEAD]
        page[scoreboard.DEAD_DROPPED] = self.cells[DEAD_DROPPED]

    def adopt(self, epoch: int, handed: int) -> None:
        """Start with another source: all up to `handed` is not for this sink. Made aside, then exchanged."""
        cells = self.cells
        earlier = self.delivered + cells[NOT_DELIVERED]
        other = 1 - (cells[WHICH] & 1)
        slot = _SLOTS[other]
        cells[INTENT] = 0
        cells[slot + _EPOCH], cells[slot + _BASE] = epoch, handed
        cells[slot + _HANDED] = seal(handed << 1 | self.last_sender)
        cells[slot + _EARLIER] = earlier
        cells[_SLOT_CHECKS[other]] = self._check_of(slot)
        cells[WHICH] = seal(other)
        self._select(other)

    def hand(self, seq: int) -> None:
        """Note that everything up to `seq` has been handed over.

        Change nothing if a sender process has noted it already.
        """
        cell = self.cells[self.handed_cell]
        if seq > (cell & VALUE) >> 1:
            self.cells[self.handed_cell] = seal(seq << 1 | cell & 1)

    def sent(self, seq: int, sender: int) -> None:
        """Note what a sender would have noted had it not been killed."""
        self.cells[self.handed_cell] = seal(seq << 1 | sender)

    def set_last_sender(self, which: int) -> None:
        """Set the last sender for two new sender processes, before either has sent."""
        self.sent(self.handed, which)

    def close(self) -> None:
        """Unmap and unlock."""
        self._file.close()


def open_sink(path: str, report: Report = lambda _text: None, patience: float = PATIENCE) -> SinkJournal:
    """Open the journal at `path`; make it if it is missing. Raises OSError."""
    wanted = Header(SINK, 0, 0, 0)
    file = open_or_create(path, wanted, patience, report)
    try:
        sink = SinkJournal(file)
    except DamagedError as error:
        move_aside(path, error, report)
        file.close()
        return SinkJournal(create(path, wanted, patience))
    sink.repair(report)
    return sink
