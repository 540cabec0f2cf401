"""A living agent as its supervisor holds it.

The end of a process has two signs. When its control channel closes, the process has left user space for good, and all
that it held is free for a successor. Its pidfd may become readable later: some 16 ms for each inotify instance it had,
because the kernel waits for a grace period before it releases the watches (measured, docs/restart.md).
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from nsbridge.agents import control
from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.fork import Child
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.supervisor.host import spawn, usage
from nsbridge.supervisor.host.usage import Usage
from nsbridge.supervisor.lifecycle.evidence import CounterLeases
from nsbridge.supervisor.lifecycle.table import Stage

_AT_ONCE = 16  # datagrams; then the rest of the supervisor has its turn
_PAUSE = 0.02  # seconds after so many: an agent that floods its channel costs the supervisor a few per cent of a core
_LAST = 1000  # datagrams that are read of an agent that has ended; one that it has forked may still write

OnReport = Callable[[dict[str, object]], None]


class Channel:
    """The supervisor's end of an agent's control channel. It limits the rate of reports: an agent may be compromised.

    Descriptors that it passes never arrive: the kernel drops them, because the supervisor asks for no ancillary data.
    """

    def __init__(self, loop: Loop, end: socket.socket, on_report: OnReport) -> None:
        self.hung_up: Callable[[], None] = _nothing  # called when the agent's end is closed, before `close`
        self._loop = loop
        self._end = end
        self._on_report = on_report
        self._watch()

    def send(self, order: str, **fields: object) -> None:
        """Give an order; nothing happens if the agent does not read."""
        control.send(self._end, order=order, **fields)

    def close(self) -> None:
        """OnReport what is left of an agent that has ended, and give the socket back."""
        self._loop.unwatch(self._end.fileno())
        self.hung_up = _nothing
        self._read(_LAST)
        self._end.close()

    def _watch(self) -> None:
        if self._end.fileno() >= 0:
            self._loop.watch(self._end.fileno(), READABLE, self._readable)

    def _readable(self, _events: int) -> None:
        is_empty = self._read(_AT_ONCE)
        if not is_empty:
            self._loop.unwatch(self._end.fileno())
            self._loop.call_later(_PAUSE, self._watch)

    def _read(self, count: int) -> bool:
        """OnReport up to `count` datagrams; whether there are no more."""
        for _ in range(count):
            try:
                datagram = self._end.recv(control.MAX_SIZE)
            except BlockingIOError:
                return True
            except OSError:
                datagram = b""
            if not datagram:
                self._loop.unwatch(self._end.fileno())
                self.hung_up()
                return True
            self._on_report(control.parse(datagram))
        return False


def _nothing() -> None:
    pass


class Keeper(Protocol):
    """The owner of the process, which gets its reports and its end."""

    def report_received(self, fields: dict[str, object]) -> None:
        """Take one report of the process (agents/control.py)."""

    def dying(self, code: int) -> None:
        """Note that the process has left user space for good, with this exit code.

        `report_received` got its last report before. `ended` follows, unless the keeper calls `detach`.
        """

    def ended(self, code: int) -> None:
        """Note that the process is gone. `code` is its exit code, negative for a signal's number."""


@dataclass(slots=True)
class AgentProcess:
    """One process; times are of the loop's clock."""

    child: Child
    channel: Channel
    started: float
    ready_since: float | None = None
    ready_at: float | None = None  # the same instant in seconds since 1970
    last_words: str = ""
    confinement: dict[str, object] | None = None  # known when it is ready: none of it can be undone
    places: object = None  # its own report of its ends (agents/places.py)
    wedged: str = ""  # why it was given up and killed; empty if it was not
    given_up_at: float = 0.0
    stuck: bool = False  # it was killed, and the kernel does not let it die
    usage: Usage | None = None  # its own and its senders', when it was last measured
    measured_at: float = float("-inf")
    stage: Stage = Stage.ENTERING
    report: dict[str, object] = field(default_factory=dict)  # all fields of its message that it is ready
    drained: bool = False
    is_reaped: bool = False
    keeper: Keeper | None = None
    is_counted: bool = False  # the kernel counts its messages

    @classmethod
    def begin(
        cls, loop: Loop, assign: Callable[[int], Assignment], keeper: Keeper, evidence: CounterLeases
    ) -> AgentProcess:
        """Fork an agent; `assign` makes its assignment from the number of its control channel. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            assignment = assign(theirs.fileno())
            child = spawn.agent(assignment, evidence.register)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            channel = Channel(loop, ours, keeper.report_received)
            process = cls(child, channel, loop.now(), keeper=keeper, is_counted=assignment.counter is not None)
            channel.hung_up = process._hangs_up
            loop.watch(child.pidfd, READABLE, lambda _events: process._reap(loop, evidence))
        except OSError:
            child.kill()
            loop.unwatch(ours.fileno())
            ours.close()
            evidence.forget(child.pid)
            child.reap()  # it has entered nothing that could keep it
            raise
        return process

    def detach(self) -> None:
        """Detach the keeper: the process is reaped, and the keeper gets no call."""
        self.channel.close()
        self.keeper = None

    def _hangs_up(self) -> None:
        self.child.kill()  # if it still runs it is compromised: it closed its channel, so it could report nothing
        code = usage.exit_code(self.child.pid)
        if code is not None and self.keeper is not None:
            self.channel.close()
            self.keeper.dying(code)

    def _reap(self, loop: Loop, evidence: CounterLeases) -> None:
        loop.unwatch(self.child.pidfd)
        evidence.forget(self.child.pid)
        keeper = self.keeper
        if keeper is not None:
            self.channel.close()  # reads its last reports first
        code = self.child.reap()
        self.is_reaped = True
        if keeper is not None:
            keeper.ended(code)

    def epitaph(self, code: int) -> str:
        """Describe for the log how it ended (`code` as of Child.reap), with its last words if there are any."""
        how = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"
        return f"{how}: {self.last_words}" if self.last_words else how


def signal_name(number: int) -> str:
    """Return a signal's name, as kill -l has it, or its number: most real-time signals have no name.

    An agent may send itself any signal.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
