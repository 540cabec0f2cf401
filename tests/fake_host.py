"""An agent for endpoints under test: real loop, journals and files; the other agent, and SIGKILL, are pretended.

What outlives a kill is what would: the journal's file, the container's files, and what the other side has. The rest is
made anew by `restart`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from nsbridge.agents.endpoints.base import Blocked, Sink, Source
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.watch import AnyWatch
from nsbridge.agents.heartbeat import Voucher
from nsbridge.agents.journal import sinkjournal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.loop import Loop
from nsbridge.agents.wire import VOID, Message, Run
from tests.undertaker import Undertaker

LIMIT = 10.0  # seconds for anything that is waited for
RING = 1 << 20
_UNDERTAKER = Undertaker()  # begun with the first import, so its socket is no leak of any test
_POLL = 0.02  # seconds that a loop waits for an event


class SkippingClock:
    """A monotonic clock that can skip the time until the next deadline of a loop, in which nothing would happen."""

    def __init__(self) -> None:
        self.skipped = 0.0  # seconds

    def __call__(self) -> float:
        return time.monotonic() + self.skipped

    def skip_wait(self, loop: Loop) -> None:
        """Skip it, if the loop has a deadline."""
        self.skipped += loop._time_to_sleep(loop.now()) or 0.0


class FakeHost:
    """See base.Host. For one side of one endpoint."""

    skips_waits = False  # True: for what nothing but the loop itself changes, so its deadlines may come at once

    def __init__(self) -> None:
        self._before = {*map(int, os.listdir("/proc/self/fd"))}
        self.clock = SkippingClock()
        self.loop = Loop(self.clock)
        self.name = "r:a"
        self.container = "docker:web"
        self.syncs = False
        self.waiting_files = self.renewed = 0
        self.said: list[str] = []
        self.reason = ""
        self.notices: dict[str, str] = {}
        self.refused_files = self.refused_ever = self.refused_moved = 0
        self.missing = (0, 0)
        self._vouchers: list[Voucher] = []
        self.tree = Tree(os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY))

    def lose(self, watch: AnyWatch | None) -> None:
        """Close the descriptors that the process would have lost, without help of the endpoint: it may be torn."""
        with _UNDERTAKER.closing(self._own()):
            if watch is not None:
                watch.close()
            self.close()
            for fd in self._own():
                with suppress(OSError):  # that of the listing itself
                    os.close(fd)

    def _own(self) -> set[int]:
        return {*map(int, os.listdir("/proc/self/fd"))} - self._before

    def close(self) -> None:
        """Close the process's own descriptors."""
        os.close(self.tree.own_fds)
        self.tree.close()
        self.loop.close()

    def run_until(self, reached: Callable[[], bool], what: str) -> None:
        """Serve events until it is."""
        deadline = self.loop.now() + LIMIT
        while not reached():
            assert self.loop.now() < deadline, f"{what}; it logged {self.said}, and waits: {self.reason!r}"
            begun = time.monotonic()
            self.loop.run_once(_POLL)
            if self.skips_waits and time.monotonic() - begun >= _POLL:
                self.clock.skip_wait(self.loop)

    def settle(self) -> None:
        """Serve what is there now."""
        for _ in range(5):
            self.loop.run_once(0)

    def blocked(self, side: str, reason: str) -> None:
        """Keep the text in `reason`."""
        self.reason = reason

    def notice(self, side: str, text: str) -> None:
        """Keep it in `notices`."""
        self.notices[side] = text

    def refused(self, count: int, total: int) -> None:
        """Keep them in `refused_files` and `refused_ever`."""
        self.refused_files, self.refused_ever = count, total

    def report_refused(self, text: str, *, moved: bool) -> None:
        """Keep the text in the list of log lines."""
        self.said.append(text)
        self.refused_moved += moved

    def renew_socket(self) -> None:
        """Count it in `renewed`."""
        self.renewed += 1

    def files_waiting(self, count: int) -> None:
        """Keep it in `waiting_files`."""
        self.waiting_files = count

    def log(self, level: str, text: str) -> None:
        """Keep the text in the list of log lines."""
        self.said.append(text)

    def guarded(self) -> AbstractContextManager[object]:
        """See AgentApi."""
        return self.loop.lock

    def senders(self, pids: tuple[int, ...]) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def confine_sender(self) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def vouch(self, voucher: Voucher) -> None:
        """Add a check for `beat` to call."""
        self._vouchers.append(voucher)

    def beat(self) -> None:
        """Call the checks, as an agent's heart does now and then."""
        for voucher in self._vouchers:
            voucher()

    def landed(self, seq: int) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def retry_dead_letters(self) -> None:
        """See AgentApi: there are no dead letters."""

    def has_room(self) -> bool:
        """See AgentApi."""
        raise NotImplementedError

    def take(self, message: Message, note: bytes = b"") -> int:
        """See AgentApi."""
        raise NotImplementedError

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        raise NotImplementedError

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """See AgentApi."""
        raise NotImplementedError

    def take_run(self, bodies: Sequence[bytes], note: bytes) -> int:
        """See AgentApi."""
        raise NotImplementedError

    def missed(self, files: int, size: int) -> None:
        """Keep the counts in `missing`."""
        self.missing = (files, size)

    def flush(self) -> None:
        """See AgentApi."""

    def handed(self, run: Run) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def put_back(self, run: Run) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def sink_ready(self) -> None:
        """See AgentApi."""
        raise NotImplementedError

    def dead(self, one: Run, where: str, why: str) -> bool:
        """See AgentApi."""
        raise NotImplementedError


