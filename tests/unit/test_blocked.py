"""The watch over agents that are blocked for long (supervisor/health/blocked.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nsbridge.agents import scoreboard
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.config.schema import HealthConfig
from nsbridge.supervisor.health.blocked import END_EVERY, SOONEST, BlockedWatch, blockage
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.routes.roster import Roster
from tests.agent_life import FakeLoop

LIMIT = 60.0


class FakeAgent:
    """The part of a ManagedAgent that the watch uses."""

    def __init__(self, loop: FakeLoop, name: str, in_: str | None) -> None:
        self.config = SimpleNamespace(name=name, endpoint=SimpleNamespace(in_=in_))
        self.state = State.RUNNING
        self.wanted = True
        self.detail = ""
        self.scoreboard = Scoreboard()
        self.blocked_long = False
        self._loop = loop

    def blocks(self, reason: str) -> None:
        """Do as the agent does, at the time of the fake loop."""
        self.scoreboard.set_reason("in", reason)
        self.scoreboard.cells[scoreboard.BLOCKED] = self.now if reason else 0

    def has_pending(self, count: int) -> None:
        self.scoreboard.cells[scoreboard.PENDING] = count
        self.scoreboard.cells[scoreboard.OLDEST] = self.now if count else 0

    @property
    def now(self) -> int:
        return int(self._loop.time * 1e9)


class Scene:
    """A route from a source to a sink, watched."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.events = Events()
        self.logged: list[str] = []
        self.source = FakeAgent(self.loop, "r:web", None)
        self.sink = FakeAgent(self.loop, "r:legacy", "/srv/in")
        self.route: Any = SimpleNamespace(agents=(self.source, self.sink))
        self.roster: Any = SimpleNamespace(routes={"r": self.route})
        log = SimpleNamespace(warning=self._log("WARNING"), info=self._log("INFO"))
        health = HealthConfig(max_blocked=LIMIT)
        services: Any = SimpleNamespace(loop=self.loop, log=log, events=self.events, health=health)
        self.watch = BlockedWatch(services, cast(Roster, self.roster))
        self.begun = self.loop.time
        self.watch.start()

    def _log(self, level: str) -> Any:
        return lambda name, text: self.logged.append(f"{level} {name} {text}")

    def until(self, seconds: float) -> int:
        """Let time pass up to so many seconds after the start; return how many looks that took."""
        looks = 0
        while self.loop.pending()[0].due <= self.begun + seconds:
            self.loop.fire()
            looks += 1
        self.loop.time = self.begun + seconds
        return looks

    def happened(self) -> list[tuple[str, ...]]:
        return [tuple(found.item().values())[1:] for found in self.events.ring.recent()]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_long_blockage_is_reported_once_and_in_time(scene: Scene) -> None:
    scene.until(7)
    scene.sink.blocks("queue full")
    scene.until(7 + LIMIT - 0.001)
    assert (scene.logged, scene.sink.blocked_long) == ([], False)
    scene.until(7 + LIMIT)
    assert scene.logged == ["WARNING r:legacy blocked for 0:01:00: queue full"]
    assert scene.happened() == [("r:legacy", "blocked", "blocked", "blocked_long", "for 0:01:00: queue full")]
    assert (scene.sink.blocked_long, scene.source.blocked_long) == (True, False)
    scene.until(7 + 10 * LIMIT)
    assert len(scene.logged) == 1


def test_the_end_is_reported_within_a_second(scene: Scene) -> None:
    scene.sink.blocks("queue full")
    scene.until(100)
    scene.sink.blocks("")
    scene.until(100 + END_EVERY)
    assert not scene.sink.blocked_long
    assert scene.logged[1:] == ["INFO r:legacy not blocked any more, after 0:01:41"]
    assert scene.happened()[1:] == [("r:legacy", "blocked", "blocked_long", "RUNNING", "after 0:01:41")]


