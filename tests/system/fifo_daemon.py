"""nsbridged with one more kind of endpoint, `fifo`, which is defined here and nowhere else.

    python -m tests.system.fifo_daemon VARIANT -c FILE

all        the kind as it should be
no-call    without its system call, mknodat
no-right   without its Landlock right to make a FIFO

A message is a line of at most PIPE_BUF bytes. What a killed agent had read and not yet taken is lost: this kind serves
tests only.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from nsbridge.agents.confinement import landlock
from nsbridge.agents.confinement.callrules import TREE, Condition, KindCalls, Must, Rule
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.endpoints.base import AgentApi, Blocked, Source, Waiter
from nsbridge.agents.endpoints.directory import DirectorySink, WatchedDirectory
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.kind import ServedPaths
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message, Run
from nsbridge.config import values
from nsbridge.config.kind import PathEndpoint, reads
from nsbridge.supervisor.cli import nsbridged as daemon

LINES = 50  # the private cell of its journals: lines that were read, or written
_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # O_RDWR: it waits for nobody at the other end


@dataclass(frozen=True, slots=True)
class FifoEndpoint(PathEndpoint):
    """Lines through FIFOs."""

    prefix: str = field(default="", metadata=reads(values.text))  # of each line that is written

    name: ClassVar[str] = "fifo"


def open_fifo(tree: Tree, directory: int, path: bytes, mode: int) -> int:
    """Open the FIFO, made if it is missing. Raises Blocked."""
    name = os.path.basename(path)
    try:
        try:
            fd = os.open(name, _FLAGS, dir_fd=directory)
        except FileNotFoundError:
            os.mkfifo(name, mode, dir_fd=directory)
            fd = os.open(name, _FLAGS, dir_fd=directory)
    except OSError as error:
        raise blocked_by(error, shown(path)) from None
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise Blocked(f"{shown(path)} is no FIFO")
    return fd


class FifoSource(Source):
    """Takes each line."""

    def __init__(self, agent: AgentApi, tree: Tree, config: FifoEndpoint, journal: SourceJournal) -> None:
        assert config.out is not None
        self._agent = agent
        self._tree = tree
        self._config = config
        self._journal = journal
        self._path = os.fsencode(config.out)
        self._directory = WatchedDirectory(agent, tree, "out", os.path.dirname(self._path), lambda _events: None)
        self._waiter = Waiter(agent, "out", self.start)
        self._fd = -1
        self._rest = b""

    @property
    def store(self) -> SourceJournal:
        return self._journal

    def start(self) -> None:
        try:
            if self._directory.fd < 0:
                self._directory.open()
            self._fd = open_fifo(self._tree, self._directory.fd, self._path, self._config.mode)
        except Blocked as reason:
            self._waiter.wait(reason)
            return
        self._waiter.done()
        self._agent.loop.watch(self._fd, select.POLLIN, self._ready)

    def room_again(self) -> None:
        """Do nothing: the loop reports a FIFO that still has bytes."""

    def confirmed(self, seq: int) -> None:
        """Do nothing: the FIFO has forgotten the line."""

    def lend(self) -> bool:
        return True

    def _ready(self, _events: int) -> None:
        if self._agent.has_room():
            *lines, self._rest = (self._rest + os.read(self._fd, select.PIPE_BUF)).split(b"\n")
            for line in lines:
                self._agent.take(Message(0, line))
                self._journal.cells[LINES] += 1
            self._agent.flush()


class FifoSink(DirectorySink):
    """Writes each message as a line."""

    def __init__(self, agent: AgentApi, tree: Tree, config: FifoEndpoint, journal: SinkJournal) -> None:
        assert config.in_ is not None
        self._config = config
        self._cells = journal.cells
        self._path = os.fsencode(config.in_)
        self._fd = -1
        super().__init__(agent, tree, os.path.dirname(self._path))

    def _open(self) -> None:
        self._directory.open()
        self._fd = open_fifo(self._tree, self._directory.fd, self._path, self._config.mode)

    def _write(self, one: Run) -> None:
        try:
            os.write(self._fd, os.fsencode(self._config.prefix) + one.bodies[0] + b"\n")
        except BlockingIOError:
            raise Blocked(f"{shown(self._path)} is full: {os.strerror(errno.EAGAIN)}") from None
        self._cells[LINES] += 1

    def _changed(self, _events: int) -> None:
        """Ignore what happens to the directory."""


class ServedFifo(ServedPaths[FifoEndpoint]):
    """The registry's entry."""

    table = FifoEndpoint
    calls = KindCalls(
        always=(*TREE, "mknodat"),
        rules={
            "mknodat": Rule(
                "mknodat",
                "make the FIFO",
                (Condition(2, Must.HAVE_ALL_OF, (stat.S_IFIFO,), "S_IFIFO"),),
            )
        },
        numbers={"mknodat": (259, 33)},
        rights=landlock.MAKE_FIFO,
    )
    source_cells = sink_cells = (LINES,)

    def source(self, agent: AgentApi, journal: SourceJournal) -> FifoSource:
        return FifoSource(agent, self.tree, self.endpoint, journal)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> FifoSink:
        return FifoSink(agent, self.tree, self.endpoint, journal)


VARIANTS: Mapping[str, KindCalls] = {
    "all": ServedFifo.calls,
    "no-call": replace(ServedFifo.calls, always=TREE),
    "no-right": replace(ServedFifo.calls, rights=0),
}


def main() -> int:
    """Register the kind, then be the daemon."""
    ServedFifo.calls = VARIANTS[sys.argv.pop(1)]
    kinds.register(ServedFifo)
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
