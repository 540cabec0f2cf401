"""Kills processes that an agent leaves behind when it dies.

No agent forks once it serves: the filter of system calls refuses that (agents/confinement/callrules.py). If the kernel
has no such filter, or in the milliseconds in which an agent forks its senders, a compromised agent can leave a process
that outlives it and holds the lock of its journal. Every successor would wait for that lock.

Some facts about orphans, and what they mean here:
* The supervisor is a child subreaper: when a process below it dies, the kernel gives it that process's children. It
  does so before it sends SIGCHLD for the death, so SIGCHLD is when to look.
* agents/fork.py notes each child that the supervisor has forked itself. The kernel gave it every other child.
* An agent has an empty bounding set and no_new_privs, and neither a process nor its children can undo these. So an
  orphan that has both was an agent's, and is killed. Others are a container engine's helpers, and are only reaped.
* An agent's senders are killed with it, by their death signal. They are orphans that have SIGKILL pending already.
* There may be thousands, of an agent that forked while it could. MOST are killed at a time, so that the supervisor has
  descriptors and time for all other work; the next ones follow when half of these are gone.
* If the supervisor is killed, such a process goes to init. The next supervisor cannot identify it.

Sources: PR_SET_CHILD_SUBREAPER of prctl(2), proc(5), capabilities(7).
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from nsbridge.agents import fork, linux
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.supervisor.host import procfs
from nsbridge.supervisor.log.log import Log

_AGENT_S = {b"NoNewPrivs:\t1", b"CapBnd:\t" + b"0" * 16}  # lines of /proc/PID/status

MOST = 64  # orphans that are being killed at a time
_SIGKILL_BIT = 1 << signal.SIGKILL - 1  # in the mask of pending signals


class Strays:
    """The orphans that the kernel has given to this process."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._held: dict[int, int] = {}  # pidfd by pid
        self._killed: set[int] = set()  # of these

    def watch(self) -> None:
        """Become their subreaper, and look for them whenever a child ends."""
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self._loop.on_signal(signal.SIGCHLD, self.look)

    def look(self) -> None:
        """Kill the orphans that an agent has left, and wait for the end of each without blocking."""
        if len(self._killed) > MOST // 2:
            return  # their ends are the time to look again
        for pid in _children():
            if len(self._killed) >= MOST:
                return
            if fork.is_own_child(pid) or pid in self._held or _is_reaped(pid):
                continue
            if not self._hold(pid):
                return

    def close(self) -> None:
        """Kill the remaining orphans; call it when no agent lives any more."""
        self.look()
        for pid in _children():
            if not fork.is_own_child(pid) and pid not in self._held and _was_an_agent_s(pid):
                os.kill(pid, signal.SIGKILL)  # it is our child, see `_hold`
        for pidfd in self._held.values():
            self._loop.unwatch(pidfd)
            os.close(pidfd)
        self._held.clear()
        self._killed.clear()

    def _hold(self, pid: int) -> bool:
        """Watch an orphan, and kill it if it was an agent's. False: no descriptor is free."""
        try:
            pidfd = os.pidfd_open(pid)  # it is our child, so its number is not reused before we reap it
        except OSError as error:  # EMFILE: the next look finds it again
            self._log.error("", f"an orphan process cannot be watched: {error.strerror}")
            return False
        self._held[pid] = pidfd
        self._loop.watch(pidfd, READABLE, partial(self._reap, pid))
        if _was_an_agent_s(pid):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._killed.add(pid)
            self._log.warning("", f"killed pid {pid}: an agent that has died had forked it")
        return True

    def _reap(self, pid: int, _events: int) -> None:
        pidfd = self._held.pop(pid)
        self._killed.discard(pid)
        self._loop.unwatch(pidfd)
        os.waitpid(pid, 0)
        os.close(pidfd)
        self.look()  # we have its children now


def _is_reaped(pid: int) -> bool:
    """Reap the orphan if it has ended. True if it had: senders end together with a killed agent. waitpid(2)."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _was_an_agent_s(pid: int) -> bool:
    """True if the process has an agent's permanent marks and is not dying already."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().split(b"\n")
    except OSError:
        return False
    pending = next(int(line[8:], 16) for line in lines if line.startswith(b"ShdPnd:\t"))
    is_dying = pending & _SIGKILL_BIT or any(line.startswith(b"State:\tZ") for line in lines)
    return _AGENT_S.issubset(lines) and not is_dying


def _children() -> list[int]:
    """Return the pids of this process's children."""
    me = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{me}/task/{me}/children").read_bytes().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return _scan()


def _scan() -> list[int]:
    """Return the same by reading each process of the host."""
    me = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == me]  # noqa: PTH208


def _parent(pid: int) -> int:
    """Return the parent's pid; 0 if the process is gone."""
    try:
        return procfs.read_stat(pid).parent
    except OSError:
        return 0
