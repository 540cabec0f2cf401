"""Cost of `top` for the daemon: it remembers measurements, and bounds how much it measures at a time."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from nsbridge.supervisor.health import processes as health
from nsbridge.supervisor.health.gauges import MIN_AGE, OWN_AT_ONCE, OWN_MIN_AGE, Gauges
from nsbridge.supervisor.host.usage import Meter
from nsbridge.supervisor.lifecycle.agent import ManagedAgent


class Config:
    def __init__(self, name: str) -> None:
        self.name = name


class Agent:
    """The part of a ManagedAgent that gauges use."""

    def __init__(self, name: str, pid: int | None) -> None:
        self.config = Config(name)
        self.pid = pid
        self.senders: list[int] = []


class CountingMeter:
    """Counts how often it is asked; its processes use what it says."""

    usages = 0

    def __init__(self, pids: tuple[int, ...]) -> None:
        self.pids = pids

    def usage(self) -> tuple[float, int]:
        CountingMeter.usages += 1
        return 1.234, 1000 * len(self.pids)


class Clock:
    def __init__(self) -> None:
        self.time = 50.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    CountingMeter.usages = 0
    return Clock()


def _of(measured: Gauges, agents: list[Agent]) -> dict[str, Any]:
    """Ask as Api does, with a child that measures 100 bytes for each process; how many it measured is `owns`."""
    managed = cast(list[ManagedAgent], agents)
    due = measured.due(managed)
    measured.learn(managed, dict.fromkeys(due, 100))
    return measured.of(managed) | {"owns": len(due)}


def test_an_agent_s_processes_are_measured_together() -> None:
    agent = Agent("a:b", 7)
    agent.senders = [8, 9]
    found = _of(Gauges(Clock(), CountingMeter), [agent, Agent("c:d", None)])
    assert found["clock_s"] == 50.0
    assert found["processes"] == {"a:b": {"pids": [7, 8, 9], "at_s": 50.0, "cpu_s": 1.23, "rss": 3000, "own": 300}}
    assert found["daemon_process"]["pids"] == [os.getpid()]


def test_asking_again_at_once_costs_nothing(clock: Clock) -> None:
    measured, agents = Gauges(clock, CountingMeter), [Agent(f"a:{number}", number) for number in range(1, 400)]
    _of(measured, agents)
    assert CountingMeter.usages == 400  # with the daemon's own
    clock.time += MIN_AGE / 2
    again = _of(measured, agents)
    assert CountingMeter.usages == 400
    assert again["processes"]["a:1"]["at_s"] == 50.0  # a rate is over the time between measurements, not calls
    clock.time += MIN_AGE
    _of(measured, agents)
    assert CountingMeter.usages == 800


def test_expensive_values_are_measured_for_a_few_at_a_time(clock: Clock) -> None:
    measured, agents = Gauges(clock, CountingMeter), [Agent(f"a:{number}", number) for number in range(1, 400)]
    for _ in range(25):
        assert _of(measured, agents)["owns"] == OWN_AT_ONCE
        clock.time += 0.01
    assert CountingMeter.usages <= 2 * 400  # all that took 0.25 s
    known = _of(measured, agents)["processes"]
    assert all(process["own"] == 100 for process in known.values())
    assert _of(measured, agents)["owns"] == 0


def test_endless_requests_cause_one_measurement_a_second(clock: Clock) -> None:
    measured, agents = Gauges(clock, CountingMeter), [Agent("a:b", 1)]
    owns = 0
    for _ in range(100):
        owns += _of(measured, agents)["owns"]
        clock.time += OWN_MIN_AGE / 100
    assert owns == 2
    assert CountingMeter.usages <= 2 * (OWN_MIN_AGE / MIN_AGE + 1)


def test_a_new_process_needs_a_new_measurement(clock: Clock) -> None:
    measured, agent = Gauges(clock, CountingMeter), Agent("a:b", 1)
    _of(measured, [agent])
    agent.pid = 2
    assert _of(measured, [agent])["processes"]["a:b"]["pids"] == [2]
    assert CountingMeter.usages == 3


def test_an_agent_that_is_gone_is_not_remembered(clock: Clock) -> None:
    measured = Gauges(clock, CountingMeter)
    _of(measured, [Agent("a:b", 1)])
    assert len(measured._gauges) == 0


def test_what_cannot_be_measured_keeps_what_was_known(clock: Clock) -> None:
    measured, agent = Gauges(clock, CountingMeter), Agent("a:b", 1)
    assert _of(measured, [agent])["processes"]["a:b"]["own"] == 100
    measured.learn(cast(list[ManagedAgent], [agent]), {1: None})
    assert _of(measured, [agent])["processes"]["a:b"]["own"] == 100


def test_a_real_process_is_measured_and_a_gone_one_is_empty() -> None:
    seconds, resident = Meter((os.getpid(),)).usage()
    assert seconds > 0
    own = health.own_memory(os.getpid())
    assert own is not None
    assert resident > own > 1 << 20
    assert Meter((1 << 30,)).usage() == (0.0, 0)
    assert health.own_memory(1 << 30) is None
