"""Signs of life: what an agent writes, and what its supervisor makes of it, on a clock that only the test moves."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.agents import linux, scoreboard
from nsbridge.agents.fork import fork
from nsbridge.agents.heartbeat import Debt, Heart
from nsbridge.agents.loop import Loop
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.config.schema import (
    HealthConfig,
    Window,
)
from nsbridge.supervisor.health import check as healthcheck
from nsbridge.supervisor.health import processes as health
from nsbridge.supervisor.health.check import HealthCheck
from nsbridge.supervisor.host import procfs, usage
from nsbridge.supervisor.host.usage import Usage
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from tests.agent_life import FakeChild

HEALTH = HealthConfig(deadline=15.0)


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    made.close()


# -- the agent's side


def test_a_debt_counts_from_the_last_moment_without_one(clock: Clock) -> None:
    debt = Debt(clock)
    clock.time = 1005.0
    assert debt.since(owes=True) == 1000.0
    assert debt.since(owes=False) == 1005.0
    clock.time = 1007.0
    assert debt.since(owes=True) == 1005.0
    debt.clear()
    clock.time = 1009.0
    assert debt.since(owes=True) == 1007.0


def test_heartbeat_reports_longest_stalled_thread(loop: Loop, clock: Clock) -> None:
    """It looks at every beat; it writes the beat itself in any case."""
    page = Scoreboard()
    heart = Heart(loop, page.cells, 3.0)
    heart.start()
    assert page.cells[scoreboard.PROGRESS] == 0, "there is nothing beside the loop"
    owed = [clock.time, clock.time]
    for number in (0, 1):
        heart.vouch(lambda number=number: owed[number])  # type: ignore[misc]
    owed[1] = 900.0
    before = page.cells[scoreboard.BEAT]
    clock.time += 3.0
    loop.run_once(0)
    assert page.cells[scoreboard.PROGRESS] == 900 * 10**9
    assert page.cells[scoreboard.BEAT] > before
    assert page.last_sign() == 900.0


def test_a_new_agent_has_time_from_its_birth_on_and_no_old_debts() -> None:
    page = Scoreboard()
    page.cells[scoreboard.PROGRESS] = 1
    page.begin()
    assert page.last_sign() == page.cells[scoreboard.BEAT] / 1e9 > 1


# -- the supervisor's side


class FakeAgent:
    """The part of a ManagedAgent that the check uses."""

    def __init__(self, clock: Clock, number: int = 0) -> None:
        self.config = SimpleNamespace(name=f"r:{number}")
        self.state = State.RUNNING
        self.child = FakeChild(number)
        self.process: Any = AgentProcess(self.child, None, 0.0)  # type: ignore[arg-type]
        self.scoreboard = Scoreboard()
        self.beat_every = HEALTH.beat_every
        self.senders: list[int] = []
        self.uptime = 0.0  # too young to be looked at for its size
        self._clock = clock
        self.beat()

    def beat(self) -> None:
        self.scoreboard.cells[scoreboard.BEAT] = int(self._clock.time * 1e9)


class FakeLog:
    """Keeps its records."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def error(self, _name: str, message: str) -> None:
        self.said.append(message)

    def log_repeats(self) -> None:
        """Do nothing: there are none."""


class Scene:
    """A check over some agents, whose time is moved."""

    def __init__(self, loop: Loop, clock: Clock, count: int = 2) -> None:
        self._loop, self._clock = loop, clock
        self.log = FakeLog()
        self.agents = [FakeAgent(clock, number) for number in range(count)]
        services = Services(loop, self.log, Events(), "", None, health=HEALTH)  # type: ignore[arg-type]
        self.wakeups = 0
        self.check = HealthCheck(services, self)  # type: ignore[arg-type]
        self.check.start()

    @property
    def routes(self) -> dict[str, Any]:
        """Return the routes as a Roster has them."""
        self.wakeups += 1
        return {"r": SimpleNamespace(agents=self.agents, note_blocked=lambda: None)}

    def at(self, second: float, *beating: int) -> None:
        """Move the clock to that many seconds after the start; these agents beat just before."""
        self._clock.time = 1000.0 + second
        for number in beating:
            self.agents[number].beat()
        self._loop.run_once(0)

    @property
    def killed(self) -> list[int]:
        return [agent.child.pid for agent in self.agents if agent.child.killed]


