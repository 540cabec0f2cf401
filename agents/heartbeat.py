"""Signs of life, by which the supervisor judges an agent: its loop turns, and nothing beside it hangs.

* BEAT is written by the holder of the loop's lock: every few seconds by a timer, and with each message that is done.
  A call that never returns (a read of a file system in user space, say) is made with the lock held, so that it stops
  the beat; a thread of the agent that runs on cannot write one meanwhile.
* Work beside the loop (a thread in msgrcv or msgsnd, sender processes) holds no lock while it waits. It may block
  indefinitely: a queue may be empty or full. It counts as wedged only while it owes a step. So each of them vouches at
  every beat: it returns the time since which it has owed a step without an excuse. PROGRESS is the oldest of these.
* Idle agents beat at common moments, _SLOTS of them in a period. The next one finds the interpreter's code in the
  processor's caches: with 400 agents a beat costs 0.12 ms, and 0.21 ms when each has its own moment (2 cores).
* Both are CLOCK_MONOTONIC: a step of the wall clock or a suspend of the machine kills no agent.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nsbridge.agents import scoreboard
from nsbridge.agents.loop import Clock, Loop

_SLOTS = 16
Voucher = Callable[[], float]  # returns the time (of the loop's clock) at which nothing was owed: now, if nothing is


class Heart:
    """Beats in the agent's loop, every `every` seconds and whenever `beat` is called; with the loop's lock held."""

    def __init__(self, loop: Loop, cells: memoryview[int], every: float) -> None:
        self._loop = loop
        self._cells = cells
        self._every = every
        self._offset = os.getpid() % _SLOTS / _SLOTS * every
        self._vouchers: list[Voucher] = []

    def vouch(self, voucher: Voucher) -> None:
        """Ask this one too, from now on."""
        self._vouchers.append(voucher)

    def beat(self) -> None:
        """Note that the loop has made progress."""
        self._cells[scoreboard.BEAT] = int(self._loop.now() * 1e9)

    def start(self) -> None:
        """Beat now and then."""
        if self._vouchers:
            self._cells[scoreboard.PROGRESS] = int(min(voucher() for voucher in self._vouchers) * 1e9)
        self.beat()
        periods = (self._loop.now() - self._offset) // self._every + 1
        self._loop.call_at(periods * self._every + self._offset, self.start)


class Debt:
    """Since when a thread or process beside the loop has owed a step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._clear = clock()

    def clear(self) -> None:
        """Note that it has made a step, or begins to owe one only now."""
        self._clear = self._clock()

    def since(self, *, owes: bool) -> float:
        """Return the time at which it last owed nothing; call it at every beat."""
        if not owes:
            self.clear()
        return self._clear
