"""Journals against plain Python, killed after any store: what is published is kept, what is not is not believed."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nsbridge.agents.journal import sinkjournal
from nsbridge.agents.journal.journalfile import FullError, seal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import CONFIRMED, TAKEN, SourceJournal
from nsbridge.agents.wire import Message
from tests.journals import Files, read_all, receive_into, states_of_a_kill, write_all

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None  # journals are on tmpfs as a rule, and this is quick
ENTRIES = st.sampled_from([3, 4, 7, 16])
RINGS = st.sampled_from([32, 64, 200, 512])
LENGTHS = st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 40, 48, 100, 184, 496])
TYPES = st.sampled_from([1, 2, 7, 255, 256, 1 << 40, (1 << 63) - 1])
Outcome = tuple[int, list[Message]]  # confirmed, and what is pending
CHOICE = st.integers(0, 1 << 16)  # which of the states that a kill can leave, modulo their number


class Killed:
    """A directory whose journal is opened, and after a kill opened again as the kill left it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nsb-journal-", dir=SHM))
        self.path = str(self.directory / "a")
        self.reports: list[str] = []

    def remove(self) -> None:
        shutil.rmtree(self.directory)


class SourceMachine(RuleBasedStateMachine):
    """A source's journal. `pending` is what must be there; the bodies of all messages differ."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Killed()
        self.confirmed = 0
        self.pending: list[Message] = []
        self.expected: list[Message] = []  # announced by `land`, and not yet come
        self.number = 0

    @initialize(entries=ENTRIES, ring=RINGS, start=st.sampled_from([0, 0, 5, (1 << 46) - 3]))
    def make(self, entries: int, ring: int, start: int) -> None:
        self.entries, self.ring = entries, ring
        self.journal = self.open()
        if start:
            for cell in (CONFIRMED, TAKEN):
                self.journal.cells[cell] = seal(start)
            self.journal.close()
            self.journal = self.open()
            self.confirmed = start

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
        self.disk.remove()

    def open(self) -> SourceJournal:
        opened = open_source(self.disk.path, self.entries, self.ring, self.disk.reports.append)
        assert self.disk.reports == []
        return opened

    def message(self, mtype: int, length: int) -> Message:
        self.number += 1
        return Message(mtype, (b"%d," % self.number * length)[:length])

    @property
    def taken(self) -> int:
        return self.confirmed + len(self.pending)

    # What an agent does

    @rule(length=LENGTHS, mtype=st.one_of(TYPES, st.just(0)))
    def append(self, length: int, mtype: int) -> None:
        message = self.message(mtype, length)
        try:
            seq = self.journal.append(message)
        except FullError:
            self.must_be_full(length)
            return
        self.pending.append(message)
        self.expected = []
        assert seq == self.taken

    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=6), mtype=TYPES)
    def land(self, lengths: list[int], mtype: int) -> None:
        try:
            self.addresses = self.journal.land(lengths)
        except FullError:
            self.must_be_full(lengths[0])
        else:
            assert 1 <= len(self.addresses) <= len(lengths)
            self.expected = [self.message(mtype, length) for length, _ in zip(lengths, self.addresses, strict=False)]

    @precondition(lambda self: self.expected)
    @rule(count=st.integers(1, 6), shorter=st.sampled_from([0, 0, 1, 9]))
    def arrive(self, count: int, shorter: int) -> None:
        """Let the first of them come; another reader may have shortened the last since it was looked at."""
        come = self.come(count)
        mtype, body = come[-1]
        come[-1] = Message(mtype, body[: max(0, len(body) - shorter)])
        receive_into(self.addresses[len(come) - 1], *come[-1])
        assert self.journal.landed([len(message.body) for message in come]) == self.taken + len(come)
        self.pending += come
        self.expected = []

    def come(self, count: int) -> list[Message]:
        """Put so many of the expected messages into their places."""
        come = self.expected[:count]
        for address, message in zip(self.addresses, come, strict=False):
            receive_into(address, *message)
        return come

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 20))
    def confirm(self, count: int) -> None:
        count = min(count, len(self.pending))
        self.journal.confirm(self.confirmed + count)
        self.confirmed += count
        del self.pending[:count]

    def must_be_full(self, length: int) -> None:
        """Assert that there is no room: the ring or the index is used up, but for what a record's end may waste."""
        used = sum(24 + len(message.body) for message in self.pending)
        largest = max([length] + [len(message.body) for message in self.pending]) + 24
        assert len(self.pending) >= self.entries - 2 or used + 2 * largest > self.ring, "FullError with room left"

    # Kills

    @rule(length=LENGTHS, mtype=TYPES, choice=CHOICE)
    def killed_in_append(self, length: int, mtype: int, choice: int) -> None:
        """Kill in an append: the message is there whole, or not at all."""
        message = self.message(mtype, length)

        def append() -> None:
            try:
                self.journal.append(message)
            except FullError:
                pass

        self.killed(append, choice, [self.now(), self.now(message)])

    @rule(length=LENGTHS, choice=CHOICE)
    def killed_in_append_of_type_0(self, length: int, choice: int) -> None:
        self.killed_in_append(length, 0, choice)

    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=6), choice=CHOICE)
    def killed_in_land(self, lengths: list[int], choice: int) -> None:
        """Kill before anything has come."""

        def land() -> None:
            try:
                self.journal.land(lengths)
            except FullError:
                pass

        self.killed(land, choice, [self.now()])

    @precondition(lambda self: self.expected)
    @rule(count=st.integers(1, 6), choice=CHOICE)
    def killed_once_some_landed(self, count: int, choice: int) -> None:
        """Kill once some left the queue: they must be there, once; the places behind them are no messages."""
        come = self.come(count)
        lengths = [len(message.body) for message in come]
        self.killed(lambda: self.journal.landed(lengths), choice, [self.now(*come)])

    @precondition(lambda self: self.expected)
    @rule(count=st.integers(1, 6), choice=CHOICE, less=st.integers(1, 9))
    def killed_once_a_shorter_one_landed(self, count: int, choice: int, less: int) -> None:
        """Kill after another reader took the one that was looked at: once `landed` knows the length, it is whole."""
        *before, (mtype, body) = self.come(count)
        address = self.addresses[len(before)]
        shorter = body[: max(0, len(body) - less)]
        receive_into(address, mtype, shorter)
        unknown = ctypes.string_at(address + 8, len(body))  # recovered if `landed` was not called: what is there
        outcomes = [self.now(*before, Message(mtype, text)) for text in (unknown, shorter)]
        lengths = [*(len(message.body) for message in before), len(shorter)]
        self.killed(lambda: self.journal.landed(lengths), choice, outcomes)

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 20), choice=CHOICE)
    def killed_in_confirm(self, count: int, choice: int) -> None:
        """Kill in a confirmation: all of them or none count."""
        count = min(count, len(self.pending))
        after = (self.confirmed + count, self.pending[count:])
        self.killed(lambda: self.journal.confirm(self.confirmed + count), choice, [self.now(), after])

    @rule()
    def killed_at_rest(self) -> None:
        self.killed(lambda: None, 0, [self.now()])

    @rule(entries=ENTRIES, ring=RINGS, choice=CHOICE)
    def killed_in_a_change_of_size(self, entries: int, ring: int, choice: int) -> None:
        """Kill in a change of the window: nothing that is pending is lost, however small the new one is."""
        self.journal.close()
        self.entries, self.ring = entries, ring

        def reopen() -> None:
            self.journal = self.open()

        states = states_of_a_kill(lambda: read_all(self.disk.directory), reopen)
        self.goes_on(states, choice, [self.now()])

    def now(self, *more: Message) -> Outcome:
        return self.confirmed, [*self.pending, *more]

    def killed(self, operation: Callable[[], object], choice: int, outcomes: list[Outcome]) -> None:
        where = self.journal.cells.obj
        states = states_of_a_kill(lambda: {("a", 0): bytes(where)}, operation)
        self.goes_on(states, choice, outcomes)

    def goes_on(self, states: list[Files], choice: int, outcomes: list[Outcome]) -> None:
        """Look at each state that the kill can have left; then continue from one of them."""
        self.journal.close()
        for files in [*states, states[choice % len(states)]]:
            write_all(self.disk.directory, files)
            self.journal = self.open()
            assert self.found() in outcomes, "what a kill left is neither what was before nor what was to be"
            self.journal.close()
        self.journal = self.open()
        self.confirmed, self.pending = self.found()
        self.expected = []

    def found(self) -> Outcome:
        it = self.journal
        pending = [it.get(seq) for seq in range(it.confirmed + 1, it.taken + 1)]
        assert it.pending_bytes == sum(len(message.body) for message in pending)
        return it.confirmed, pending

    # What holds

    @invariant()
    def equals_the_model(self) -> None:
        if not hasattr(self, "journal"):
            return
        assert self.found() == (self.confirmed, self.pending)


