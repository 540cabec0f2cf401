"""The source of a queue whose messages the kernel counts: it receives them without looking at them first.

The kernel keeps the lengths of the last messages (agents/counter.py). So a message is received straight into the
journal, whatever its length, and after a kill the count says how many have landed and how long they are. Nothing here
may look with MSG_COPY: the kernel would count that too.
"""

from __future__ import annotations

import errno
import signal

from nsbridge.agents import linux
from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.look import TooLongError
from nsbridge.agents.endpoints.queue.queue import QueueOwner, shown
from nsbridge.agents.endpoints.queue.source import AT_ONCE, FLUSH_EVERY, INTERRUPT, QueueSource
from nsbridge.agents.journal.counted import Landing
from nsbridge.agents.journal.sourcejournal import SourceJournal

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

    def _message_waits(self) -> bool:
        """Wake the thread if the queue has any message, so that the next look sees whether it has come out."""
        try:
            if not linux.queue_status(self._queue).messages:
                return False
        except OSError:
            return False
        signal.pthread_kill(self._thread, INTERRUPT)
        return True

    def _take_from(self, queue: int) -> None:
        """See QueueSource. Raises Blocked."""
        is_first = True
        while True:
            self._room.wait()
            with self._host.guarded():
                self._host.retry()
                if not self._host.has_room():
                    self._host.blocked("out", "")
                    self._room.clear()
                    continue
                place = self._begin()
                self._queue = queue
                self._waits = True
            if is_first:
                length = linux.try_msgrcv(queue, place, self._size, self._type, linux.IPC_NOWAIT)
            else:
                length = linux.wait_msgrcv(queue, place, self._size, self._type)
            with self._host.guarded():
                self._waits = False
                self._rounds += 1
                if length >= 0:
                    self._host.landed(self._landing.landed([length]))
                    self._host.flush()  # before the look for more: this one may be the only one
                elif not self._grows(length):
                    self._landed(length)
                self._take_all(queue)
                if is_first:
                    self._host.blocked("out", "")
                    is_first = False

    def _take_all(self, queue: int, *, is_awaited: bool = False) -> None:  # noqa: ARG002  (as QueueSource's)
        """Take while there are messages and room. Raises Blocked."""
        host, unsent = self._host, 0
        messages, size = host.room()
        try:
            while messages > 0 and size > 0:
                got = self._take_some(queue, min(messages, AT_ONCE), size)
                if not got:
                    return
                messages, size, unsent = messages - len(got), size - sum(got), unsent + len(got)
                if unsent >= FLUSH_EVERY:
                    unsent = 0
                    host.flush()
            self._room.clear()
        finally:
            host.flush()

    def _take_some(self, queue: int, most: int, room: int) -> list[int]:
        """Receive up to `most` messages into places that follow each other; return the lengths. Raises Blocked."""
        got: list[int] = []
        place = self._begin()
        try:
            while place and room > 0 and len(got) < most:
                length = linux.try_msgrcv(queue, place, self._size, self._type, linux.IPC_NOWAIT)
                if length < 0:
                    if self._grows(length) and not got:
                        place = self._begin()
                        continue
                    if not got:
                        self._landed(length)
                    break
                got.append(length)
                room -= length
                place = self._landing.following(length, self._size)
        finally:
            if got:
                self._host.landed(self._landing.landed(got))
        return got

    def _begin(self) -> int:
        try:
            return self._landing.begin(self._size)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def _grows(self, length: int) -> bool:
        """Return True if the next message did not fit, and a larger place is asked for. Raises TooLongError."""
        if length != -errno.E2BIG:
            return False
        if self._size >= self._longest:
            raise TooLongError(
                f"{shown(self._key)}: the next message is longer than max_message = {self._longest} and stays in the "
                "queue: raise max_message (64MiB at most), or remove the message"
            )
        self._size = min(4 * self._size, self._longest)
        return True