class SourceHost(FakeHost):
    """Host of a source whose journal holds notes. `received` is what the other agent has: each seq once, no gaps."""

    def __init__(self, path: Path, received: list[Message], window: int = 1024) -> None:
        super().__init__()
        self._window = window
        self.journal = open_source(str(path), window + 3, RING, self.said.append, patience=0)
        self.journal.waiting_fd = os.open(f"{path}.waiting", os.O_RDWR | os.O_CREAT, 0o600)
        self.received = received
        self.confirms = True  # whether the other agent's confirmations arrive
        self._sent = self.journal.confirmed
        self.source: Source | None = None

    @property
    def store(self) -> SourceJournal | NoteStore:
        """Return the source's store."""
        assert self.source is not None
        return self.source.store

    def close(self) -> None:
        """Close the journal too."""
        os.close(self.journal.waiting_fd)
        self.journal.close()
        super().close()

    def bodies(self) -> list[bytes]:
        """Return the messages that were handed over."""
        return [message.body for message in self.received if message != VOID]

    def has_room(self) -> bool:
        """See AgentApi."""
        return self.store.taken - self.store.confirmed < self._window

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        return self._window - (self.store.taken - self.store.confirmed), RING

    def take(self, message: Message, note: bytes = b"") -> int:
        """Take a message, as the agent does."""
        try:
            if isinstance(self.store, NoteStore) and note:
                return self.store.note(message.type, (message.body,), note)
            return self.store.append(message)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """See AgentApi."""
        return min(len(bodies), self._window - (self.store.taken - self.store.confirmed))

    def take_run(self, bodies: Sequence[bytes], note: bytes) -> int:
        """Take a run, as the agent does."""
        assert isinstance(self.store, NoteStore)
        try:
            return self.store.note(0, bodies, note)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def give_back(self, body: bytes) -> bool:
        """Give a dead letter back, as retries.py does, if there is room."""
        assert self.source is not None
        if not self.has_room() or not self.source.lend():
            return False
        self.take(Message(0, body))
        self.flush()
        return True

    def flush(self) -> None:
        """Send what was taken; the other agent drops what it has, and confirms in the loop's next turn."""
        while self._sent < self.store.taken:
            run = self.store.run(self._sent + 1)
            if run is None:
                return
            for seq, body in enumerate(run.bodies, run.first):
                if seq > len(self.received):
                    assert seq == len(self.received) + 1, "a message was left out"
                    self.received.append(Message(run.type, body))
            self._sent = run.last
        if self.confirms and self.store.confirmed < self._sent:
            self.loop.call_later(0, self.confirm)

    def confirm(self) -> None:
        """Let the confirmation of all that was received arrive."""
        if self.store.confirmed < self._sent:
            self.store.confirm(self._sent)
        assert self.source is not None
        self.source.confirmed(self.store.confirmed)
        if self.has_room():
            self.source.room_again()
        self.flush()


class SinkHost(FakeHost):
    """Host of a sink that hands over `messages`, the seq of each being its place in the list, from 1."""

    EPOCH = 77

    def __init__(self, path: Path, messages: list[bytes]) -> None:
        super().__init__()
        self.journal: SinkJournal = sinkjournal.open_sink(str(path), self.said.append, patience=0)
        if not self.journal.epoch:
            self.journal.adopt(self.EPOCH, 0)
        first = self.journal.handed
        self.waiting = deque(Run(self.EPOCH, seq, 0, (body,)) for seq, body in enumerate(messages[first:], first + 1))
        self.done = first  # the last seq that the sink reported as handed over
        self.dead_letters: list[Run] = []
        self.sink: Sink | None = None

    def close(self) -> None:
        """Close the journal too."""
        self.journal.close()
        super().close()

    def offer(self) -> None:
        """Offer messages, as an agent does when they have come."""
        assert self.sink is not None
        while self.waiting:
            run = self.waiting.popleft()
            count = self.sink.put(run)
            if count < len(run.bodies):
                self.waiting.appendleft(run.after(count))
                return

    def handed(self, run: Run) -> None:
        """Note what was handed over, as the agent does."""
        assert run.first == self.done + 1, "out of order"
        self.done = run.last
        self.journal.hand(run.last)

    def put_back(self, run: Run) -> None:
        """Put back a message, as the agent does."""
        self.waiting.appendleft(run)

    def sink_ready(self) -> None:
        """Offer more, as the agent does."""
        self.offer()

    def dead(self, one: Run, where: str, why: str) -> bool:
        """Keep the letter in `dead_letters`."""
        self.dead_letters.append(one)
        self.said.append(f"{where}: {why}")
        self.handed(one)
        return True


class OfferedSinkHost(SinkHost):
    """Host of a sink to which the test itself offers messages, of any source."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, [])
        self.ready = 0  # how often the sink asked for the message again

    def handed(self, run: Run) -> None:
        """Note what was handed over, as the agent does."""
        if run.epoch == self.journal.epoch:
            self.journal.hand(run.last)

    def sink_ready(self) -> None:
        """Count it: the test offers again."""
        self.ready += 1
