"""A POSIX queue that nsbridge made and no program uses is reported after a while: probably its name is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.mqueue.cells import MADE
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, MqueueIn, MqueueOut, shown
from nsbridge.agents.endpoints.mqueue.sink import MqueueSink
from nsbridge.agents.endpoints.mqueue.source import MqueueSource
from nsbridge.agents.endpoints.mqueue.unused import WatchedName
from nsbridge.agents.endpoints.unused import AFTER, UnusedQueue
from nsbridge.agents.wire import Run
from tests.mqueue_life import EPOCH, SendingHost, TakingHost, sink_life, source_life
from tests.posix_queue import PosixQueue

NAME = "/nsb-unused"  # of this test
UNUSED = f"{shown(NAME)} was made by nsbridge and nobody has"


class Side:
    """An agent's side of the queue, and a clock of the test's own."""

    def __init__(self, path: Path, side: str, *, create: bool = True) -> None:
        self._path, self._side, self._create = path, side, create
        self.start()

    def start(self) -> None:
        """Begin, or begin again over the same journal."""
        self._ends = ExitStack()
        self.host, end = self._ends.enter_context(self._life())
        self.now = 1000.0
        self.host.loop.now = lambda: self.now
        queue = WatchedName(end.queue)
        self._watch = UnusedQueue(self.host, self._side, shown(NAME), queue, (self.host.journal, MADE))

    def _life(self) -> AbstractContextManager[tuple[SendingHost | TakingHost, MqueueSink | MqueueSource]]:
        if self._side == "in":
            config = MqueueEndpoint(in_=MqueueIn(NAME), create=self._create)
            return sink_life(self._path, NAME, None, config=config)
        config = MqueueEndpoint(out=MqueueOut(NAME), create=self._create)
        return source_life(self._path, NAME, None, config=config)

    def after(self, seconds: float) -> str:
        """Return what is shown after that time."""
        self.now += seconds
        self._watch.look()
        return self.host.notices.get(self._side, "")

    def close(self) -> None:
        """End as a kill does."""
        self._ends.close()


class Sink(Side):
    """The side that sends."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._sent = 0
        super().__init__(path, "in", create=create)

    def send(self, count: int) -> None:
        """Send so many messages."""
        assert isinstance(self.host, SendingHost)
        self.host.send(Run(EPOCH, self._sent + 1, 0, [b"a message"] * count))
        self._sent += count
        assert self.host.journal.handed == self._sent


@pytest.fixture(autouse=True)
def unlinked() -> Iterator[None]:
    yield
    with PosixQueue(NAME) as left:  # if a test has left none, it makes one
        left.unlink()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    made = Sink(tmp_path / "journal")
    yield made
    made.close()


@pytest.fixture
def program(sink: Sink) -> Iterator[PosixQueue]:
    """Yield the queue that the sink has made, as a program has it."""
    with PosixQueue(NAME, is_waiting=False) as opened:
        yield opened


def test_messages_without_a_reader_are_reported_and_counted(sink: Sink) -> None:
    assert sink.after(10 * AFTER) == "", "an empty queue has nothing to be read"
    sink.send(1)
    assert sink.after(0) == sink.after(AFTER - 1) == ""
    assert sink.after(2) == f"{UNUSED} read from it: 1 message waits there"
    sink.send(4)
    assert sink.after(1) == f"{UNUSED} read from it: 5 messages wait there"
    assert sum(UNUSED in line for line in sink.host.said) == 1


def test_messages_that_are_sent_before_the_first_look_are_no_use(sink: Sink) -> None:
    sink.send(2)
    sink.after(0)
    assert sink.after(AFTER) == f"{UNUSED} read from it: 2 messages wait there"


def test_report_ends_for_good_when_a_program_has_read(sink: Sink, program: PosixQueue) -> None:
    sink.send(2)
    sink.after(0)
    assert sink.after(AFTER)
    program.receive()
    assert sink.after(1) == ""
    assert sink.after(10 * AFTER) == "", "a slow reader is no wrong name"
    assert sink.host.journal.cells[MADE] == 0


def test_reading_is_seen_though_as_many_were_sent_meanwhile(sink: Sink, program: PosixQueue) -> None:
    sink.send(2)
    sink.after(0)
    program.drained()
    sink.send(2)
    sink.after(1)
    assert sink.after(10 * AFTER) == ""


def test_report_outlives_the_agent(sink: Sink) -> None:
    sink.send(1)
    sink.after(0)
    sink.close()
    sink.start()
    sink.after(0)
    assert sink.after(AFTER) == f"{UNUSED} read from it: 1 message waits there"


def test_queue_of_a_program_is_never_reported(tmp_path: Path) -> None:
    with PosixQueue(NAME, is_waiting=False):
        sink = Sink(tmp_path / "of-a-program")
        sink.send(1)
        sink.after(0)
        assert sink.after(AFTER) == ""
        sink.close()


def test_queue_that_a_program_makes_anew_is_not_reported(sink: Sink, program: PosixQueue) -> None:
    sink.send(1)
    sink.after(0)
    assert sink.after(AFTER)
    program.unlink()
    with PosixQueue(NAME, is_waiting=False):
        sink.send(1)
        assert sink.after(1) == sink.after(2 * AFTER) == ""


def test_queue_that_is_made_again_is_reported_again(sink: Sink) -> None:
    for turn in range(2):
        sink.send(1)
        sink.after(0)
        assert sink.after(AFTER)
        assert sum(UNUSED in line for line in sink.host.said) == turn + 1
        with PosixQueue(NAME) as queue:
            queue.unlink()
        sink.send(1)  # makes it
        assert sink.after(0) == ""


def test_queue_that_no_program_writes_to_is_reported(tmp_path: Path) -> None:
    source = Side(tmp_path / "journal", "out")
    assert source.after(0) == source.after(AFTER - 1) == ""
    assert source.after(1) == f"{UNUSED} written to it: is the name right?"
    with PosixQueue(NAME, is_waiting=False) as program:
        program.send(b"1")
    host = source.host
    assert isinstance(host, TakingHost)
    host.run_until(lambda: len(host.took()) == 1, "it is taken")
    assert source.after(1) == source.after(AFTER) == ""
    source.close()
