"""From SIGKILL to work again while very many files wait in a spool; a part of `python -m benchmarks.restart`.

The queue across is full and its reader rests, so the backlog stays. After each kill the reader takes what there is. The
time ends with the first message that the killed agent had not taken: the new one has found it in the directory. So the
time includes all that comes before it, a window of messages that the new agent reads and sends again.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.journal.journalfile import CELLS, PAGE, VALUE
from nsbridge.agents.journal.sourcejournal import TAKEN
from nsbridge.agents.statefiles import journal_path
from tests.system.engines import Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

WAITING = 100_000  # files, at least
_WINDOW = 1024  # messages of a route
_KEY = 0x4D2
_SIZE = 64  # bytes of a message
_DIGITS = 9
_FLOWS = 0.05  # seconds that the reader takes messages before a kill
_STORM_PAUSE = 0.25  # seconds between two kills


class Outcome(NamedTuple):
    """Seconds after each kill, while the reader took messages and while it rested; messages in each life of a storm."""

    flowing: Sequence[float]
    resting: Sequence[float]
    storm: Sequence[int]


def measure(kills: int, waiting: int = WAITING) -> Outcome:
    """Kill the agent so often in each way, while at least `waiting` files are there."""
    more = kills * (_WINDOW + 4000)  # what is taken meanwhile
    with (
        tempfile.TemporaryDirectory(prefix="nsb-backlog-", dir="/run") as name,
        Backlog(Path(name), waiting + more) as it,
    ):
        resting = list(it.kills(kills, resting=True))
        flowing = list(it.kills(kills, resting=False))
        assert it.waiting >= waiting, f"only {it.waiting} files were left"
        return Outcome(flowing, resting, it.storm(kills))


def report(outcome: Outcome) -> str:
    """Return what docs/restart.md has about the storm, in Markdown."""
    lives = sorted(outcome.storm)
    return (
        f"Killed every {_STORM_PAUSE * 1000:.0f} ms, {len(lives)} times, with as many files waiting: "
        f"{lives[len(lives) // 2]:,} messages came through in a life (median), and {lives[0]:,} at least.\n"
    )


class Backlog:
    """A spool with `count` files, and a queue into which they go. A context manager."""

    def __init__(self, base: Path, count: int) -> None:
        self._stack = ExitStack()
        self._base = base
        self._count = count
        self._next = 1  # the number of the message that comes next
        web, legacy = (self._stack.enter_context(_Container(base)) for _ in range(2))
        out = web.rootfs / "srv" / "backlog-out"
        out.mkdir()
        for number in range(1, count + 1):
            name = f"{number:0{_DIGITS}}"
            (out / name).write_bytes(name.encode().ljust(_SIZE))
        route = (
            f'[route.backlog.agent.spool]\ncontainer = "{web.spec}"\nspool = {{ out = "/srv/backlog-out" }}\n'
            f'[route.backlog.agent.queue]\ncontainer = "{legacy.spec}"\n'
            f"queue = {{ in = {{ key = {_KEY}, type = 1 }}, create = true }}\n"
        )
        self._daemon = self._stack.enter_context(Nsbridged(base, route))
        self._daemon.wait_for("RUNNING")
        _join_ipc(legacy.pid)
        self._queue = sysv_ipc.MessageQueue(_KEY, max_message_size=8192)

    def __enter__(self) -> Backlog:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def kills(self, count: int, *, resting: bool) -> Iterator[float]:
        """Kill the spool's agent so often; yield the seconds until a message came that the killed one had not taken.

        Until the kill, the reader rests or takes all it can.
        """
        journal = journal_path(str(self._base / "state"), "backlog:spool", "out")
        for _ in range(count):
            if resting:
                self._stand_still()
            else:
                self._daemon.wait_for("RUNNING")
                self._receive_for(_FLOWS)
            pid = self._daemon.agents()["backlog:spool"]["pid"]
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)  # the kill has reached it, and its successor takes nothing so soon
            taken = _taken(journal)
            while self._next <= taken + 1:
                self._receive_if_any()
            yield time.monotonic() - began

    @property
    def waiting(self) -> int:
        """Return how many files have not come out of the queue."""
        return self._count - self._next + 1

    def storm(self, kills: int) -> list[int]:
        """Kill it every _STORM_PAUSE seconds; return how many messages came in each life."""
        lives: list[int] = []
        for _ in range(kills):
            self._daemon.wait_for("RUNNING")
            before = self._next
            os.kill(self._daemon.agents()["backlog:spool"]["pid"], signal.SIGKILL)
            self._receive_for(_STORM_PAUSE)
            lives.append(self._next - before)
        return lives

    def _stand_still(self) -> None:
        """Wait until the window is full."""
        wait_until(lambda: self._daemon.flow("backlog:spool")["pending"] == _WINDOW, "the window is full")
        self._daemon.wait_for("RUNNING")

    def _receive_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._receive_if_any()

    def _receive_if_any(self) -> None:
        try:
            body = self._queue.receive(block=False)[0]
        except sysv_ipc.BusyError:
            time.sleep(0.0002)  # polls: the queue has no descriptor
            return
        assert int(body) == self._next, f"message {int(body)} came, and {self._next} was due"
        self._next += 1


def _taken(journal: Path) -> int:
    """Return how many messages a source has taken."""
    with journal.open("rb") as file:
        return memoryview(file.read(PAGE))[CELLS].cast("Q")[TAKEN] & VALUE


class _Container(UnshareContainer):
    def __init__(self, base: Path) -> None:
        super().__init__(Program(), base)

    def __enter__(self) -> UnshareContainer:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.delete()


def _join_ipc(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY)
    linux.setns(fd, linux.CLONE_NEWIPC)
    os.close(fd)
