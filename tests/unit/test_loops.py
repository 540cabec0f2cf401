"""Flows that feed each other, among agents that serve in namespaces and report the places of their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nsbridge.agents import places
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.loop import Loop
from nsbridge.config.advice import advice
from nsbridge.config.schema import (
    AgentConfig,
    Config,
    Container,
    DaemonConfig,
    Delivery,
    Evidence,
    HealthConfig,
    LogConfig,
    RouteConfig,
)
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.routes import loops
from nsbridge.supervisor.routes.loops import Circles, Serving
from nsbridge.supervisor.routes.route import Route

ONE, TWO = Container(engines.runc.KIND, "one"), Container(engines.runc.KIND, "two")
SHARED = 7  # inode of a namespace
FTOK = FtokKey("/key", 1)
LOG_OUT, LOG_IN = LogEndpoint(out="/a/x"), LogEndpoint(in_="/b/x")


def route(
    one: object, two: object, name: str = "r", delivery: Delivery = Delivery.EXACTLY_ONCE, other: Container = TWO
) -> RouteConfig:
    agents = (AgentConfig(f"{name}:one", ONE, one), AgentConfig(f"{name}:two", other, two))  # type: ignore[arg-type]
    return RouteConfig(name, agents, delivery)


def serve(
    of: RouteConfig, namespaces: Sequence[int] = (SHARED, SHARED), reported: Sequence[object] = ({}, {})
) -> list[Serving]:
    return [Serving(of, agent, ns, said) for agent, ns, said in zip(of.agents, namespaces, reported, strict=True)]


def taking(key: int | FtokKey, mtype: int = 0) -> QueueEndpoint:
    return QueueEndpoint(out=QueueOut(key, mtype))


def putting(key: int | FtokKey, mtype: int | None = None) -> QueueEndpoint:
    return QueueEndpoint(in_=QueueIn(key, mtype))


@pytest.mark.parametrize(
    ("out", "in_", "is_loop"),
    [
        (taking(1), putting(1), True),
        (taking(1), putting(2), False),
        (taking(1, 5), putting(1), True),
        (taking(1, 5), putting(1, 5), True),
        (taking(1, 5), putting(1, 6), False),
        (taking(1, -5), putting(1, 5), True),
        (taking(1, -5), putting(1, 6), False),
    ],
)
def test_queue_loop_needs_the_same_key_and_type(out: QueueEndpoint, in_: QueueEndpoint, is_loop: bool) -> None:
    """A type that is not set stays what it was, so it is taken again."""
    assert bool(loops.in_route(serve(route(out, in_)))) == is_loop
    assert not loops.in_route(serve(route(out, in_), (SHARED, SHARED + 1)))
    assert not loops.in_route(serve(route(out, in_))[:1])


def test_key_of_a_path_is_what_its_agent_says() -> None:
    of = route(taking(FTOK), putting(0x51))
    assert loops.in_route(serve(of, reported=({"out": [str(0x51)]}, {"in": ["9"]})))
    assert not loops.in_route(serve(of, reported=({"out": [str(0x52)]}, {})))
    assert not loops.in_route(serve(of))


@pytest.mark.parametrize(
    "said", [None, 7, {"out": "x"}, {"out": [1]}, {"out": ["x"] * 5}, {"out": ["x" * 65]}, {"out": [""]}]
)
def test_malformed_report_of_an_agent_is_ignored(said: object) -> None:
    """It may be compromised."""
    assert not places.parse(said)
    assert not loops.in_route(serve(route(LOG_OUT, LOG_IN), reported=(said, {"in": ["x"]})))


def test_files_are_one_by_inode_or_by_name_in_a_directory() -> None:
    of = route(LOG_OUT, LOG_IN)
    assert loops.in_route(serve(of, (1, 2), ({"out": ["8:1/aa", "8:2"]}, {"in": ["9:1/aa", "8:2"]})))
    assert loops.in_route(serve(of, (1, 2), ({"out": ["8:1/aa"]}, {"in": ["8:1/aa", "8:2"]})))
    assert not loops.in_route(serve(of, (1, 2), ({"out": ["8:1/aa"]}, {"in": ["8:1/bb"]})))


def test_agent_that_would_receive_its_own_messages_is_refused() -> None:
    """Two keys are equal but written in two ways."""
    both = QueueEndpoint(out=QueueOut(FTOK), in_=QueueIn(0x51))
    of = route(both, SpoolEndpoint(out="/o", in_="/i"))
    assert "takes them" in loops.in_route(serve(of, reported=({"out": [str(0x51)], "in": [str(0x51)]}, {})))


def test_known_circle_is_refused_and_reported_one_is_warned_of() -> None:
    """One agent that lies about its ends must stop no other route."""
    warned: list[str] = []

    def warn(_name: str, text: str) -> None:
        warned.append(text)

    circles = Circles()
    assert circles.ready("r:one", serve(route(taking(1), putting(2))), warn) == ""
    assert circles.ready("s:one", serve(route(taking(2), putting(3), "s")), warn) == ""
    assert "circulate endlessly" in circles.ready("t:two", serve(route(taking(3), putting(1), "t")), warn)
    circles.forget("s")
    assert circles.ready("t:two", serve(route(taking(3), putting(1), "t")), warn) == ""
    reported: list[object] = [{"out": [str(2)]}, {}]
    for _ in range(2):
        assert circles.ready("s:one", serve(route(taking(FTOK), putting(3), "s"), reported=reported), warn) == ""
    assert len([line for line in warned if "circulate" in line]) == 1


def test_exact_routes_into_one_queue_are_warned_of_once() -> None:
    """The warning comes from `advice` if the containers are written alike, else when the agents run."""
    warned: list[str] = []
    circles = Circles()
    spool = SpoolEndpoint(out="/o")
    first, second = route(spool, putting(1)), route(spool, putting(1), "s")
    loose = route(spool, putting(1), "l", Delivery.AT_LEAST_ONCE)
    elsewhere = route(spool, putting(1), "e", other=ONE)
    assert advice(Config(DaemonConfig(), (first, loose, elsewhere))) == []
    (line,) = advice(Config(DaemonConfig(), (first, second)))
    assert line.startswith("s:two: r:two sends into queue 0x1 of runc:two too")
    for of in (first, loose, second, second, first):
        circles.ready(of.agents[1].name, serve(of), lambda name, text: warned.append(f"{name}: {text}"))
    assert warned == [line]


def test_counted_routes_into_one_queue_are_not_warned_of() -> None:
    """The kernel's count is of one process; other senders do not matter."""
    warned: list[str] = []
    spool = SpoolEndpoint(out="/o")
    routes = [route(spool, putting(1)), route(spool, putting(1), "s")]
    assert advice(Config(DaemonConfig(evidence=Evidence.COUNTER), tuple(routes))) == []
    circles = Circles()
    for of in routes:
        serving = [replace(one, is_counted=True) for one in serve(of)]
        circles.ready(of.agents[1].name, serving, lambda _name, text: warned.append(text))
    assert not warned


