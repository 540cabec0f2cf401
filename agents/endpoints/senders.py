"""Exactly once into a queue: two sender processes take turns, and the kernel's note of who sent last is the evidence.

msgsnd is atomic but leaves no trace in its sender's memory, so a kill between it and the note (`handed`) leaves one
message of which nobody knows whether it was sent. What decides:
* A message's sender is the one that did not send the message before. Both facts, what was noted last and who sent it,
  are in one cell of the journal (SinkJournal.last_sender), written by the sender right after msgsnd.
* After a kill at most one message was sent and not noted: the next one, by the other sender. msg_lspid says who sent
  last: the other one means that it was sent, the same one that it was not.
* If a foreign process has sent into the queue since, msg_lspid is no evidence. The message is then looked for in the
  queue (`Doubt`); found means sent. If it is not there, `in_doubt` of the configuration decides, and it is counted.
* The journal's lock is inherited, so nobody looks at the evidence while one of them still lives.
Threads could not do this: they share one process id.

Agent and senders share a page of cells and a ring of messages; they wake each other by eventfds.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct

from nsbridge.agents import entry, linux
from nsbridge.agents.journalfile import seal
from nsbridge.agents.sinkjournal import SinkJournal

_CELLS = 16
_ENTRIES = 1024
_INDEX_AT = 8 * _CELLS
_RING_AT = _INDEX_AT + 8 * _ENTRIES
_RING = 1 << 20
_RECORD = struct.Struct("<QQq")  # sender, length, type; the body follows
_TYPE_AT = 16
_NO_QUEUE = (1 << 64) - 1
_SPINS = 200  # looks before a sender sleeps: its turn mostly comes within microseconds

OFFERED, QUEUE, FAILED, FULL, SLEEPING = 0, 1, 2, 3, 4  # SLEEPING is two cells, one a sender


class Outbox:
    """What agent and senders share: the messages up to OFFERED, and what the senders say."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _RING_AT + _RING)
        view = memoryview(self._map)
        self.cells = view[: 8 * _CELLS].cast("Q")
        self._index = view[_INDEX_AT:_RING_AT].cast("Q")
        self._address = linux.address_of(view)
        self._at = 0  # where the next message goes, for the agent
        self.cells[QUEUE] = _NO_QUEUE
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.to_agent = os.eventfd(0, flags)
        self.to_sender = (os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC))

    def start_at(self, handed: int) -> None:
        """Nothing is offered beyond `handed`."""
        self.cells[OFFERED] = handed

    def offer(self, seq: int, handed: int, sender: int, mtype: int, body: bytes) -> bool:
        """Give the next message, to be sent by that sender; False if there is no room until more is handed over."""
        need = -(-(_RECORD.size + len(body)) // 8) * 8
        first = self._index[(handed + 1) % _ENTRIES] if handed + 1 < seq else None
        at, limit = self._at, _RING
        if first is None:
            at = 0
        elif first >= at:
            limit = first
        elif at + need > _RING:
            at, limit = 0, first
        if at + need > limit - (first is not None) or seq - handed >= _ENTRIES:
            return False
        _RECORD.pack_into(self._map, _RING_AT + at, sender, len(body), mtype)
        start = _RING_AT + at + _RECORD.size
        self._map[start : start + len(body)] = body
        self._index[seq % _ENTRIES] = at
        self._at = at + need
        self.cells[OFFERED] = seq
        return True

    def reassign(self, seq: int, sender: int) -> None:
        """From `seq` on the senders take turns beginning with `sender`; only while they rest (FAILED)."""
        for offered in range(seq, self.cells[OFFERED] + 1):
            struct.pack_into("<Q", self._map, _RING_AT + self._index[offered % _ENTRIES], sender)
            sender = 1 - sender

    def record(self, seq: int) -> tuple[int, int, int]:
        """(sender, length, address of the msgbuf) of an offered message."""
        at = _RING_AT + self._index[seq % _ENTRIES]
        sender, length, _ = _RECORD.unpack_from(self._map, at)
        return sender, length, self._address + at + _TYPE_AT

    def wake(self, sender: int) -> None:
        """If it sleeps."""
        if self.cells[SLEEPING + sender]:
            os.eventfd_write(self.to_sender[sender], 1)


def run(which: int, outbox: Outbox, journal: SinkJournal, agent_pid: int, fds: set[int]) -> None:
    """Be a sender, for ever: send what is offered when it is one's turn, and note it."""
    entry.die_with_the_supervisor(agent_pid)
    entry.close_all_but(fds)
    noted = journal.cells
    while True:
        seq = _wait_for_turn(which, outbox, journal)
        _, length, address = outbox.record(seq)
        if not _send(outbox, length, address):
            continue
        noted[journal.handed_cell] = seal(seq << 1 | which)  # from here on it is handed over
        outbox.wake(1 - which)
        os.eventfd_write(outbox.to_agent, 1)


def _wait_for_turn(which: int, outbox: Outbox, journal: SinkJournal) -> int:
    cells = outbox.cells
    spins = 0
    while True:
        seq = journal.handed + 1
        if cells[OFFERED] >= seq and not cells[FAILED] and outbox.record(seq)[0] == which:
            return seq
        spins += 1
        if spins < _SPINS and cells[OFFERED] >= seq:
            os.sched_yield()
            continue
        cells[SLEEPING + which] = 1
        seq = journal.handed + 1  # looked at again, now that a wake-up cannot be missed any more
        if not (cells[OFFERED] >= seq and not cells[FAILED] and outbox.record(seq)[0] == which):
            os.eventfd_read(outbox.to_sender[which])
        cells[SLEEPING + which] = 0
        spins = 0


def _send(outbox: Outbox, length: int, address: int) -> bool:
    """Whether it was sent; if not, FAILED says why and the agent sees to it."""
    cells = outbox.cells
    flags = linux.IPC_NOWAIT
    while True:
        try:
            linux.msgsnd(cells[QUEUE], address, length, flags)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                cells[FULL] = 1
                os.eventfd_write(outbox.to_agent, 1)
                flags = 0
            elif error.errno != errno.EINTR:
                cells[FULL] = 0
                cells[FAILED] = error.errno or errno.EIO
                os.eventfd_write(outbox.to_agent, 1)
                return False
        else:
            if not flags:  # before it is noted: from then on it is the other's turn to say so
                cells[FULL] = 0
            return True
