"""The kernel's count of an agent's messages, as the agent sees it (supervisor/host/counter.py makes it).

A BPF program counts each successful call of a registered process that sends or receives a message, SysV or POSIX. It
does so on the exit of the system call, before any signal reaches the process. The counts outlive the process. So after
a SIGKILL they say how many messages it sent, how many it received, and how long the last LENGTHS of these were.

An agent has one slot, the same one for all of its processes in turn. The map is frozen: no process can write into it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nsbridge.agents import linux

SLOT_SIZE = 512  # bytes
SENT_AT, RECEIVED_AT, LENGTHS_AT = 0, 8, 64  # within a slot
LENGTHS = 64  # of the last received messages, u32 each, in a ring
LIFE_SLOT = 0  # has the identity of this counter, in the place of a count
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Lease:
    """The part of the counter that a new agent gets. The supervisor's child has registered it before."""

    slots: int  # descriptor of the map
    slot: int
    life: int  # identity of the counter; a journal that names a different one ignores this one
    skips: int  # how often the kernel has skipped a count up to now


class Counts(Protocol):
    """The counts that a journal needs (journal/counted.py)."""

    @property
    def life(self) -> int:
        """Return the counter's identity."""
        ...

    @property
    def skips(self) -> int:
        """Return how often the kernel had skipped a count when the agent began."""
        ...

    @property
    def sent(self) -> int:
        """Return how many messages it has sent: msgsnd, mq_timedsend."""
        ...

    @property
    def received(self) -> int:
        """Return how many messages it has received: msgrcv, mq_timedreceive."""
        ...

    def lengths(self, count: int) -> Sequence[int]:
        """Return the lengths of the last `count` received messages, at most LENGTHS, oldest first."""
        ...


class Counter:
    """The counts of one slot. Reading them is a load from memory, no system call."""

    def __init__(self, view: memoryview, lease: Lease) -> None:
        begin = lease.slot * SLOT_SIZE % _PAGE
        self._counts = view[begin : begin + LENGTHS_AT].cast("Q")
        self._lengths = view[begin + LENGTHS_AT : begin + LENGTHS_AT + 4 * LENGTHS].cast("I")
        self.life = lease.life
        self.skips = lease.skips  # when the agent began

    @property
    def sent(self) -> int:
        """See Counts."""
        return self._counts[0]

    @property
    def received(self) -> int:
        """See Counts."""
        return self._counts[1]

    def lengths(self, count: int) -> Sequence[int]:
        """See Counts."""
        end = self.received
        return [self._lengths[number % LENGTHS] for number in range(end - count, end)]


def open_slot(lease: Lease) -> Counter:
    """Map the page of the agent's slot, read-only, and close the descriptor. Raises OSError."""
    offset = lease.slot * SLOT_SIZE // _PAGE * _PAGE
    page = linux.map_shared(lease.slots, _PAGE, offset)
    os.close(lease.slots)
    return Counter(page, lease)
