"""Defines the interfaces between an endpoint and the agent that serves it.

An endpoint has up to two sides. A Source takes messages out of the container, a Sink hands messages over into it.
Both work by callbacks of the agent's loop and never block in it. What may pass by itself (a directory that is not
there yet, a full queue) raises Blocked inside a side; the side reports it with `host.blocked` and tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from nsbridge.agents.heartbeat import Voucher
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.loop import Loop, Timer
from nsbridge.agents.wire import Message, Run

# Seconds after its start that an endpoint does what the first message need not wait for. In the order of asking: the
# sink is started first, so that it has forked all its processes before there is a thread.
AFTERWARDS = 0.005
_FIRST_DELAY = 0.05  # seconds
_MAX_DELAY = 1.0


class Blocked(Exception):
    """Raised when a side cannot continue now, for a reason that may pass.

    `str()` names what and where, for `status`.
    """


class Denied(Blocked):
    """The kernel refuses a queue to this user."""


class AgentApi(Protocol):
    """The agent, as its endpoint sees it."""

    loop: Loop
    name: str
    container: str  # as the configuration names it
    syncs: bool  # True if `flush` waits for the disk (`fsync`), so that it pays to send several messages together

    def has_room(self) -> bool:
        """True if the source may take one more message (the window is open and no stop was requested)."""
        ...

    def take(self, message: Message, note: bytes = b"") -> int:
        """Own the message that was taken; returns its seq. To be followed by `flush`. Raises Blocked (no room).

        With a note, only the note is kept beyond the agent's life: it finds the message in the container again.
        """
        ...

    def room(self) -> tuple[int, int]:
        """Return how many messages and bytes the source may take.

        It may take one more message while both are above 0.
        """
        ...

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """Return how many of these messages the source may take."""
        ...

    def take_run(self, bodies: Sequence[bytes], note: bytes) -> int:
        """Take several messages with one note, as `take` does one; return the seq of the last. Raises Blocked."""
        ...

    def retry_dead_letters(self) -> None:
        """Take dead letters again, if there are some and the window has room; `lend` is asked before each.

        The agent calls it by itself; a source also calls it when its `lend` starts to return True.
        """

    def landed(self, seq: int) -> None:
        """Note that the source itself has put the message into its journal. The caller must call `flush` afterwards."""

    def flush(self) -> None:
        """Send what can be sent."""

    def missed(self, files: int, size: int) -> None:
        """Show how many files, and at least how many bytes, the source could not read since its journal was made."""

    def handed(self, run: Run) -> None:
        """Note that the sink has handed these messages over."""

    def put_back(self, run: Run) -> None:
        """Take back messages that the sink accepted but could not hand over, and offer them again before all others."""

    def guarded(self) -> AbstractContextManager[object]:
        """Held by a thread of the endpoint while it calls any of this."""
        ...

    def sink_ready(self) -> None:
        """Note that the sink, which refused a message, takes messages again."""

    def blocked(self, side: str, reason: str) -> None:
        """Report that the `out` or `in` side waits for this reason. An empty reason means that it continues."""

    def notice(self, side: str, text: str) -> None:
        """Show a notice about the `out` or `in` side in status, while the side continues; empty: none."""

    def refused(self, count: int, total: int) -> None:
        """Show in status how many files at the source cannot be taken now, and how many ever could not."""

    def report_refused(self, text: str, *, moved: bool) -> None:
        """Log a file that was refused and counted, and report it as an event; `moved`: to the error directory."""

    def renew_socket(self) -> None:
        """Have the supervisor drop the socket that it holds for the source: the next agent gets a new one."""

    def files_waiting(self, count: int) -> None:
        """Show in status about how many files wait in the source's directory."""

    def dead(self, one: Run, where: str, why: str) -> bool:
        """Write the one message that can never be handed over as a dead letter, and count it as handed.

        False: not now. The agent shows the reason and calls `sink_ready` later. So the sink needs neither a reason
        nor a timer, unless it has accepted the message.
        """
        ...

    def senders(self, pids: tuple[int, ...]) -> None:
        """Note the processes that send for this agent, for `status`. The agent may not fork from now on."""

    def confine_sender(self) -> None:
        """Confine this process, a new sender: the kernel allows it nothing but to send."""

    def vouch(self, voucher: Voucher) -> None:
        """Ask `voucher` at every heartbeat since when what runs beside the loop for this side has hung (heartbeat.py).

        Every thread and every process that an endpoint starts needs a voucher, or no process notices when it hangs.
        """

    def log(self, level: str, text: str) -> None:
        """Put a line into the daemon's log."""