def test_route_whose_container_has_ended_feeds_nobody(tmp_path: Path) -> None:
    """The kernel gives the number of a namespace that has gone to the next one: to that of another container."""
    loop, log = Loop(), open_log(LogConfig(file=str(tmp_path / "log")))
    services = Services(loop, log, Events(), str(tmp_path), Arrivals(loop, log), HealthConfig())
    hub, circles = Container(engines.runc.KIND, "hub"), Circles()
    routes = [
        Route(services, route(putting(1), taking(2), "evil", other=hub), circles, lambda _agent: None),
        Route(services, route(taking(1), putting(2), "honest", other=hub), circles, lambda _agent: None),
    ]
    evil, honest = routes
    try:
        _serve_in(evil, 7, 8)
        evil.agents[0].state, evil.agents[0].attachment.ns_inode = State.WAITING, None
        evil.changed(evil.agents[0], State.RUNNING)
        _serve_in(honest, 7, 8)
        warned: list[str] = []
        agent = honest.agents[0].config.name
        assert circles.ready(agent, honest._serving(), lambda _name, text: warned.append(text)) == ""
        assert warned == []
    finally:
        for made in routes:
            made.close()
        loop.close()
        log.close()


def _serve_in(of: Route, *namespaces: int) -> None:
    """Have both agents of a route serve in these."""
    for agent, namespace in zip(of.agents, namespaces, strict=True):
        agent.state, agent.attachment.ns_inode = State.RUNNING, namespace
        of.changed(agent, State.STARTING)
