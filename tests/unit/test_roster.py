"""Routes under any sequence of reloads and of ends: real ones, whose end the test decides about."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueOut
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import (
    AgentConfig,
    Config,
    Container,
    DaemonConfig,
    HealthConfig,
    LogConfig,
    RouteConfig,
    Window,
)
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.routes.loops import Circles
from nsbridge.supervisor.routes.plan import compare, may_meet
from nsbridge.supervisor.routes.roster import AT_ONCE, Roster
from nsbridge.supervisor.routes.route import Route


def route(name: str, key: int, messages: int = 1, *, autostart: bool = True) -> RouteConfig:
    """Return a route whose containers are not there, so an agent that is started is WAITING."""
    agents = (
        AgentConfig(
            f"{name}:queue", Container(engines.pidfile.KIND, f"/nonexistent/{key}"), QueueEndpoint(out=QueueOut(key))
        ),
        AgentConfig(f"{name}:file", Container(engines.runc.KIND, f"no-{name}"), FileEndpoint(in_="/srv/in")),
    )
    return RouteConfig(name, agents, window=Window(messages=messages), autostart=autostart)


class SlowRoute(Route):
    """Hands over until the test says that it is done; its agents have no process, so they have stopped already."""

    def __init__(self, services: Services, config: RouteConfig, on_change: Callable[[ManagedAgent], None]) -> None:
        super().__init__(services, config, Circles(), on_change)
        self.started = False
        self.done = False
        self.closed = 0
        self.on_release: Callable[[Route], None] = lambda _route: None

    def release(self) -> None:
        self.on_release(self)
        self.started = True
        super().release()

    def is_stopped(self) -> bool:
        return super().is_stopped() and (self.done or not self.started)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Later:
    """Calls that the loop would make in its next turn."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def turn(self) -> None:
        while self.due:
            self.due.pop(0)()


class Daemon:
    """A roster with all that it needs, and every route that it ever made."""

    def __init__(self, log_file: str) -> None:
        self.loop = Loop()
        self.log = open_log(LogConfig(file=log_file))
        self.later = Later()
        self.made: list[SlowRoute] = []
        self.full = False  # no descriptors
        self.config = Config(DaemonConfig(), ())
        self._services = Services(
            self.loop, self.log, Events(), "/nonexistent/state", Arrivals(self.loop, self.log), HealthConfig()
        )
        self.roster = Roster(self.later, self.log, self._make, lambda: None)

    def _make(self, config: RouteConfig) -> Route:
        if self.full:
            raise OSError(24, "Too many open files")
        made = SlowRoute(self._services, config, lambda _agent: self.roster.changed())
        made.on_release = self._check_release
        self.made.append(made)
        return made

    def _check_release(self, route: Route) -> None:
        """Assert that no route is left that it may meet."""
        for old in self.leaving():
            if old.started and not old.done:
                assert not may_meet(old.config, route.config), (old.config, route.config)

    def reload(self, *routes: RouteConfig) -> None:
        plan = compare(self.config, Config(DaemonConfig(), routes))
        self.config = plan.config
        self.roster.adopt(plan)
        self.later.turn()

    def leaving(self) -> list[SlowRoute]:
        return [route for route in self.made if route.is_leaving and not route.closed]

    def finish(self, route: SlowRoute) -> None:
        """Let it hand over, and its agents end."""
        route.done = True
        self.roster.changed()
        self.later.turn()

    def states(self) -> dict[str, State]:
        return {agent.config.name: agent.state for agent in self.roster.agents}

    def agent(self, name: str) -> ManagedAgent:
        return next(agent for agent in self.roster.agents if agent.config.name == name)

    def close(self) -> None:
        self.roster.close()
        self.log.close()
        self.loop.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(str(tmp_path / "log"))
    yield made
    made.close()