class Source(Protocol):
    """The `out` side."""

    @property
    def store(self) -> SourceJournal | NoteStore:
        """Return what the source keeps messages in: a store of whole messages, or of notes that find them again."""
        ...

    def start(self) -> None:
        """Begin to take messages."""

    def room_again(self) -> None:
        """Take what was left: the window was full and now has room."""

    def confirmed(self, seq: int) -> None:
        """Release all messages up to `seq`: they are in the other container."""

    def lend(self) -> bool:
        """Make ready for a message in the journal that is not of this source, the next; False: not now."""
        ...

    def stop_taking(self) -> bool:
        """Return True if nothing more comes into the journal, because there is no room. False: `flush` follows soon."""
        return True


class EventSource:
    """Common base of sources that take messages in callbacks of the loop only, so nothing comes by itself."""

    def confirmed(self, seq: int) -> None:
        """See Source: do nothing where there is nothing to release in the container."""

    def lend(self) -> bool:
        """See Source."""
        return True

    def stop_taking(self) -> bool:
        """See Source."""
        return True


def log_recovered(host: AgentApi, journal: SourceJournal, how: str = "had just left the queue") -> None:
    """Log how many messages the journal has that only the kernel had put there when the agent was killed."""
    if count := journal.recovered:
        host.log("info", f"recovered {count} message{'' if count == 1 else 's'} that {how} when the agent was killed")


class Sink(Protocol):
    """The `in` side."""

    def descriptor(self) -> int:
        """Return a descriptor for syncing the file system that holds what was handed over; -1 if there is none."""
        return -1

    def start(self) -> None:
        """Make ready what messages will be handed to."""

    def put(self, run: Run) -> int:
        """Accept the next messages, and say how many; `host.handed` follows for them, now or later.

        Less than all: not more now, `host.sink_ready` follows.
        """
        ...

    def may_adopt(self) -> bool:
        """True if the journal may adopt another source now, whose messages have other numbers."""
        return True


def put_in_parts(run: Run, put_some: Callable[[Run], int]) -> int:
    """Run `put` for a sink whose `put_some` accepts some of the first messages, or none if it cannot take any now."""
    count = 0
    while count < len(run.bodies):
        some = put_some(run.after(count))
        if not some:
            break
        count += some
    return count


class Waiter:
    """Shows why one side waits and calls `again` with exponential backoff, until `done`.

    A wait that begins soon after `done` has half of the former delay. So a fault that returns at once is not retried
    fast for long, and a reader that makes room bit by bit is soon followed closely.
    """

    def __init__(self, host: AgentApi, side: str, again: Callable[[], None]) -> None:
        self._host = host
        self._side = side
        self._again = again
        self._timer: Timer | None = None
        self._delay = _FIRST_DELAY
        self._done_at = float("-inf")
        self._is_shown = False

    @property
    def waits(self) -> bool:
        """True if `again` is due later."""
        return self._timer is not None

    def wait(self, reason: object = None) -> None:
        """Show the reason and call `again` later. Without a reason the host has shown it already (`AgentApi.dead`)."""
        if reason is not None:
            self._host.blocked(self._side, str(reason))
        if not self._is_shown and self._host.loop.now() - self._done_at > self._delay:
            self._delay = _FIRST_DELAY
        self._is_shown = True
        if self._timer is None:
            self._timer = self._host.loop.call_later(self._delay, self._due)
            self._delay = min(self._delay * 2, _MAX_DELAY)

    def done(self) -> None:
        """Show that the side continues."""
        if self._is_shown:
            self._is_shown = False
            self._delay = max(_FIRST_DELAY, self._delay / 4)  # it was doubled for a further wait
            self._done_at = self._host.loop.now()
            self._host.blocked(self._side, "")

    def _due(self) -> None:
        self._timer = None
        self._again()
