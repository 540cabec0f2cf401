"""The `out` side of the `queue` endpoint: each message goes straight into the journal, where the kernel puts it.

queue.py says what is to be known about SysV queues.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Sequence

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import AFTERWARDS, AgentApi, Blocked, Denied, log_recovered
from nsbridge.agents.endpoints.queue.config import QueueEndpoint
from nsbridge.agents.endpoints.queue.look import CROWDED_DELAY, CrowdedError, QueuePeek, TooLongError
from nsbridge.agents.endpoints.queue.queue import Queue, QueueOwner, no_permission, open_queue, shown
from nsbridge.agents.endpoints.queue.threads import start_thread
from nsbridge.agents.endpoints.removals import Removals
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.journal.sourcejournal import SourceJournal

_AT_ONCE = 32  # messages looked at, then taken, in one go
_FLUSH_EVERY = 64  # messages taken before they are sent on, so that the other agent works meanwhile
INTERRUPT = signal.SIGUSR2  # to the thread that waits in msgrcv
_INTERRUPT_EVERY = 0.02  # seconds
_MISSING_DELAY = 0.1  # seconds between looks for a queue that is missing
_SLOW = (CrowdedError, Denied, TooLongError)  # these need a person: looked at again every CROWDED_DELAY


class _RemovedError(Blocked):
    """The queue was removed while it was used."""


class QueueSource:
    """Takes messages of one type selection, each straight into the journal: the kernel writes it there.

    msgrcv returns a message's length only in a register, which dies with the process. So the length is looked at first
    (MSG_COPY) and noted with the landing place; then the message is received with exactly that size.
    """

    def __init__(
        self, host: AgentApi, config: QueueEndpoint, key: int, journal: SourceJournal, owner: QueueOwner | None = None
    ) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.out.type
        self._journal = self.store = journal
        self._owner = owner or QueueOwner(host, (key,), is_user_configured=True)
        self._removals = Removals(host, shown(key))
        self._look = QueuePeek(self._type, config.max_message)
        self._room = threading.Event()  # clear: the window is full, or the agent is to stop
        self._room.set()
        self._thread = 0
        self._waits = False  # in msgrcv, with a landing place in the journal
        self._size = 0  # bytes that the wait receives
        self._queue = 0  # its id, where the thread waits
        self._rounds = 0  # how often the thread has come out of msgrcv
        self._rounds_seen = 0
        self._debt = Debt(host.loop.now)
        self._interrupts = False
        self._at_once = _AT_ONCE

    def start(self) -> None:
        """Take what is there; a little later start the thread that waits in msgrcv, which nothing else can do."""
        log_recovered(self._host, self._journal)
        signal.signal(INTERRUPT, lambda _signum, _frame: None)
        self._host.vouch(self._vouch)
        self._host.loop.call_later(AFTERWARDS, lambda: start_thread("take", self._run))
        try:
            self._take_all(open_queue(self._key, self._config, self._host, self._owner).id)
        except Blocked as reason:  # the thread clears it, if it does not last
            self._host.blocked("out", str(reason))

    def _vouch(self) -> float:
        """Return the time at which the thread last owed nothing.

        It may wait in msgrcv indefinitely, but it must come out when there is a message for it.
        """
        owes = self._waits and self._rounds == self._rounds_seen and self._host.has_room() and self._message_waits()
        self._rounds_seen = self._rounds
        return self._debt.since(owes=owes)

    def _message_waits(self) -> bool:
        try:
            return bool(self._next(self._queue, 1, 1))
        except Blocked:
            return False

    def room_again(self) -> None:
        """Wake the thread."""
        if not self._room.is_set():
            self._room.set()

    def confirmed(self, seq: int) -> None:
        """Do nothing: taking removed the message from the queue, so there is nothing to release."""

    def lend(self) -> bool:
        """See Source: not while the kernel may put a message into the journal; the thread is called back from there."""
        if self._waits and not self._interrupts:
            self._interrupt()
        return not self._waits

    def stop_taking(self) -> bool:
        """See Source: a thread that waits in msgrcv would still receive a message."""
        return self.lend()

    def _interrupt(self) -> None:
        """End the wait, which nothing else can. It may be about to begin, so repeat until it ends."""
        self._interrupts = self._waits
        if self._waits:
            signal.pthread_kill(self._thread, INTERRUPT)
            self._host.loop.call_later(_INTERRUPT_EVERY, self._interrupt)

    def _run(self) -> None:
        self._thread = threading.get_ident()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {INTERRUPT})
        while True:
            try:
                self._take_from(self._open().id)
            except Blocked as reason:
                self._pause(reason)

    def _open(self) -> Queue:
        while True:
            try:
                return open_queue(self._key, self._config, self._host, self._owner)
            except Blocked as reason:
                self._pause(reason)

    def _pause(self, reason: Blocked) -> None:
        with self._host.guarded():
            text = self._removals.note() if isinstance(reason, _RemovedError) else str(reason)
            self._host.blocked("out", text)
            if isinstance(reason, Denied):
                self._owner.check_later()
        time.sleep(CROWDED_DELAY if isinstance(reason, _SLOW) else _MISSING_DELAY)

    def _take_from(self, queue: int) -> None:
        """Take until the queue is gone. Raises Blocked.

        The first look does not wait: until then the old reason is shown, which may still be true.
        """
        with self._host.guarded():
            place = self._prepare(queue)
        is_first = True
        while True:
            if not place:
                self._room.wait()
                with self._host.guarded():
                    place = self._prepare(queue)
                continue
            length = self._receive(queue, place, is_first)
            with self._host.guarded():
                self._waits = False
                self._rounds += 1
                unsent = self._received(length)
                if unsent is not None:
                    self._take_all(queue, unsent, is_awaited=length == -errno.E2BIG)
                if is_first:
                    self._host.blocked("out", "")
                    is_first = False
                place = self._prepare(queue)

    def _prepare(self, queue: int) -> int:
        """Return where the message may land that the thread waits for now; 0 if there is no room. Raises Blocked."""
        self._host.retry_dead_letters()
        if not self._host.has_room():  # as after a start with a full window: an empty message would land
            self._host.blocked("out", "")
            self._room.clear()
            return 0
        place = self._landing_place()
        self._queue = queue
        self._waits = True
        return place

    def _receive(self, queue: int, place: int, is_first: bool) -> int:
        if is_first:
            return linux.try_msgrcv(queue, place, self._size, self._type, linux.IPC_NOWAIT)
        return linux.wait_msgrcv(queue, place, self._size, self._type)

    def _landing_place(self) -> int:
        """Return the address where the awaited message may land. Raises Blocked."""
        return self._land((0,))[0]

    def _received(self, length: int) -> int | None:
        """Take up what the wait returned; return how many messages are still to be sent. Raises Blocked.

        None: they are sent, and the queue need not be looked at. The wait leaves a message there (E2BIG). An empty one
        fits, and is received into the journal.
        """
        if length == 0:
            self._host.landed(self._journal.landed((0,)))
        self._landed(length)
        return int(length == 0)

    def _take_all(self, queue: int, unsent: int = 0, *, is_awaited: bool = False) -> None:
        """Take while there are messages and room. Confirmations wait for the lock meanwhile, so room only shrinks.

        With `is_awaited` msgrcv has just reported one, so a look that sees none skipped it. Raises Blocked.
        """
        host = self._host
        messages, size = host.room()
        try:
            while messages > 0 and size > 0:
                got = self._take_some(queue, min(messages, self._at_once), size, is_awaited=is_awaited)
                if got is None:
                    return
                is_awaited = False
                messages, size, unsent = messages - len(got), size - sum(got), unsent + len(got)
                if unsent >= _FLUSH_EVERY:
                    unsent = 0
                    host.flush()
            self._room.clear()
        finally:
            host.flush()  # also without a message: an agent that was asked to stop reports that it is drained

    def _take_some(self, queue: int, most: int, size: int, *, is_awaited: bool) -> Sequence[int] | None:
        """Take up to `most` messages while there are `size` bytes of room; return their lengths, None at the end.

        There may be none of those that were seen, if another reader was faster. Raises Blocked.
        """
        found = self._next(queue, most, size)
        got = self._take(queue, found) if found else []
        if not got and (found or is_awaited) and (too_long := self._look.too_long()):
            raise TooLongError(f"{shown(self._key)}: {too_long}")
        return got if found else None

    def _take(self, queue: int, found: Sequence[tuple[int, int]]) -> list[int]:
        """Take these, as far as there is room and no other reader is faster; the lengths of those that came."""
        got: list[int] = []
        try:
            for place, (mtype, length) in zip(self._land([length for _, length in found]), found, strict=False):
                came = linux.try_msgrcv(queue, place, length, mtype, linux.IPC_NOWAIT)
                if came < 0 and self._landed(came) is None:
                    break
                got.append(came)
        finally:
            if got:
                self._host.landed(self._journal.landed(got))
        return got

    def _land(self, lengths: Sequence[int]) -> list[int]:
        try:
            return self._journal.land(lengths)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def _landed(self, length: int) -> int | None:
        """Return the length that msgrcv returned; None if there was no message that fits. Raises Blocked."""
        if length >= 0:
            return length
        if -length in (errno.E2BIG, errno.ENOMSG, errno.EINTR):
            return None
        raise self._gone(-length)

    def _next(self, queue: int, most: int, size: int) -> Sequence[tuple[int, int]]:
        """See QueuePeek. Raises Blocked."""
        try:
            return self._look.next(queue, most, size)
        except CrowdedError as error:
            raise CrowdedError(f"{shown(self._key)}: {error}") from None
        except OSError as error:
            raise self._gone(error.errno or 0) from None

    def _gone(self, number: int) -> Blocked:
        if number == errno.EACCES:
            return Denied(no_permission(self._key))
        if number in (errno.EIDRM, errno.EINVAL):
            return _RemovedError(f"{shown(self._key)} was removed")
        return Blocked(f"{shown(self._key)}: {os.strerror(number)}")