@pytest.fixture
def scene(loop: Loop, clock: Clock) -> Scene:
    return Scene(loop, clock)


def test_a_silent_agent_is_killed_within_the_deadline(scene: Scene) -> None:
    for second in range(1, 10):
        scene.at(second, 1)
    assert scene.killed == []
    scene.at(9.95, 1)
    assert scene.killed == []
    scene.at(10.0, 1)
    assert scene.killed == [0]
    assert scene.agents[0].process.last_words == "wedged: no heartbeat for 10.0 s"


def test_the_check_is_due_when_the_most_silent_would_be_late(scene: Scene, clock: Clock, loop: Loop) -> None:
    """Not at the next of a row of rounds: that would be after the deadline."""
    scene.at(2.0, 0, 1)
    scene.at(5.0, 0)  # a round; agent 1 would be late at 12, the next round is at 10
    scene.at(10.0, 0)
    assert scene.killed == []
    scene.at(12.0, 0)
    assert scene.killed == [1]


def test_who_is_always_nearly_late_costs_no_more_looks(scene: Scene, clock: Clock, loop: Loop) -> None:
    """A compromised agent writes what it likes: 1 ms before it would be late, all the time."""
    page, scene.wakeups = scene.agents[0].scoreboard.cells, 0
    for step in range(1, 10_001):
        clock.time = 1000.0 + step / 1000
        page[scoreboard.BEAT] = int((clock.time - HEALTH.patience + 0.001) * 1e9)
        scene.agents[1].beat()
        loop.run_once(0)
    assert scene.wakeups <= 102, "in 10 seconds"
    assert scene.killed == []


def test_an_owed_step_counts_as_silence_though_the_loop_beats(scene: Scene) -> None:
    scene.agents[0].scoreboard.cells[scoreboard.PROGRESS] = 1000 * 10**9
    for second in (3, 6, 9, 10):
        scene.at(second, 0, 1)
    assert scene.killed == [0]
    assert "the work beside its loop has made no progress for 10.0 s" in scene.agents[0].process.last_words


def test_time_in_which_the_supervisor_slept_does_not_count(scene: Scene) -> None:
    scene.at(60.0)
    assert scene.killed == []
    scene.at(65.0, 1)
    scene.at(69.9, 1)
    assert scene.killed == []
    scene.at(70.0, 1)
    assert scene.killed == [0]


def test_who_stops_or_has_no_process_owes_nothing(scene: Scene) -> None:
    scene.agents[0].state = State.STOPPING
    scene.agents[1].process = None
    for second in range(1, 40):
        scene.at(second)
    assert scene.killed == []


def test_a_wedged_agent_is_killed_once_and_reported_as_stuck(scene: Scene) -> None:
    for second in (5, 10, 10.5, 15.5, 20.5):
        scene.at(second, 1)
    assert [line.partition(":")[0] for line in scene.log.said] == ["wedged", "pid 0 was killed and does not end"]
    assert "stuck in the kernel" in healthcheck.wedged(scene.agents[0], 1020.5)  # type: ignore[arg-type]


def test_idle_agents_cost_one_wakeup_in_five_seconds(loop: Loop, clock: Clock) -> None:
    """However many there are."""
    scene = Scene(loop, clock, 100)
    scene.wakeups = 0
    for step in range(1, 601):
        scene.at(step / 10, *(range(100) if step % 30 == 0 else ()))
    assert scene.killed == []
    assert scene.wakeups <= 60 / 5 + 1


def test_status_calls_an_agent_wedged_when_a_beat_fails_to_come(scene: Scene, clock: Clock) -> None:
    agent: Any = scene.agents[0]
    assert healthcheck.wedged(agent, clock.time + 1.5 * HEALTH.beat_every - 0.01) == ""
    assert healthcheck.wedged(agent, clock.time + 1.5 * HEALTH.beat_every + 0.01) == "wedged: no heartbeat for 7.5 s"


