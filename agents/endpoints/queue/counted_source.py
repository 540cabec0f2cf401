"""The source of a queue whose messages the kernel counts: it receives them without looking at them first.

The kernel keeps the lengths of the last messages (agents/counter.py). So a message is received straight into the
journal, whatever its length, and after a kill the count says how many have landed and how long they are. Nothing here
may look with MSG_COPY: the kernel would count that too.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence

from nsbridge.agents import linux, queuestatus
from nsbridge.agents.counter import LENGTHS, Counts
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.look import TooLongError, too_long
from nsbridge.agents.endpoints.queue.queue import QueueOwner, shown
from nsbridge.agents.endpoints.queue.source import INTERRUPT, QueueSource
from nsbridge.agents.journal.counted import Landing, behind
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.linux import PreparedReceive

_LONG = 0.00005  # seconds; a wait that took no longer found a message there
_FIRST_SIZE = 8192  # bytes: the kernel's default for msgmax; a longer message makes it grow


class CountedQueueSource(QueueSource):
    """Takes messages of one type selection, each straight into the journal."""

    def __init__(
        self,
        host: AgentApi,
        config: QueueEndpoint,
        key: int,
        journal: SourceJournal,
        counter: Counts,
        owner: QueueOwner | None = None,
    ) -> None:
        super().__init__(host, config, key, journal, owner)
        self._landing = Landing(journal, counter)
        self._longest = config.max_message
        self._size = min(_FIRST_SIZE, config.max_message)
        self._at_once = LENGTHS
        self._waits_since = 0.0  # about when the last wait began
        self._prepared_for = (-1, 0)  # queue and size
        self._receive_next: PreparedReceive

    def _message_waits(self) -> bool:
        """Wake the thread if the queue has any message, so that the next look sees whether it has come out."""
        try:
            if not queuestatus.queue_status(self._queue).messages:
                return False
        except OSError:
            return False
        signal.pthread_kill(self._thread, INTERRUPT)
        return True

    def _landing_place(self) -> int:
        """See QueueSource."""
        try:
            return self._landing.begin(self._size)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def _received(self, length: int) -> int | None:
        """See QueueSource: a message that fits has landed, whatever its length.

        After a long wait it may be the only one: it is sent at once, and the next wait will receive the next one. After
        a short wait many follow each other: it is sent with those that a look finds. So it is where a flush is slow.
        """
        if length < 0:
            if not self._grows(length):
                self._landed(length)
            return 0
        self._host.landed(self._landing.landed((length,)))
        now = self._host.loop.now()
        has_waited, self._waits_since = now - self._waits_since > _LONG, now
        if self._host.syncs or not has_waited:
            return 1
        self._host.flush()
        return None

    def _take_some(self, queue: int, most: int, size: int, *, is_awaited: bool) -> Sequence[int] | None:  # noqa: ARG002
        """See QueueSource: receive into places that follow each other."""
        receive, at, got = self._prepared(queue), self._landing_place(), list[int]()
        last, most, length = self._landing.last, min(most, self._landing.most), 0
        call, place = receive.call, receive.place
        try:
            while len(got) < most and size > 0 and at <= last:
                place.value = at
                length = call()
                if length < 0:
                    break
                got.append(length)
                size -= length
                at = behind(at, length)
        finally:
            if got:
                self._host.landed(self._landing.landed(got))
        if length < 0 and not got:
            number = linux.call_failed()
            if not self._grows(number):
                self._landed(number)
                return None
        return got

    def _prepared(self, queue: int) -> PreparedReceive:
        """Return the call that receives from the queue, made anew if anything about it has changed."""
        wanted = (queue, self._size)
        if wanted != self._prepared_for:
            self._prepared_for = wanted
            self._receive_next = linux.PreparedReceive(queue, self._size, self._type)
        return self._receive_next

    def _grows(self, length: int) -> bool:
        """Return True if the next message did not fit, and a larger place is asked for. Raises TooLongError."""
        if length != -errno.E2BIG:
            return False
        if self._size >= self._longest:
            raise TooLongError(f"{shown(self._key)}: {too_long(self._longest)}")
        self._size = min(4 * self._size, self._longest)
        return True
