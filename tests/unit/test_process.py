"""A compromised agent's messages to its supervisor, and its end: neither may harm anybody else."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
from inotify_simple import INotify, flags

from nsbridge.agents.confinement.entry import Assignment, close_all_but
from nsbridge.agents.fork import Child, fork, release_first
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Evidence
from nsbridge.supervisor.host import spawn
from nsbridge.supervisor.lifecycle.evidence import CounterLeases
from nsbridge.supervisor.lifecycle.process import AgentProcess, Channel, Keeper, signal_name
from tests.full_epoll import FullEpoll

LIMIT = 10.0  # seconds
PASSES_A_SECOND = 200  # of a loop that nothing else keeps busy, at most, while one agent floods


class Heard:
    """A channel on a real loop; `heard` is what the supervisor receives."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.agent.setblocking(False)
        self.heard: list[dict[str, object]] = []
        self.channel = Channel(self.loop, ours, self.heard.append)

    def run_until(self, count: int) -> None:
        deadline = time.monotonic() + LIMIT
        while len(self.heard) < count:
            assert time.monotonic() < deadline, f"only {len(self.heard)} were heard"
            self.loop.run_once(0.1)

    def flood(self) -> int:
        """Send as much as the socket takes; return how many datagrams."""
        count = 0
        try:
            while True:
                self.agent.send(json.dumps({"report": "log", "level": "info", "text": str(count)}).encode())
                count += 1
        except BlockingIOError:
            return count


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    yield made
    made.channel.close()
    made.agent.close()
    made.loop.close()


def test_a_flood_is_heard_slowly_so_that_others_are_heard_too(heard: Heard) -> None:
    """The loop's passes are few: the flood does not keep it busy."""
    sent = heard.flood()
    assert sent > 50
    started, passes = time.monotonic(), 0
    while time.monotonic() < started + 0.2:
        heard.loop.run_once(0.05)
        heard.flood()
        passes += 1
    assert passes < PASSES_A_SECOND * 0.2
    heard.run_until(sent)


def test_the_last_words_of_an_agent_that_flooded_are_heard(heard: Heard) -> None:
    sent = heard.flood()
    heard.agent.close()
    heard.channel.close()
    assert len(heard.heard) == sent > 50


def test_a_descriptor_that_is_passed_does_not_arrive(heard: Heard) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as null:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 8))]
        heard.agent.sendmsg([b'{"report": "ready"}'], rights)
        heard.run_until(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_datagram_is_no_more_than_the_end(heard: Heard) -> None:
    """Its sender is not heard any more; nothing spins."""
    heard.agent.send(b"")
    heard.agent.send(b'{"report": "ready"}')
    passes = 0
    started = time.monotonic()
    while time.monotonic() < started + 0.1:
        heard.loop.run_once(0.05)
        passes += 1
    assert passes < 10


_SENDERS = CounterLeases(Evidence.SENDERS, "", print)


@dataclass
class _Given:
    control_fd: int
    counter: None = None


class Kept:
    """An agent's process on a real loop: `main` in place of an agent's. `heard` is what its keeper receives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, main: Callable[[int], int], *, detach: bool = False) -> None:
        self.loop = Loop()
        self.heard: list[object] = []
        self._detach = detach
        monkeypatch.setattr(spawn, "agent", lambda given, _register: fork(lambda: main(given.control_fd)))
        self.process = AgentProcess.begin(
            self.loop, cast(Callable[[int], Assignment], _Given), self, CounterLeases(Evidence.SENDERS, "", print)
        )

    def report_received(self, fields: dict[str, object]) -> None:
        self.heard.append(fields.get("text"))

    def dying(self, code: int) -> None:
        self.heard.append(("dying", code))
        if self._detach:
            self.process.detach()

    def ended(self, code: int) -> None:
        self.heard.append(("ended", code))

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"only {self.heard}"
            self.loop.run_once(0.1)

    def until_reaped(self) -> list[object]:
        """Wait until it is reaped; return all that its keeper received."""
        self.run_until(lambda: self.process.is_reaped)
        self.loop.close()
        return self.heard


def _watch_and_wait(control_fd: int) -> int:
    """Do as an agent of files does: the kernel takes its time to release what it watches."""
    control_fd = release_first(control_fd)
    close_all_but({0, 1, 2, control_fd})
    watching = [INotify() for _ in range(12)]  # 5 to 16 ms each: this test may have to wait for a processor as long
    for one in watching:
        one.add_watch("/tmp", flags.CREATE)
    socket.socket(fileno=control_fd).send(b'{"report": "error", "text": "ready"}')
    signal.pause()
    return len(watching)


@pytest.mark.parametrize("detach", [True, False])
def test_a_death_is_known_before_the_kernel_is_done_with_it(monkeypatch: pytest.MonkeyPatch, *, detach: bool) -> None:
    """Its successor need not wait until inotify is closed; a released process causes no notice."""
    kept = Kept(monkeypatch, _watch_and_wait, detach=detach)
    kept.run_until(lambda: kept.heard == ["ready"])
    kept.process.child.kill()
    kept.run_until(lambda: len(kept.heard) == 2)
    assert kept.heard[1] == ("dying", -signal.SIGKILL)
    assert kept.until_reaped()[2:] == ([] if detach else [("ended", -signal.SIGKILL)])


def test_an_exit_code_is_known_when_it_is_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(monkeypatch, lambda _control_fd: 78)
    heard = kept.until_reaped()
    assert set(heard) <= {("dying", 78), ("ended", 78)}
    assert heard[-1] == ("ended", 78)


def test_an_agent_that_closes_its_channel_and_lives_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compromised, and would be heard of no more."""

    def hide(control_fd: int) -> int:
        os.close(control_fd)
        signal.pause()
        return 0

    kept = Kept(monkeypatch, hide)
    assert kept.until_reaped()[-1] == ("ended", -signal.SIGKILL)


@pytest.mark.parametrize("room", [0, 1])
def test_no_child_or_fd_is_left_if_it_cannot_be_watched(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    def wait() -> int:
        signal.pause()
        return 0

    made: list[Child] = []

    def spawned(_given: object, _register: object) -> Child:
        made.append(fork(wait))
        return made[-1]

    monkeypatch.setattr(spawn, "agent", spawned)
    loop = FullEpoll(room)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No space left"):
        AgentProcess.begin(
            loop,
            cast(Callable[[int], Assignment], _Given),
            cast(Keeper, SimpleNamespace(report_received=None)),
            _SENDERS,
        )
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(made[0].pid, os.WNOHANG)
    loop.run_once(0)
    loop.close()


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (35, "signal 35"), (63, "signal 63")])
def test_every_signal_that_can_end_an_agent_has_a_name(number: int, name: str) -> None:
    assert signal_name(number) == name