def test_a_changed_route_is_followed_only_when_it_has_ended(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    (old,) = daemon.made
    daemon.reload(route("a", 1, messages=2))
    assert daemon.roster.routes == {"a": old}
    assert set(daemon.states().values()) == {State.STOPPED}
    daemon.finish(old)
    assert old.closed == 1
    assert daemon.roster.routes["a"].config.window.messages == 2
    assert set(daemon.states().values()) == {State.WAITING}


def test_many_routes_start_a_few_at_a_time(daemon: Daemon) -> None:
    """The daemon serves between the turns; the configuration's order is the order of starts."""
    daemon.roster.adopt(compare(daemon.config, Config(DaemonConfig(), tuple(route(f"r{n}", n) for n in range(10)))))
    started = []
    while daemon.later.due:
        started.append([made.config.name for made in daemon.made if made.started])
        assert not daemon.roster.is_settled
        daemon.later.due.pop(0)()
    assert [len(names) for names in started] == [AT_ONCE, 2 * AT_ONCE]
    assert started[0] == [f"r{n}" for n in range(AT_ONCE)]
    assert daemon.roster.is_settled
    assert set(daemon.states().values()) == {State.WAITING}


def test_end_stops_the_start_of_many_routes(daemon: Daemon) -> None:
    daemon.roster.adopt(compare(daemon.config, Config(DaemonConfig(), tuple(route(f"r{n}", n) for n in range(10)))))
    daemon.roster.end()
    daemon.later.turn()
    assert sum(made.started for made in daemon.made) == AT_ONCE


def test_a_moved_queue_is_not_taken_before_the_old_route_ended(daemon: Daemon) -> None:
    daemon.reload(route("a", 1), route("far", 9))
    old, far = daemon.made
    daemon.reload(route("b", 1), route("far", 9, messages=2), route("free", 5))
    assert daemon.agent("b:queue").state is State.STOPPED, "it may meet a"
    assert daemon.agent("free:queue").state is State.WAITING, "it meets nobody"
    daemon.finish(far)
    assert daemon.agent("b:queue").state is State.STOPPED
    daemon.finish(old)
    assert daemon.agent("b:queue").state is State.WAITING


def test_a_held_route_does_not_start_for_anybody_but_remembers(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    (old,) = daemon.made
    daemon.reload(route("b", 1, autostart=False))
    daemon.agent("b:queue").start()
    assert daemon.agent("b:queue").state is State.STOPPED
    daemon.finish(old)
    assert daemon.states() == {"b:queue": State.WAITING, "b:file": State.STOPPED}


def test_stopped_agents_stay_stopped_after_a_change(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    daemon.agent("a:queue").stop()
    daemon.reload(route("a", 1, messages=2))
    daemon.finish(daemon.made[0])
    assert daemon.states() == {"a:queue": State.STOPPED, "a:file": State.WAITING}


def test_start_and_stop_count_for_the_one_that_follows(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    daemon.agent("a:queue").stop()
    daemon.reload(route("a", 1, messages=2))
    daemon.agent("a:queue").start()
    daemon.agent("a:file").stop()
    daemon.finish(daemon.made[0])
    assert daemon.states() == {"a:queue": State.WAITING, "a:file": State.STOPPED}


def test_an_agent_with_a_new_name_is_wanted_as_its_route_was(daemon: Daemon) -> None:
    daemon.reload(route("a", 1, autostart=False))
    for messages, expected in ((2, State.STOPPED), (3, State.WAITING)):
        old = daemon.made[-1]
        renamed = route("a", 1, messages)
        first, second = renamed.agents
        agents = (AgentConfig(f"a:new{messages}", first.container, first.endpoint), second)
        daemon.reload(RouteConfig("a", agents, window=renamed.window))
        if expected is State.WAITING:
            daemon.agent("a:file").start()
        daemon.finish(old)
        assert daemon.agent(f"a:new{messages}").state is expected


def test_a_route_that_returns_while_ending_follows_itself(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    (old,) = daemon.made
    daemon.reload()
    assert daemon.roster.is_going(old)
    daemon.reload(route("a", 1))
    assert not daemon.roster.is_going(old)
    daemon.finish(old)
    assert daemon.roster.routes["a"] is not old
    assert set(daemon.states().values()) == {State.WAITING}


def test_only_the_last_of_several_reloads_counts(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    (old,) = daemon.made
    for messages in (2, 3, 4):
        daemon.reload(route("a", 1, messages))
    daemon.finish(old)
    assert [made.config.window.messages for made in daemon.made] == [1, 4]


def test_a_route_for_which_there_was_no_descriptor_is_made_later(daemon: Daemon) -> None:
    daemon.full = True
    plan = compare(daemon.config, Config(DaemonConfig(), (route("a", 1),)))
    daemon.roster.adopt(plan)
    assert daemon.roster.routes == {}
    assert "route a cannot be made" in daemon.log.ring.recent()[-1].message
    daemon.full = False
    daemon.later.turn()
    assert set(daemon.states().values()) == {State.WAITING}


def test_nothing_starts_once_the_daemon_is_stopping(daemon: Daemon) -> None:
    daemon.reload(route("a", 1))
    daemon.reload(route("a", 1, messages=2), route("b", 2))
    daemon.roster.end()
    daemon.finish(daemon.made[0])
    assert [made.config.name for made in daemon.made] == ["a", "b"]


def test_a_released_route_leaves_nothing_for_the_collector(daemon: Daemon) -> None:
    """The collector never looks at frozen objects (gc.freeze): each reload would leave a circle for good."""
    daemon.reload(route("a", 1))
    old = weakref.ref(daemon.made.pop())
    agents = [weakref.ref(agent) for agent in daemon.roster.agents]
    gc.disable()
    try:
        daemon.reload()
        gone = old()
        assert gone is not None
        daemon.finish(gone)
        del gone
        daemon.loop.run_once(0)  # what is due now may still know of it
        assert old() is None
        assert [agent() for agent in agents] == [None, None]
    finally:
        gc.enable()


class AnyReloads(RuleBasedStateMachine):
    """Configurations come and routes end in any order."""

    log_file = ""

    def __init__(self) -> None:
        super().__init__()
        self.daemon = Daemon(self.log_file)

    def teardown(self) -> None:
        self.daemon.close()

    @rule(
        routes=st.dictionaries(
            st.sampled_from("abcd"), st.tuples(st.integers(1, 2), st.integers(1, 2), st.booleans()), max_size=4
        )
    )
    def reload(self, routes: dict[str, tuple[int, int, bool]]) -> None:
        self.daemon.reload(*(route(name, key, size, autostart=auto) for name, (key, size, auto) in routes.items()))

    @precondition(lambda self: self.daemon.leaving())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.daemon.finish(data.draw(st.sampled_from(self.daemon.leaving())))

    @rule(data=st.data(), start=st.booleans())
    def order(self, data: st.DataObject, start: bool) -> None:
        if agents := self.daemon.roster.agents:
            agent = data.draw(st.sampled_from(agents))
            agent.start() if start else agent.stop()

    @invariant()
    def one_route_has_one_name(self) -> None:
        names = [made.config.name for made in self.daemon.made if not made.closed]
        assert len(names) == len(set(names))

    @invariant()
    def when_nothing_is_leaving_all_is_as_it_was_asked_for(self) -> None:
        if self.daemon.leaving():
            return
        asked = {one.name: one for one in self.daemon.config.routes}
        assert {name: made.config for name, made in self.daemon.roster.routes.items()} == asked
        assert list(self.daemon.roster.routes) == list(asked)
        assert self.daemon.roster.is_settled
        for agent in self.daemon.roster.agents:
            assert agent.state is (State.WAITING if agent.wanted else State.STOPPED)
        assert all(made.closed == 1 for made in self.daemon.made if made.is_leaving)


def test_any_sequence_of_reloads_ends_as_configured(tmp_path: Path) -> None:
    AnyReloads.log_file = str(tmp_path / "log")
    run_state_machine_as_test(AnyReloads, settings=settings(max_examples=50, stateful_step_count=25, deadline=None))
