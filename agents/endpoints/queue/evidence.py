"""Determines after a kill whether the last senders had sent a message into their queue (see senders.py)."""

from __future__ import annotations

import errno
import zlib

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.queue.cells import BASELINE, BEGUN, LATEST, PREDECESSOR, SENDERS
from nsbridge.agents.endpoints.queue.look import FARTHEST
from nsbridge.agents.endpoints.queue.queue import Queue, last_sender
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, INTENT, NOT_DELIVERED, PLACE, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt

_UNKNOWN = 1 << 32  # no checksum
_ANYBODY = 1 << 32  # not a pid: any process may have sent
_HALF = 32  # bits of a cell: the sender's pid is above, of the seq the lower bits are below


def begun(pid: int, seq: int) -> int:
    """Return what a sender notes just before it sends message `seq`, and before it notes itself in SENDERS."""
    return pid << _HALF | seq & (1 << _HALF) - 1


def may_have_begun(cell: int, seq: int, sender: int, former: tuple[int, int]) -> bool:
    """True if `sender`, one of the `former` two, may have begun to send message `seq`; 0 if it never noted itself.

    A cell of other processes says nothing: an earlier version, which did not write it, may have run since.
    """
    if not sender:
        return False
    return cell >> _HALF not in former or cell == begun(sender, seq)


class QueueEvidence:
    """Resolves the last message of a sink's former senders, and keeps the evidence for the sink's successor."""

    def __init__(self, host: AgentApi, key: int, mtype: int | None, journal: SinkJournal, in_doubt: InDoubt) -> None:
        self._host = host
        self._key = key
        self._type = mtype
        self._journal = journal
        self._in_doubt = in_doubt
        self._examined = False  # the former senders' last message is resolved
        self._was_alone = False  # nothing had been offered behind the doubtful message
        self._doubtful = (0, 0)  # epoch and seq of the message that may or may not have been sent

    def examine(self, queue: Queue) -> None:
        """Resolve the former senders' last message, once, before the new senders note themselves. Raises Blocked."""
        cells, journal = self._journal.cells, self._journal
        last_pid = last_sender(queue, self._key)
        if self._examined:
            if cells[PLACE] != queue.id + 1:  # a new queue: no sender has sent into it
                cells[BASELINE] = 1
                cells[PLACE] = queue.id + 1
            return
        last, former = journal.last_sender, (cells[SENDERS], cells[SENDERS + 1])
        ours = last_pid in former or last_pid + 1 == cells[BASELINE] or last_pid == 0
        if cells[PLACE] == queue.id + 1 and cells[INTENT] > journal.handed:
            if last_pid > 0 and last_pid == former[1 - last]:
                journal.sent(journal.handed + 1, 1 - last)
                self._host.log("info", f"message {journal.handed} was sent just before the agent was killed")
            elif not ours and may_have_begun(cells[BEGUN], journal.handed + 1, former[1 - last], former):
                self._doubtful = (journal.epoch, journal.handed + 1)
                self._was_alone = cells[INTENT] == journal.handed + 1
        cells[BASELINE] = last_pid + 1 if ours else 0
        cells[PLACE] = queue.id + 1
        cells[SENDERS] = cells[SENDERS + 1] = _ANYBODY if self._doubtful[1] else 0  # keep the doubt for the successor
        journal.set_last_sender(1)
        self._examined = True

    def resolve(self, run: Run, queue: Queue) -> bool:
        """True if the first message was in doubt and is finished: it is in the queue, or is to be skipped."""
        if (run.epoch, run.first) != self._doubtful:
            return False
        self._doubtful = (0, 0)
        one = run.one(0)
        if self._was_alone and self._is_in_queue(one, queue):
            self._host.log("info", f"message {one.first} is in the queue: it was sent before the agent was killed")
        else:
            self._journal.cells[IN_DOUBT] += 1
            what = "sent again" if self._in_doubt is InDoubt.RESEND else "skipped"
            self._host.log("warning", f"unknown whether message {one.first} was sent before a kill: {what}")
            if self._in_doubt is InDoubt.RESEND:
                return False
            self._journal.cells[NOT_DELIVERED] += 1
            self.forget_latest()
        self._host.handed(one)
        return True

    def intend(self, run: Run, mtype: int) -> None:
        """Note how to find the last message in the queue, before it may be there."""
        cells = self._journal.cells
        if cells[INTENT] < run.last:
            before = _checksum(mtype, run.bodies[-2]) if len(run.bodies) > 1 else cells[LATEST]
            cells[PREDECESSOR], cells[LATEST] = before, _checksum(mtype, run.bodies[-1])
            cells[INTENT] = run.last

    def forget_latest(self) -> None:
        """Note that the message offered last may not be in the queue, so the next one is no proof for it."""
        self._journal.cells[PREDECESSOR] = self._journal.cells[LATEST] = _UNKNOWN

    def _is_in_queue(self, one: Run, queue: Queue) -> bool:
        buffer = bytearray(8 + max(len(one.bodies[0]) + 1, 8192))
        address = linux.address_of(buffer)
        wanted = (self._type or one.type or 1, one.bodies[0])
        predecessor, found_one, is_behind = self._journal.cells[PREDECESSOR], False, False
        if predecessor in (_UNKNOWN, _checksum(*wanted)):
            return False  # what is found may be the message before it
        for index in range(FARTHEST):
            length = linux.try_msgrcv(queue.id, address, len(buffer) - 8, index, linux.MSG_COPY | linux.IPC_NOWAIT)
            if length < 0 and length != -errno.E2BIG:
                # An equal one may be older; not where the one before this has left, and before it all of its type.
                return found_one and (is_behind or bool(self._type))
            found = int.from_bytes(buffer[:8], "little", signed=True), bytes(buffer[8 : 8 + length])
            if length >= 0 and _checksum(*found) == predecessor:
                is_behind, found_one = True, False
            found_one = found_one or (length >= 0 and found == wanted)
        return False


def _checksum(mtype: int, body: bytes) -> int:
    return zlib.crc32(body, mtype & 0xFFFFFFFF)
