"""The sink's half of a direction: what comes next in order, and what is acknowledged. session.py has the rules."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Protocol

from nsbridge.agents.wire import Data, Names, Run, WireError
from nsbridge.config.schema import Window


class SinkStore(Protocol):
    """Position of a sink: everything of `epoch` up to `handed` is handed over."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def handed(self) -> int: ...  # noqa: D102
    def adopt(self, epoch: int, handed: int) -> None: ...  # noqa: D102
    def hand(self, seq: int) -> None: ...  # noqa: D102


class Incoming:
    """The sink's half of a direction."""

    def __init__(
        self,
        store: SinkStore,
        window: Window,
        may_adopt: Callable[[], bool] = lambda: True,
        keeps_names: bool = False,
    ) -> None:
        self.store = store
        self._keeps_names = keeps_names
        self._names: Names | None = None  # of what comes next
        self._may_adopt = may_adopt  # False while a sink has accepted messages whose numbers must keep their meaning
        self.waiting: deque[Run] = deque()
        self.repeats_dropped = 0
        self.ack_due = False
        self._limits = window
        self._waiting_messages = 0
        self._waiting_bytes = 0
        self._unacked = self._unacked_bytes = 0  # handed over and not confirmed to the peer
        self._unhanded = 0  # messages that came whole and were not handed over, whether they wait or a sink has them
        self._last = store.handed  # the last that came whole and in order; see _received
        self._partial = bytearray()
        self.refused = False  # messages had to be dropped, so that the peer must be asked to repeat

    def greeted(self, epoch: int, confirmed: int) -> None:
        """Learn what the source has: it will never again send what it calls confirmed. Raises OSError: not now."""
        self._partial.clear()
        self._names = None
        self.refused = False
        if epoch and (epoch != self.store.epoch or confirmed > self._received):
            if not self._may_adopt():
                raise OSError(errno.EBUSY, "the source has a new journal while messages of the old one are in flight")
            self.store.adopt(epoch, confirmed)
            self._last = confirmed

    @property
    def _received(self) -> int:
        """Return the seq of the last message that came, or that is handed over.

        A sink may find out late what its predecessor had handed over, and note it in its journal alone. A greeting then
        reports it, so the source never sends it.
        """
        return max(self._last, self.store.handed)

    def accept_names(self, names: Names) -> None:
        """Take in the names of what comes next. WireError if this sink keeps none."""
        if not self._keeps_names:
            raise WireError("names for a sink that keeps none")
        self._names = names

    def accept(self, data: Data) -> None:
        """Take in one piece; what completes a message that is next in order goes to `waiting`."""
        if data.epoch != self.store.epoch or data.seq > self._received + 1:
            self._names = None
            return  # from another life; it is repeated after the greeting
        if data.seq <= self._received:
            self._names = None
            self.repeats_dropped += data.offset == 0
            self.ack_due = True
            return
        if data.offset == 0:
            self._partial.clear()
        if data.offset != len(self._partial):
            self._names = None
            return
        body = data.piece
        if data.offset + len(body) < data.total:
            self._partial += body
            return
        if self._partial:
            body = bytes(self._partial) + body
        self.accept_run(Run(data.epoch, data.seq, data.type, (body,)))

    def accept_run(self, run: Run) -> None:
        """Take in whole messages; those that are next in order go to `waiting`."""
        names, self._names = self._names, None
        if run.first != self._received + 1 or run.epoch != self.store.epoch:
            if run.epoch != self.store.epoch or run.first > self._received + 1:
                return  # from another life; they are repeated after the greeting
            repeats = min(self._received + 1 - run.first, len(run.bodies))
            self.repeats_dropped += repeats
            self.ack_due = True
            run = run.after(repeats)
            if not run.bodies:
                return
        if self._partial:
            self._partial.clear()
        if names is not None:
            run = _named(run, names)
        count = len(run.bodies)
        if (self._waiting_messages or count > 1) and not self._has_room_for(run):
            self.refused = True
            return
        self._last = run.last
        self._unhanded += count
        self._waiting_messages += count
        self._waiting_bytes += run.size
        self.waiting.append(run)

    def accepted(self, count: int) -> None:
        """Note that a sink has the first `count` messages of the first run that waits."""
        if not count:
            return
        run = self.waiting.popleft()
        self._waiting_messages -= count
        self._waiting_bytes -= run.size
        if count < len(run.bodies):
            rest = run.after(count)
            self.waiting.appendleft(rest)
            self._waiting_bytes += rest.size

    def idle(self) -> bool:
        """True if everything that came has been handed over."""
        return not self._unhanded

    def in_flight(self) -> bool:
        """True if the sink has accepted messages and not yet handed them over."""
        return self._unhanded > self._waiting_messages

    def is_pressing(self) -> bool:
        """True if so much was handed over and not confirmed that the peer's window may be full soon."""
        return 4 * self._unacked >= self._limits.messages or 4 * self._unacked_bytes >= self._limits.bytes

    def acknowledged(self) -> None:
        """Note that the peer has been sent the acknowledgement of all that was handed over."""
        self.ack_due, self._unacked, self._unacked_bytes = False, 0, 0

    def wants_repeat(self) -> bool:
        """True if the peer must repeat messages, once, that were dropped and now have room."""
        if not self.refused or (self.waiting and self.waiting[0].epoch != self.store.epoch):
            return False
        self.refused = False
        return True

    def put_back(self, run: Run) -> None:
        """Put it back: it is the first that waits again."""
        self.waiting.appendleft(run)
        self._waiting_messages += len(run.bodies)
        self._waiting_bytes += run.size

    def handed(self, run: Run) -> None:
        """Note that these messages were handed over; they are confirmed if their source still lives in that epoch."""
        count = len(run.bodies)
        self._unhanded -= count
        self._unacked += count
        self._unacked_bytes += run.size
        if run.epoch == self.store.epoch:
            self.store.hand(run.last)
            self.ack_due = True

    def _has_room_for(self, run: Run) -> bool:
        """True if the window is open. WireError if it was filled in this epoch; an earlier may have filled it.

        A source takes a message while it has less than the window's bytes, so all but the last must fit.
        """
        count = self._waiting_messages + len(run.bodies) - 1
        bytes_ = self._waiting_bytes + run.size - len(run.bodies[-1])
        if not count or (count < self._limits.messages and bytes_ < self._limits.bytes):
            return True
        if not self.waiting or self.waiting[0].epoch == run.epoch:
            raise WireError(f"more than the window: {count} messages, {bytes_} bytes, and then one more")
        return False


def _named(run: Run, names: Names) -> Run:
    """Return the run with its names. WireError if they are of other messages."""
    if names.epoch != run.epoch or names.first > run.first or names.first + len(names.names) - 1 != run.last:
        raise WireError(f"names of {len(names.names)} messages from {names.first}, before a run up to {run.last}")
    return run.named(names.names[run.first - names.first :])
