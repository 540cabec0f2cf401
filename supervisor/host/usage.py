"""Reads a process's memory and descriptors without its mmap_lock: the supervisor's loop never waits for an agent.

A fork shares nearly all of its memory with its parent. Only a walk through its page tables shows its own part
(smaps_rollup). That walk takes the process's mmap_lock, which a hostile process can keep. So the loop reads
`at_most`, an upper bound. If the bound is below the limit, nothing else is read. Otherwise a bounded child measures
(health/measuring.py).

From /proc/PID/status it counts anonymous memory (RssAnon, including pages shared with the parent), shared memory
(RssShmem: MAP_SHARED without a file, and files of a tmpfs such as a journal), swapped memory (VmSwap), page tables
(VmPTE, which sparse mappings fill without resident memory) and huge pages. It does not count pages of files on a disk:
the kernel drops these when it needs room.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from nsbridge.supervisor.host import procfs

_COUNTED = ("RssAnon", "RssShmem", "VmSwap", "VmPTE", "HugetlbPages")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """A process's use of the host."""

    memory: int  # bytes
    descriptors: int


def at_most(pid: int) -> Usage | None:
    """Return its descriptors and an upper bound of its own memory; None if it has ended. 0.1 to 0.3 ms."""
    try:
        return Usage(memory_of(procfs.read_status(pid)), len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
    except (OSError, ValueError):
        return None


def is_hollow(pid: int) -> bool:
    """True if the first thread of a process has ended and others run on.

    Then /proc/PID shows none of its memory and descriptors. Only exit(2) of a thread does that, never a healthy agent.
    """
    try:
        status = procfs.read_status(pid)
        return status["State"].startswith("Z") and int(status["Threads"]) > 1
    except (OSError, KeyError, ValueError):
        return False


def memory_of(status: Mapping[str, str]) -> int:
    """Return the bytes in `status`, see the top of this file. Raises ValueError if a line is malformed."""
    return sum(int(status[key].removesuffix("kB")) << 10 for key in _COUNTED if key in status)


def about(pids: tuple[int, ...]) -> Usage | None:
    """Estimate the own memory of these together, and the descriptors of the first; None if the first has ended.

    This is for status. A fork has at most as many pages of its own as it has had page faults, except for huge pages and
    pages that its parent has released. `inspect` and `top` measure exactly (health/measuring.py).
    """
    first = at_most(pids[0])
    if first is None:
        return None
    memory = 0
    for pid in pids:
        try:
            faults = procfs.read_stat(pid).faults * _PAGE
            memory += min(faults, memory_of(procfs.read_status(pid)))
        except (OSError, ValueError):
            continue
    return Usage(memory, first.descriptors)


class Meter:
    """Reads the CPU time and memory of a few processes together, repeatedly and cheaply.

    The caller has not reaped them, so their pids are not reused. A process that is gone counts as 0.
    """

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._pids = pids

    def usage(self) -> tuple[float, int]:
        """Return (CPU seconds so far, resident bytes); about 0.02 ms a process."""
        ticks = resident = 0
        for pid in self._pids:
            try:
                about = procfs.read_stat(pid)
            except OSError:
                continue
            ticks, resident = ticks + about.cpu_ticks, resident + about.resident
        return ticks / procfs.TICKS, resident


def children_among(pid: int, named: list[int]) -> list[int]:
    """Return the `named` pids that really are children of `pid`; `named` may be wrong and of any length."""
    wanted = [number for number in named if number]
    if not wanted:
        return []
    real = procfs.children(pid)
    return [number for number in wanted if number in real]


def exit_code(pid: int) -> int | None:
    """Return the exit code of a child that is ending, negative for a signal's number; None if it lives.

    The kernel may take a while from here until the child can be reaped.
    """
    if not procfs.has_left_user_space(pid):
        return None
    try:
        about = procfs.read_stat(pid)
    except OSError:  # no descriptor is free
        return None
    if not about.is_exiting or about.exit_status is None:
        return None
    return os.waitstatus_to_exitcode(about.exit_status)
