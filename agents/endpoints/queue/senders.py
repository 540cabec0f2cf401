"""Exactly once into a queue: two sender processes take turns, and the kernel's note of who sent last is the evidence.

msgsnd is atomic but leaves no trace in its sender's memory, so a kill between it and the note (`handed`) leaves one
message of which it is unknown whether it was sent. What decides:
* A message's sender is the one that did not send the message before. Both facts, what was noted last and who sent it,
  are in one cell of the journal (SinkJournal.last_sender), written by the sender right after msgsnd. Each notes who it
  is before it sends for the first time. Of a new agent the first message is sent by the agent itself, as sender 0,
  if the senders are not there yet.
* After a kill at most one message was sent and not noted: the next one, by the other sender. msg_lspid says who sent
  last: the other one means that it was sent, the same one that it was not.
* If a foreign process has sent into the queue since, msg_lspid is no evidence. Then only a message is in doubt that its
  sender was about to send, which it notes before (`BEGUN`). It is looked for in the queue (evidence.py); found means
  sent. If it is not there, `in_doubt` of the configuration decides, and it is counted.
* The journal's lock is inherited, so no process reads the evidence while one of them still runs.
Threads could not do this: they share one process id.

Agent and senders share a page of cells and a ring of messages; they wake each other by eventfds. A wake-up may be
missed (each writes one cell and then reads another's, and processors may exchange the two), so the agent looks again
now and then while something is offered: nothing depends on a wake-up but the time it takes.

Both senders stay on one processor, where `sched_yield` is the whole hand-over: 6 us a message, but 14 us on two, where
each looks for its turn while the other sends (150,000 messages of 256 bytes, 2 cores). Which one is left to chance, so
that the senders of many queues spread, and those that are started again may leave a busy one.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress

from nsbridge.agents import linux
from nsbridge.agents.confinement import entry
from nsbridge.agents.endpoints.queue.cells import BEGUN, SENDERS
from nsbridge.agents.endpoints.queue.evidence import begun
from nsbridge.agents.journal.journalfile import VALUE, seal
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.wire import Run

_CELLS = 16
_ENTRIES = 1024
_INDEX_AT = 8 * _CELLS
_RING_AT = _INDEX_AT + 8 * _ENTRIES
_RING = 1 << 20  # bytes at least
_LENGTH_AT = 32  # bits of an index entry: where the msgbuf is, above them its length
_AT = (1 << _LENGTH_AT) - 1
_NO_QUEUE = (1 << 64) - 1
_NEVER = (1 << 64) - 1
_SEQ = (1 << 32) - 1  # the bits of a seq in BEGUN
_SPINS = 200  # looks before a sender sleeps: its turn mostly comes within microseconds

OFFERED, QUEUE, FAILED, FULL, SLEEPING = 0, 1, 2, 3, 4  # SLEEPING is two cells, one a sender
_TURN = 6  # 0 or 1: sender 0 has the even seqs, or the odd ones
_HANDED_AT = 7  # the cell of the journal that holds what was noted last
_WAKE_AT = 8  # the seq at which a sender wakes the agent


class Outbox:
    """The memory that agent and senders share: the messages up to OFFERED, and what the senders report."""

    def __init__(self, longest: int = _RING // 2) -> None:
        """Make room for messages of up to `longest` bytes; pages that no message was in cost nothing."""
        self._ring = max(_RING, 2 * (longest + 16))
        self._map = mmap.mmap(-1, _RING_AT + self._ring)
        view = memoryview(self._map)
        self.cells = view[: 8 * _CELLS].cast("Q")
        self.index = view[_INDEX_AT:_RING_AT].cast("Q")
        self.address = linux.address_of(view) + _RING_AT
        self._head = 0  # bytes of the ring that were ever used
        self._ends = [0] * _ENTRIES  # what it was after each message, by seq
        self.cells[QUEUE] = _NO_QUEUE
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.to_agent = os.eventfd(0, flags)
        self.to_sender = (os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC))

    def begin(self, handed: int, handed_cell: int, sender: int) -> None:
        """Start with nothing offered beyond `handed`, which `handed_cell` holds; the next message is for `sender`."""
        self.cells[OFFERED] = 0  # or a sender that is awake would take one cell for the other's
        self.cells[_HANDED_AT] = handed_cell
        self.cells[OFFERED] = handed
        self._ends[handed % _ENTRIES] = self._head
        self.give_turn(handed + 1, sender)

    def give_turn(self, seq: int, sender: int) -> None:
        """Set the turns of the senders: `sender` begins, at `seq`. Call it only while they rest."""
        self.cells[_TURN] = (seq ^ sender) & 1

    def place(self, run: Run, mtype: int, handed: int) -> int:
        """Put the next messages into the ring, beyond what is offered; how many there was room for."""
        ring, head, tail = self._ring, self._head, self._ends[handed % _ENTRIES]
        typed = mtype.to_bytes(8, "little", signed=True)
        for seq, body in enumerate(run.bodies, run.first):
            size = len(body) + 15 & -8
            at = head % ring
            if at + size > ring:
                head, at = head + ring - at, 0
            if seq == handed + 1:
                tail = head  # nothing else is in the ring
            if head + size - tail > ring or seq - handed >= _ENTRIES:
                return seq - run.first
            start = _RING_AT + at
            self._map[start : start + 8 + len(body)] = typed + body
            self.index[seq % _ENTRIES] = at | len(body) << _LENGTH_AT
            self._head = self._ends[seq % _ENTRIES] = head = head + size
        return len(run.bodies)

    def publish(self, seq: int) -> None:
        """Offer all that was placed, up to `seq`, to the senders."""
        self.cells[OFFERED] = seq

    def wake_agent_at(self, seq: int) -> None:
        """Make `to_agent` readable once this one is handed over."""
        self.cells[_WAKE_AT] = seq

    def wake(self, sender: int) -> None:
        """Wake the sender if it sleeps."""
        if self.cells[SLEEPING + sender]:
            os.eventfd_write(self.to_sender[sender], 1)


def choose_processor() -> int:
    """Choose a random processor among those that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[int.from_bytes(os.urandom(2)) % len(usable)]


