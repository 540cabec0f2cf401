"""Compromised agents that attack by memory: each other, their supervisor, the host.

More behaviours of rogue.py's rogues. What an agent needs to know of the others it finds in what it inherits; here it is
noted before the fork, which makes nothing possible that is not so anyway.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import time

from nsbridge.agents import linux, scoreboard
from nsbridge.agents.runtime import Agent
from nsbridge.agents.scoreboard import Scoreboard
from tests.system import rogue

FUSE = "/srv/fuse/.hidden"
TAKEN = 256 << 20  # bytes
_MAP_FIXED = 0x10
_ROUNDS = 1500  # one each millisecond: for longer than a second, the deadline of the tests

_pages: list[Scoreboard] = []
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def install() -> None:
    """Replace the behaviours of such agents."""
    make = Scoreboard.__init__

    def noted(self: Scoreboard) -> None:
        make(self)
        _pages.append(self)

    Scoreboard.__init__ = noted  # type: ignore[method-assign]
    rogue.BEHAVIOURS |= {"silences": silences, "maps": maps, "shares": shares}
    rogue.install()


def _live(agent: Agent) -> None:
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        time.sleep(0.05)  # the pace of its signs of life


def silences(agent: Agent) -> None:
    """Have all others seem to have been silent since the host's start.

    Where their pages were, there is nothing here (SIGSEGV), or memory that is its own by now.
    """
    rogue._ready(agent)
    others = [page for page in _pages if page is not agent._assignment.scoreboard]
    for rounds in itertools.count():
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        for page in others:
            page.cells[scoreboard.BEAT] = 1
        if rounds == _ROUNDS:
            agent.log("info", "has written over the others' signs of life")
        time.sleep(0.001)  # the pace of its signs of life


def maps(agent: Agent) -> None:
    """Hold its mmap_lock without end, and continue the heartbeat."""
    fd = os.open(FUSE, os.O_RDWR)
    mapped = mmap.mmap(fd, os.fstat(fd).st_size)
    taken = mmap.mmap(-1, TAKEN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # so that somebody wants to measure it
    taken.madvise(linux.MADV_POPULATE_WRITE)
    mapped[:4] = b"held"
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED

    def hold() -> None:
        _libc.mmap(address, mmap.PAGESIZE, mmap.PROT_READ, private, -1, 0)

    rogue._ready(agent)
    agent.log("info", "takes its mmap_lock")
    threading.Thread(target=hold, daemon=True).start()
    _live(agent)


def shares(agent: Agent) -> None:
    """Allocate shared memory that no other process maps."""
    rogue._ready(agent)
    taken = mmap.mmap(-1, TAKEN)
    taken.madvise(linux.MADV_POPULATE_WRITE)
    _live(agent)