def test_a_short_blockage_is_not_reported(scene: Scene) -> None:
    """Each begins anew, however often they follow each other."""
    for second in range(0, 600, 30):
        scene.until(second)
        scene.sink.blocks("queue full")
        scene.until(second + 20)
        scene.sink.blocks("")
    assert (scene.logged, scene.happened()) == ([], [])


def test_messages_for_an_agent_that_does_not_run_are_a_blockage(scene: Scene) -> None:
    scene.sink.state, scene.sink.detail = State.WAITING, "container not running since 12:03:10"
    scene.until(300)
    assert scene.logged == [], "nothing waits for it"
    scene.source.has_pending(3)
    scene.until(300 + LIMIT)
    why = "3 messages wait for it, and it is WAITING: container not running since 12:03:10"
    assert scene.logged == [f"WARNING r:legacy blocked for 0:01:00: {why}"]
    scene.sink.state = State.RUNNING
    scene.until(300 + LIMIT + 1)
    assert scene.logged[1:] == ["INFO r:legacy not blocked any more, after 0:01:01"]


def test_an_agent_that_was_stopped_on_purpose_is_not_blocked(scene: Scene) -> None:
    scene.source.has_pending(1)
    scene.sink.state, scene.sink.wanted = State.STOPPED, False
    scene.until(600)
    assert scene.logged == []


def test_nothing_blocked_costs_one_look_in_the_time_of_the_limit(scene: Scene) -> None:
    assert scene.until(100 * LIMIT) == 100


def test_an_agent_that_chooses_its_times_costs_few_looks(scene: Scene) -> None:
    """A compromised agent would be due a moment later, at each look."""
    looks = 0
    scene.sink.scoreboard.set_reason("in", "x")
    while scene.loop.time < scene.begun + 10:
        scene.sink.scoreboard.cells[scoreboard.BLOCKED] = scene.sink.now - int((LIMIT - 1e-6) * 1e9)
        scene.loop.fire()
        looks += 1
    assert looks <= 10 / SOONEST + 1


@pytest.mark.parametrize("since", [1, (1 << 64) - 1])
def test_impossible_times_end_nothing(scene: Scene, since: int) -> None:
    scene.sink.scoreboard.set_reason("in", "x")
    scene.sink.scoreboard.cells[scoreboard.BLOCKED] = since
    scene.until(10 * LIMIT)
    assert len(scene.logged) <= 1


def test_a_route_that_is_gone_is_forgotten(scene: Scene) -> None:
    scene.sink.blocks("queue full")
    scene.until(100)
    scene.roster.routes.clear()
    scene.until(200)
    assert len(scene.logged) == 1
    scene.roster.routes["r"] = scene.route
    scene.until(400)
    assert len(scene.logged) == 2


def test_a_new_limit_counts_at_once(scene: Scene) -> None:
    scene.sink.blocks("queue full")
    scene.until(10)
    scene.watch.adopt(HealthConfig(max_blocked=5.0))
    assert scene.sink.blocked_long
    assert len(scene.loop.pending()) == 1
    scene.watch.adopt(HealthConfig(max_blocked=500.0))
    scene.until(20)
    assert len(scene.logged) == 1


def test_the_scoreboard_keeps_since_when_any_side_waits(scene: Scene) -> None:
    page = Scoreboard()
    page.set_reason("out", "directory missing")
    since = page.cells[scoreboard.BLOCKED]
    assert since
    page.set_reason("in", "queue full")
    page.set_reason("out", "")
    assert page.cells[scoreboard.BLOCKED] == since
    page.set_reason("in", "")
    assert page.cells[scoreboard.BLOCKED] == 0
    page.set_reason("in", "queue full")
    page.begin()
    assert page.cells[scoreboard.BLOCKED] == 0


def test_both_sides_of_an_agent_are_in_the_reason(scene: Scene) -> None:
    agent: Any = scene.source
    agent.scoreboard.set_reason("out", "directory missing")
    agent.blocks("queue full")
    found = blockage(scene.route, agent)
    assert found is not None
    assert found.reason == "directory missing; queue full"
