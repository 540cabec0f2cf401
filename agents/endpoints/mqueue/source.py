"""The `out` side of the `mqueue` endpoint: each message goes straight into the journal, where the kernel puts it.

The kernel counts the messages and keeps their lengths (agents/counter.py). So after a kill the count shows how many
have landed. Without the counter the source receives one message at a time. After a kill its priority shows that it has
landed, but nothing shows its length, unless its record was made. Then the message is lost, and the log reports it.
"""

from __future__ import annotations

import errno
import os

from nsbridge.agents.counter import LENGTHS, Counts
from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource, Waiter, log_recovered
from nsbridge.agents.endpoints.mqueue.calls import PreparedReceive
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint
from nsbridge.agents.endpoints.mqueue.mqueue import MqueueOwner, OpenQueue
from nsbridge.agents.endpoints.receiving import RowReceiver, take_while_room
from nsbridge.agents.endpoints.removals import Removals
from nsbridge.agents.journal.counted import NO_LIFE, Landing
from nsbridge.agents.journal.records import BLANK
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.loop import READABLE


class _NoCounts:
    """Replaces the kernel's count where there is none. Its `life` equals that of no later count."""

    life = NO_LIFE
    skips = sent = received = 0

    @staticmethod
    def lengths(count: int) -> list[int]:
        """Return nothing."""
        return [0] * count


class MqueueSource(EventSource):
    """Takes messages, those of the highest priority first."""

    def __init__(
        self,
        host: AgentApi,
        config: MqueueEndpoint,
        journal: SourceJournal,
        counter: Counts | None,
        owner: MqueueOwner,
        own_fds: int,
    ) -> None:
        self._host = host
        self._longest = config.longest
        self._journal = self.store = journal
        self._landing = Landing(journal, counter or _NoCounts(), BLANK)
        self._at_once = LENGTHS if counter is not None else 1
        self.queue = OpenQueue(host, config, "out", owner, own_fds, self._changed)
        self._receiver: RowReceiver
        self._removals = Removals(host, self.queue.what, "; what it still has is taken")
        self._waiter = Waiter(host, "out", self._again)
        self._is_watched = False
        self._is_last = False  # True if the queue was removed: what it has is taken, then it is closed

    def start(self) -> None:
        """Open the queue, and take what is there."""
        log_recovered(self._host, self._journal)
        self._again()

    def room_again(self) -> None:
        """Continue to take."""
        if self.queue.fd < 0:
            return
        if self._is_last:
            self._ready(0)  # it may be empty, and then the loop has nothing to report
        elif not self._is_watched:
            self._is_watched = True
            self._host.loop.watch(self.queue.fd, READABLE, self._ready)

    def _again(self) -> None:
        self._rest()
        self._is_last = False
        try:
            self.queue.open()
            size = self.queue.attributes.max_message
            if size > self._longest:
                raise Blocked(
                    f"{self.queue.what}: its messages may have {size} bytes (mq_msgsize), more than max_message = "
                    f"{self._longest} of this agent: raise max_message"
                )
        except Blocked as reason:
            self._wait(reason)
            return
        receive = PreparedReceive(self.queue.fd, size).receive
        self._receiver = RowReceiver(self._host, self._landing, receive, size)
        self._waiter.done()
        self.room_again()

    def _wait(self, reason: Blocked) -> None:
        self._rest()
        self.queue.close()
        self._waiter.wait(reason)

    def _rest(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._host.loop.unwatch(self.queue.fd)

    def _changed(self) -> None:
        if self._is_last:
            return
        if self.queue.is_removed:
            self._is_last = True
            self._removals.note()
            self._ready(0)
        else:
            self._again()

    def _ready(self, _events: int) -> None:
        try:
            is_empty = self._take_all()
        except Blocked as reason:
            self._wait(reason)
            return
        finally:
            self._host.flush()  # also without a message: an agent that was asked to stop reports that it is drained
        if is_empty and self._is_last:
            self._again()

    def _take_all(self) -> bool:
        """Take while there are messages and room. Return True if no message is left. Raises Blocked."""
        if take_while_room(self._host, self._at_once, self._take_some):
            return True
        self._rest()  # until `room_again`: the loop would report the same message again and again
        return False

    def _take_some(self, most: int, size: int) -> list[int]:
        """Receive up to `most` messages, while there are `size` bytes of room; return their lengths. Raises Blocked."""
        got, last = self._receiver.take(most, size), self._receiver.last
        self.queue.moved -= len(got)
        if not got and last not in (-errno.EAGAIN, -errno.EINTR):
            raise Blocked(f"{self.queue.what}: {os.strerror(-last)}")
        return got
