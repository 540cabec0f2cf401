"""What a compromised agent says to its supervisor, and how it ends: neither may cost anybody else anything."""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Iterator

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.supervisor.process import Channel, LineBudget, signal_name

LIMIT = 10.0  # seconds
PASSES_A_SECOND = 200  # of a loop that nothing else keeps busy, at most, while one agent floods


class Heard:
    """A channel on a real loop; `said` is what the supervisor hears."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.agent.setblocking(False)
        self.said: list[dict[str, object]] = []
        self.channel = Channel(self.loop, ours, self.said.append)

    def run_until(self, count: int) -> None:
        deadline = time.monotonic() + LIMIT
        while len(self.said) < count:
            assert time.monotonic() < deadline, f"only {len(self.said)} were heard"
            self.loop.run_once(0.1)

    def flood(self) -> int:
        """As much as the socket takes; how many datagrams."""
        count = 0
        try:
            while True:
                self.agent.send(json.dumps({"say": "log", "level": "info", "text": str(count)}).encode())
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
    assert len(heard.said) == sent > 50


def test_a_descriptor_that_is_passed_does_not_arrive(heard: Heard) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as null:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 8))]
        heard.agent.sendmsg([b'{"say": "ready"}'], rights)
        heard.run_until(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_datagram_is_no_more_than_the_end(heard: Heard) -> None:
    """Whoever sends one is not heard any more; nothing spins."""
    heard.agent.send(b"")
    heard.agent.send(b'{"say": "ready"}')
    passes = 0
    started = time.monotonic()
    while time.monotonic() < started + 0.1:
        heard.loop.run_once(0.05)
        passes += 1
    assert passes < 10


def test_lines_beyond_the_budget_are_counted() -> None:
    budget = LineBudget()
    logged = sum(budget.spend(0.0) for _ in range(1000))
    assert (logged, budget.refused) == (50, 950)
    assert budget.spend(1.0)


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (35, "signal 35"), (63, "signal 63")])
def test_every_signal_that_can_end_an_agent_has_a_name(number: int, name: str) -> None:
    assert signal_name(number) == name