def begin(agent_pid: int, processor: int, fds: set[int]) -> None:
    """Become a sender: die with the agent, keep only these descriptors, stay on one processor."""
    entry.die_with_the_supervisor(agent_pid)
    entry.close_all_but(fds)
    with suppress(OSError):  # it may not be used any more: then it takes longer
        os.sched_setaffinity(0, {processor})


def run(which: int, outbox: Outbox, journal: SinkJournal) -> None:
    """Send what is offered, whenever it is this sender's turn, and note it. Never returns."""
    cells, index, noted, base = outbox.cells, outbox.index, journal.cells, outbox.address
    other, send, its_turn = SLEEPING + 1 - which, linux.try_msgsnd, os.sched_yield
    me, spins = os.getpid(), 0
    mine = begun(me, 0)
    while True:
        cell = cells[_HANDED_AT]
        note = noted[cell]
        seq = ((note & VALUE) >> 1) + 1
        if cells[OFFERED] < seq or cells[FAILED]:
            _sleep(which, outbox, noted)
            continue
        if (seq ^ cells[_TURN]) & 1 == which:
            if cells[_HANDED_AT] != cell or noted[cell] != note:
                continue  # the turn is of a later message: the agent has put this one aside meanwhile, or begun anew
            spins = 0
            noted[BEGUN] = mine | seq & _SEQ
            noted[SENDERS + which] = me
            where = index[seq % _ENTRIES]
            address, length = base + (where & _AT), where >> _LENGTH_AT
            number = send(cells[QUEUE], address, length)
            if number and not _send_after(number, outbox, address, length):
                continue
            noted[cell] = seal(seq << 1 | which)  # from here on it is handed over
            if seq >= cells[_WAKE_AT]:
                cells[_WAKE_AT] = _NEVER
                os.eventfd_write(outbox.to_agent, 1)
        elif spins == _SPINS:
            _sleep(which, outbox, noted)
            spins = 0
        if not spins and cells[other]:
            outbox.wake(1 - which)
        spins += 1
        its_turn()


def _sleep(which: int, outbox: Outbox, noted: memoryview[int]) -> None:
    """Sleep until the agent or the other sender wakes this sender.

    Do not sleep if its turn has come just now: no process would wake it for that.
    """
    cells = outbox.cells
    cells[SLEEPING + which] = 1
    seq = ((noted[cells[_HANDED_AT]] & VALUE) >> 1) + 1
    if cells[OFFERED] < seq or cells[FAILED] or (seq ^ cells[_TURN]) & 1 != which:
        os.eventfd_read(outbox.to_sender[which])
    cells[SLEEPING + which] = 0


def _send_after(number: int, outbox: Outbox, address: int, length: int) -> bool:
    """Handle the errno of a failed send; True if the message is sent now.

    Otherwise FAILED holds the reason, and the agent handles it.
    """
    cells = outbox.cells
    if number == errno.EAGAIN:
        cells[FULL] = 1  # the agent sees it when it looks again
        number = errno.EINTR
        while number == errno.EINTR:
            number = linux.wait_msgsnd(cells[QUEUE], address, length)
        cells[FULL] = 0
    if number:
        cells[FAILED] = number
        os.eventfd_write(outbox.to_agent, 1)
    return not number