def test_excess_is_reported_with_the_numbers() -> None:
    assert healthcheck.excess(Usage(1000, 10), 1000, 10) == ""
    assert healthcheck.excess(Usage(2_500_000, 10), 1_000_000, 10) == "2.5 MB of memory, 1.0 MB are allowed"
    assert healthcheck.excess(Usage(1000, 11), 1000, 10) == "11 descriptors, 10 are allowed"


def test_an_agent_with_many_children_is_killed_unread(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading thousands of processes would take the supervisor seconds; a healthy agent has two at most."""
    agent, asked = scene.agents[0], list[int]()
    agent.uptime, agent.route = 60.0, SimpleNamespace(window=Window(), agents=())  # type: ignore[attr-defined]
    monkeypatch.setattr(healthcheck, "allowed_memory", lambda *_: 1 << 40)
    monkeypatch.setattr(procfs, "children", lambda _pid: set(range(1, 4)))
    monkeypatch.setattr(usage, "is_hollow", lambda _pid: False)
    monkeypatch.setattr(usage, "at_most", asked.append)
    monkeypatch.setattr(usage, "about", lambda _pids: None)
    for second in range(5, 70, 5):
        scene.at(second, 0, 1)
    assert scene.killed == [0]
    assert asked == []
    assert "more than 2 children" in agent.process.last_words


def test_own_memory_is_measured_apart_from_what_a_fork_shares() -> None:
    """A fork of this process shares nearly all its memory with it; only the exact look sees that."""

    began, begins = os.pipe()

    def wait() -> int:
        os.write(begins, b"x")  # before it runs, it has no memory of its own
        signal.pause()
        return 0

    child = fork(wait)
    try:
        os.read(began, 1)
        rough, exact = usage.at_most(child.pid), health.own_memory(child.pid)
        assert rough is not None
        assert exact is not None
        assert 100_000 < exact < rough.memory / 2
        shown = usage.about((child.pid,))
        assert shown is not None
        assert shown.memory < rough.memory / 2
        assert shown.memory > exact / 2
        assert abs(rough.descriptors - len(os.listdir("/proc/self/fd"))) <= 2
    finally:
        child.kill()
        child.reap()
        os.close(began)
        os.close(begins)
    assert usage.at_most((1 << 22) + 1) is None, "there is no such process"
    assert health.own_memory((1 << 22) + 1) is None


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_every_kind_of_memory_counts(flags: int) -> None:
    """Shared memory without a file belongs to the process alone, though `resident - shared` does not show it."""
    size = 64 << 20
    reader, writer = os.pipe()

    def take() -> int:
        taken = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
        taken.madvise(linux.MADV_POPULATE_WRITE)
        os.write(writer, b"!")
        signal.pause()
        return 0

    before = usage.at_most(os.getpid())
    child = fork(take)
    try:
        os.read(reader, 1)
        after = usage.at_most(child.pid)
        assert before is not None
        assert after is not None
        assert after.memory >= size
        exact = health.own_memory(child.pid)
        assert exact is not None
        assert size <= exact < size + (32 << 20)
    finally:
        child.kill()
        child.reap()
        os.close(reader)
        os.close(writer)


def test_page_tables_and_swap_count_too() -> None:
    status = {"RssAnon": "1 kB", "RssFile": "100 kB", "RssShmem": "2 kB", "VmSwap": "4 kB", "VmPTE": "8 kB"}
    assert usage.memory_of(status) == 15 << 10
    assert usage.memory_of({**status, "HugetlbPages": "16 kB"}) == 31 << 10


def test_status_reads_one_agent_after_the_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads the agent that was read longest ago, with its senders. It forks no child."""
    asked: list[tuple[int, ...]] = []

    def about(pids: tuple[int, ...]) -> Usage:
        asked.append(pids)
        return Usage(pids[0] + 5, 7)

    monkeypatch.setattr(usage, "about", about)
    scene.agents[1].senders = [31, 32]
    for look in range(1, 4):
        scene.at(5.0 * look, 0, 1)
    assert asked[-3:] in ([(0,), (1, 31, 32), (0,)], [(1, 31, 32), (0,), (1, 31, 32)])
    assert [agent.process.usage for agent in scene.agents] == [Usage(5, 7), Usage(6, 7)]
