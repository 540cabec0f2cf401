"""SIGKILL at a system call: strace holds a process there, so that nothing is left to chance.

What strace 6.1 does, as tried (a process that renames files one after the other):
* `signal=KILL` is delivered on entering, and the kernel then skips the call: it has had no effect.
* `delay_exit` stops the process with the call done and its result not yet seen. A SIGKILL that comes meanwhile is
  obeyed as soon as strace detaches: not one more instruction of the process is run.
* It says "(DELAYED)" when the delay begins, and counts the calls from the moment when it says "attached", for each
  thread and each process by itself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from enum import Enum
from pathlib import Path

from tests.system.room import LIMIT, tool, wait_until


class Moment(Enum):
    """When the process is killed."""

    BEFORE = "signal=KILL"
    AFTER = "delay_exit=1000000000"  # microseconds

    def __str__(self) -> str:
        return self.name.lower()


_HIT = {
    Moment.BEFORE: re.compile(rb"^(\d+) +\+\+\+ killed by SIGKILL \+\+\+$", re.MULTILINE),
    Moment.AFTER: re.compile(rb"^(\d+) .*\(DELAYED\)$", re.MULTILINE),
}


class Tampering:
    """Kills the process, or one that it forks from now on, at the `number`-th `call` that it makes."""

    def __init__(self, pid: int, call: str, number: int, moment: Moment, directory: Path) -> None:
        self._moment = moment
        self._what = f"{call} number {number} of process {pid}"
        self._output = directory / "strace.out"
        self._output.unlink(missing_ok=True)
        inject = f"inject={call}:{moment.value}:when={number}"
        command = [tool("strace"), "-f", "-p", str(pid), "-o", str(self._output), "-e", f"trace={call}", "-e", inject]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._strace.stderr is not None
        said = self._strace.stderr.readline()
        assert b" attached" in said, said

    def wait_held(self) -> None:
        """Wait until it has made that call, and stands still (AFTER)."""
        wait_until(self._hit, f"{self._what} is made", LIMIT)

    def wait_killed(self) -> None:
        """Wait until that has happened, and nothing is held any more."""
        try:
            self.wait_held()
            if self._moment is Moment.AFTER:
                os.kill(self._hit(), signal.SIGKILL)  # the number of a thread stands for its process
        finally:
            self._strace.kill()  # whatever it still holds continues, to its end if it was killed
            self._strace.communicate()

    def _hit(self) -> int:
        found = _HIT[self._moment].search(self._output.read_bytes()) if self._output.exists() else None
        return int(found[1]) if found else 0
