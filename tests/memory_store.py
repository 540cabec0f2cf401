"""Stores in memory, for tests of the session: kept, they are journals that survive; dropped, journals that are lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import groupby

from nsbridge.agents.incoming import Incoming
from nsbridge.agents.wire import Message, Run


def new_epoch() -> int:
    """Return a number that orders after those of all earlier stores of this host: nanoseconds of wall time."""
    return time.time_ns()


class MemorySource:
    """A SourceStore: what was taken and is not yet confirmed. `name_of` gives the names, if messages have some."""

    def __init__(self, epoch: int, name_of: Callable[[int, int], bytes] | None = None) -> None:
        self.epoch = epoch
        self._name_of = name_of
        self.confirmed = 0
        self.pending_bytes = 0
        self._messages: deque[Message] = deque()

    @property
    def taken(self) -> int:
        """Return the last seq that was given out."""
        return self.confirmed + len(self._messages)

    def append(self, message: Message) -> int:
        """Keep the message; returns its seq."""
        self._messages.append(message)
        self.pending_bytes += len(message.body)
        return self.taken

    def get(self, seq: int) -> Message:
        """Return the message `seq`, which must be pending."""
        return self._messages[seq - self.confirmed - 1]

    def run(self, seq: int) -> Run:
        """Return the pending messages from `seq` on that have its type."""
        pending = (self.get(number) for number in range(seq, self.taken + 1))
        _, group = next(groupby(pending, lambda message: message.type))
        messages = list(group)
        seqs = range(seq, seq + len(messages))
        names = [self._name_of(self.epoch, number) for number in seqs] if self._name_of is not None else []
        return Run(self.epoch, seq, messages[0].type, [message.body for message in messages], names)

    def confirm(self, seq: int) -> None:
        """Forget all up to `seq`, which must be pending."""
        while self.confirmed < seq:
            self.pending_bytes -= len(self._messages.popleft().body)
            self.confirmed += 1


class MemorySink:
    """A SinkStore: how far was handed over."""

    def __init__(self) -> None:
        self.epoch = 0
        self.handed = 0

    def adopt(self, epoch: int, handed: int) -> None:
        """Start with another source: all up to `handed` is not for this sink."""
        self.epoch, self.handed = epoch, handed

    def hand(self, seq: int) -> None:
        """Note that everything up to `seq` has been handed over."""
        self.handed = seq


def next_waiting(incoming: Incoming) -> Run:
    """Remove and return the first message that waits, by itself."""
    one = incoming.waiting[0].one(0)
    incoming.accepted(1)
    return one


def hand_over_one(incoming: Incoming) -> Run:
    """Hand over, as a sink that hands over one message."""
    one = next_waiting(incoming)
    incoming.handed(one)
    return one