class SinkMachine(RuleBasedStateMachine):
    """A sink's journal: (epoch, handed, last sender, delivered) are always those of before or of after."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Killed()
        self.journal = self.open()
        self.state = (0, 0, 0, 0)
        self.last_epoch = 0

    def teardown(self) -> None:
        self.journal.close()
        self.disk.remove()

    def open(self) -> SinkJournal:
        opened = sinkjournal.open_sink(self.disk.path, self.disk.reports.append)
        assert self.disk.reports == []
        return opened

    @rule(seq=st.sampled_from([0, 1, 1000, (1 << 47) - 50]), choice=CHOICE)
    def adopt(self, seq: int, choice: int) -> None:
        self.last_epoch += 1 << 60 if self.last_epoch < 1 << 62 else 1
        _, _, sender, delivered = self.state
        self.one_of(lambda: self.journal.adopt(self.last_epoch, seq), (self.last_epoch, seq, sender, delivered), choice)

    @rule(more=st.integers(1, 3), choice=CHOICE)
    def hand(self, more: int, choice: int) -> None:
        epoch, handed, sender, delivered = self.state
        self.one_of(lambda: self.journal.hand(handed + more), (epoch, handed + more, sender, delivered + more), choice)

    @rule(sender=st.integers(0, 1), choice=CHOICE)
    def sent(self, sender: int, choice: int) -> None:
        epoch, handed, _, delivered = self.state
        self.one_of(lambda: self.journal.sent(handed + 1, sender), (epoch, handed + 1, sender, delivered + 1), choice)

    @rule(sender=st.integers(0, 1), choice=CHOICE)
    def set_last_sender(self, sender: int, choice: int) -> None:
        epoch, handed, _, delivered = self.state
        self.one_of(lambda: self.journal.set_last_sender(sender), (epoch, handed, sender, delivered), choice)

    def one_of(self, operation: Callable[[], object], after: tuple[int, int, int, int], choice: int) -> None:
        where = self.journal.cells.obj
        states = states_of_a_kill(lambda: {("a", 0): bytes(where)}, operation)
        assert self.seen() == after
        self.journal.close()
        for files in [*states, states[choice % len(states)]]:
            write_all(self.disk.directory, files)
            self.journal = self.open()
            assert self.seen() in (self.state, after)
            self.journal.close()
        self.journal = self.open()
        self.state = self.seen()

    def seen(self) -> tuple[int, int, int, int]:
        it = self.journal
        return (it.epoch, it.handed, it.last_sender, it.delivered)


TestSourceJournal = SourceMachine.TestCase
TestSourceJournal.settings = settings(max_examples=60, stateful_step_count=25)
TestSinkJournal = SinkMachine.TestCase
TestSinkJournal.settings = settings(max_examples=25, stateful_step_count=15)
