"""Lives of both sides of a POSIX queue in this process, over real queues and journals; and their fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.evidence import evidence
from nsbridge.agents.endpoints.mqueue.calls import _number
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, MqueueIn, MqueueOut
from nsbridge.agents.endpoints.mqueue.mqueue import MqueueOwner
from nsbridge.agents.endpoints.mqueue.sink import MqueueSink
from nsbridge.agents.endpoints.mqueue.source import MqueueSource
from nsbridge.agents.journal.counted import recover_landed
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message, Run
from nsbridge.config.schema import AgentConfig, Container, Delivery, InDoubt, RouteConfig
from tests.fake_counter import FakeCounter
from tests.fake_host import FakeHost, OfferedSinkHost
from tests.posix_queue import PosixQueue

EPOCH = OfferedSinkHost.EPOCH


@pytest.fixture(name="queue")
def queue_fixture() -> Iterator[PosixQueue]:
    with PosixQueue(f"/nsb-test-{os.getpid()}", max_message=512, is_waiting=False) as made:
        yield made
        try:
            made.unlink()
        except FileNotFoundError:
            pass


@pytest.fixture(name="polling")
def polling_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no inotify: the kernel takes 20 ms to close an instance."""

    def used_up(_own_fds: int, _fd: int) -> None:
        raise Blocked("used up")

    monkeypatch.setattr(watch, "OpenFileWatch", used_up)


class CountingCalls:
    """Has a FakeCounter follow the real calls of POSIX queues, as the kernel does: in one step."""

    def __init__(self, counter: FakeCounter, monkeypatch: pytest.MonkeyPatch) -> None:
        prepared = linux.prepared

        def prepare(number: int, *arguments: int | bytes) -> object:
            call, passed = prepared(number, *arguments)

            def counting() -> int:
                result = call()
                if result >= 0 and number == _number("mq_timedsend"):
                    counter.sent += 1
                elif result >= 0:
                    counter.received += 1
                    counter._lengths.append(result)
                return result

            return counting, passed

        monkeypatch.setattr(linux, "prepared", prepare)


@pytest.fixture(name="counter")
def counter_fixture(monkeypatch: pytest.MonkeyPatch) -> FakeCounter:
    made = FakeCounter()
    CountingCalls(made, monkeypatch)
    return made


def route(delivery: Delivery = Delivery.EXACTLY_ONCE, in_doubt: InDoubt = InDoubt.RESEND) -> RouteConfig:
    """Return a route of which only what is promised is asked."""
    agent = AgentConfig("r:a", Container.__new__(Container), MqueueEndpoint())
    return RouteConfig("r", (agent, agent), delivery, in_doubt)


class SendingHost(OfferedSinkHost):
    """Hosts a sink. What it does not take yet waits, and is offered when it is ready."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.letters: list[tuple[int, str]] = []

    def sink_ready(self) -> None:
        """See AgentApi."""
        super().offer()

    def dead(self, one: Run, where: str, why: str) -> bool:
        """See AgentApi."""
        self.letters.append((one.first, why))
        return super().dead(one, where, why)

    def send(self, run: Run) -> None:
        """Offer messages now, and those that are not taken later."""
        self.waiting.append(run)
        super().offer()


@contextmanager
def sink_life(
    path: Path,
    name: str,
    counter: FakeCounter | None,
    promise: RouteConfig | None = None,
    config: MqueueEndpoint | None = None,
) -> Iterator[tuple[SendingHost, MqueueSink]]:
    """Start an agent's sink."""
    host = SendingHost(path)
    config = config or MqueueEndpoint(in_=MqueueIn(name))
    owner = MqueueOwner(host, [name], is_user_configured=False)
    sink = MqueueSink(host, config, evidence(host, host.journal, counter, promise or route()), owner, host.tree.own_fds)
    host.sink = sink
    sink.start()
    try:
        yield host, sink
    finally:
        sink.queue.close()
        host.close()


def offer(sink: MqueueSink, runs: list[Run]) -> None:
    """Offer all messages, as a source does that knows nothing of the sink's life before."""
    for run in runs:
        assert sink.put(run) == len(run.bodies)


class TakingHost(FakeHost):
    """Hosts a source that receives into a journal; nothing is confirmed. `messages` is the room."""

    def __init__(self, journal: SourceJournal, messages: int = 1024) -> None:
        super().__init__()
        self.journal = journal
        self.messages = messages

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        return self.messages - self.journal.taken + self.journal.confirmed, 1 << 20

    def landed(self, seq: int) -> None:
        """See AgentApi."""
        assert seq == self.journal.taken

    def close(self) -> None:
        """Close the journal too."""
        self.journal.close()
        super().close()

    def took(self) -> list[Message]:
        """Return all that was taken."""
        return [self.journal.get(seq) for seq in range(1, self.journal.taken + 1)]


@contextmanager
def source_life(
    path: Path, name: str, counter: FakeCounter | None, messages: int = 1024, config: MqueueEndpoint | None = None
) -> Iterator[tuple[TakingHost, MqueueSource]]:
    """Start an agent's source. It takes what is there when `host.settle` is called."""
    doubts = []
    made = open_source(
        str(path), 1027, 1 << 17, settle=lambda made: doubts.append(recover_landed(made, counter).doubtful)
    )
    host = TakingHost(made, messages)
    host.said += [f"{doubt} may be lost" for doubt in doubts if doubt]
    owner = MqueueOwner(host, [name], is_user_configured=False)
    config = config or MqueueEndpoint(out=MqueueOut(name))
    source = MqueueSource(host, config, made, counter, owner, host.tree.own_fds)
    source.start()
    try:
        yield host, source
    finally:
        source._rest()
        source.queue.close()
        host.close()
