"""Plan of a reload from two configurations: every kind of change, alone and together."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config import containerkind
from nsbridge.config.schema import (
    AgentConfig,
    Config,
    Container,
    ControlConfig,
    DaemonConfig,
    Delivery,
    HealthConfig,
    InDoubt,
    LogConfig,
    RouteConfig,
    User,
    Window,
)
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.routes import plan
from nsbridge.supervisor.routes.plan import compare, may_meet

WEB = Container(engines.docker.KIND, "web")
LEGACY = Container(engines.runc.KIND, "legacy")


def route(name: str, **fields: Any) -> RouteConfig:
    files = AgentConfig(f"{name}:files", WEB, SpoolEndpoint(out=f"/srv/{name}"))
    queue = AgentConfig(f"{name}:queue", LEGACY, QueueEndpoint(in_=QueueIn(0x51)))
    given: dict[str, Any] = {"agents": (files, queue)} | fields
    return RouteConfig(name, **given)


def config(*routes: RouteConfig, **daemon: Any) -> Config:
    return Config(DaemonConfig(**daemon), routes, "/etc/nsbridge/nsbridge.toml")


# -- routes

OTHER_AGENT: dict[str, Any] = {
    "name": "r:other",
    "container": Container(engines.docker.KIND, "web2"),
    "endpoint": SpoolEndpoint(out="/srv/r", done="/srv/done"),
    "user": User(1, 1),
    "follows_owner": True,
}
OTHER_ROUTE: dict[str, Any] = {
    "delivery": Delivery.AT_LEAST_ONCE,
    "in_doubt": InDoubt.SKIP,
    "window": Window(messages=1),
    "fsync": True,
}


def test_every_key_of_a_route_and_of_an_agent_is_looked_at() -> None:
    """A new key shows here: does a route with another value of it have to be restarted?"""
    assert {field.name for field in dataclasses.fields(RouteConfig)} == {*OTHER_ROUTE, "name", "agents", "autostart"}
    assert {field.name for field in dataclasses.fields(AgentConfig)} == set(OTHER_AGENT)


@pytest.mark.parametrize("key", OTHER_ROUTE)
def test_a_route_with_another_value_of_any_key_is_restarted(key: str) -> None:
    changed = dataclasses.replace(route("r"), **{key: OTHER_ROUTE[key]})
    assert compare(config(route("r")), config(changed)).restart == ("r",)


@pytest.mark.parametrize(("key", "which"), list(product(OTHER_AGENT, (0, 1))))
def test_a_route_with_one_changed_agent_is_restarted(key: str, which: int) -> None:
    agents = list(route("r").agents)
    agents[which] = dataclasses.replace(agents[which], **{key: OTHER_AGENT[key]})
    assert compare(config(route("r")), config(route("r", agents=tuple(agents)))).restart == ("r",)


def test_autostart_concerns_only_the_daemon_s_own_start() -> None:
    found = compare(config(route("r")), config(route("r", autostart=False)))
    assert (found.restart, found.unchanged) == ((), ("r",))
    assert found.config.routes[0].autostart is False, "the next reload compares with it"


def test_the_order_in_the_file_says_nothing() -> None:
    first, second = route("r").agents
    found = compare(config(route("q"), route("r")), config(route("r", agents=(second, first)), route("q")))
    assert (found.restart, found.unchanged) == ((), ("r", "q"))
    both = dataclasses.replace(route("r", agents=(second, first)), window=Window(messages=1))
    assert compare(config(route("r")), config(both)).restart == ("r",)


KINDS = ("absent", "stop", "start", "restart", "unchanged", "autostart")


@pytest.mark.parametrize("kinds", list(product(KINDS, repeat=3)), ids="-".join)
def test_each_route_is_in_the_list_of_its_own_change(kinds: tuple[str, ...]) -> None:
    named = [(f"r{number}", kind) for number, kind in enumerate(kinds)]
    before = [route(name) for name, kind in named if kind not in ("absent", "start")]
    changes: dict[str, dict[str, Any]] = {"restart": {"fsync": True}, "autostart": {"autostart": False}}
    after = [route(name, **changes.get(kind, {})) for name, kind in named if kind not in ("absent", "stop")]
    found = compare(config(*before), config(*after))
    for listed in ("stop", "start", "restart"):
        assert getattr(found, listed) == tuple(name for name, kind in named if kind == listed)
    assert found.unchanged == tuple(name for name, kind in named if kind in ("unchanged", "autostart"))


routes = st.lists(
    st.builds(
        route,
        st.sampled_from("abcde"),
        delivery=st.sampled_from(Delivery),
        window=st.builds(Window, messages=st.integers(1, 2)),
        autostart=st.booleans(),
    ),
    unique_by=lambda one: one.name,
).map(tuple)


@given(routes, routes)
def test_applying_the_plan_gives_the_new_routes(old: tuple[RouteConfig, ...], new: tuple[RouteConfig, ...]) -> None:
    found = compare(config(*old), config(*new))
    wanted = {one.name: one for one in new}
    done = {one.name: one for one in old if one.name not in found.stop}
    done |= {name: wanted[name] for name in (*found.start, *found.restart)}
    assert {name: _meaning(one) for name, one in done.items()} == {name: _meaning(one) for name, one in wanted.items()}
    for one in old:
        untouched = one.name in wanted and _meaning(one) == _meaning(wanted[one.name])
        assert (one.name in found.unchanged) == untouched
    listed = [*found.stop, *found.start, *found.restart, *found.unchanged]
    assert sorted(listed) == sorted({one.name for one in (*old, *new)})
    assert found.config == config(*new)


@given(routes)
def test_nothing_is_to_be_done_for_the_same_configuration(same: tuple[RouteConfig, ...]) -> None:
    found = compare(config(*same), config(*same))
    assert (found.stop, found.start, found.restart, found.remarks) == ((), (), (), ())


def _meaning(one: RouteConfig) -> RouteConfig:
    return dataclasses.replace(one, autostart=True)


# -- the table of the daemon itself


def test_every_key_of_daemon_reports_if_it_is_applied_at_once() -> None:
    """A new key shows here."""
    covered = plan.LIVE | plan.FIXED
    for field in dataclasses.fields(DaemonConfig):
        if field.name not in covered:
            parts = dataclasses.fields(field.default)  # type: ignore[arg-type]  # a table whose keys are listed one by one
            assert {f"{field.name}.{part.name}" for part in parts} <= covered
    assert not plan.LIVE & plan.FIXED


def test_a_key_bound_to_the_process_keeps_its_old_value() -> None:
    new = config(state_dir="/var/lib/nsbridge", control=ControlConfig(mode=0o600, read_group="operators"))
    found = compare(config(), new)
    assert found.config.daemon == DaemonConfig()
    how = "needs a restart of the daemon; the old value stays until then"
    assert found.remarks == (
        f'daemon.state_dir: "/run/nsbridge" → "/var/lib/nsbridge": {how}',
        f'daemon.control.mode: "0660" → "0600": {how}',
        f'daemon.control.read_group: "adm" → "operators": {how}',
    )


def test_the_log_s_keys_are_applied() -> None:
    found = compare(config(), config(log=LogConfig(file="/var/log/nsbridge.log", level="debug", backups=3)))
    assert found.config.daemon.log == LogConfig(file="/var/log/nsbridge.log", level="debug", backups=3)
    assert found.remarks == (
        'daemon.log.file: none → "/var/log/nsbridge.log": at once',
        'daemon.log.level: "info" → "debug": at once',
        "daemon.log.backups: 10 → 3: at once",
    )


def test_sizes_are_applied_and_the_deadline_is_not() -> None:
    """An agent beats as often as the deadline asked for when it was forked: a shorter one would be its death."""
    live = HealthConfig(max_memory=1, max_descriptors=2, max_blocked=4.0)
    found = compare(config(), config(health=dataclasses.replace(live, deadline=3.0)))
    assert found.config.daemon.health == live
    assert [remark.rpartition(": ")[2].split()[0] for remark in found.remarks] == ["needs", "at", "at", "at"]


def test_the_summary_is_one_line_and_counts_what_is_not_touched() -> None:
    old = config(route("a"), route("b"), *(route(f"same{number}") for number in range(3)))
    new = config(route("b", fsync=True), route("c"), *(route(f"same{number}") for number in range(3)))
    assert compare(old, new).summary() == "stop a; start c; restart b; 3 unchanged"
    assert compare(old, old).summary() == "5 unchanged"


# -- routes that may meet

FTOK = FtokKey("/etc/x", 1)
SPOOL, QUEUE = SpoolEndpoint(out="/srv/out", done="/srv/done"), QueueEndpoint(out=QueueOut(1), in_=QueueIn(2))


def _container(word: str) -> Container:
    kind, _, name = word.partition(":")
    return Container(containerkind.known()[kind], name)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (("docker:web", SPOOL), ("docker:web", SpoolEndpoint(out="/srv/other")), True),  # a link may lead there
        (("docker:web", SPOOL), ("docker:web", QUEUE), False),  # files and queues never are the same
        (("runc:a", SPOOL), ("runc:b", SPOOL), False),  # runc's names are its own
        (("docker:a", SPOOL), ("docker:b", SPOOL), True),  # an id and a name may be of one container
        (("docker:a", SPOOL), ("docker:b", SpoolEndpoint(out="/srv/other")), False),
        (("docker:a", SPOOL), ("pid:4711", FileEndpoint(in_="/srv//done/")), True),
        (("host", FileEndpoint(out="/x")), ("pid:1", FileEndpoint(in_="/y")), False),
        (("docker:a", QUEUE), ("pid:4711", QueueEndpoint(out=QueueOut(2))), True),
        (("docker:a", QUEUE), ("pid:4711", QueueEndpoint(out=QueueOut(3))), False),
        (("docker:a", QUEUE), ("pid:4711", QueueEndpoint(out=QueueOut(FTOK))), True),  # its number may be any
        (("runc:a", QUEUE), ("crun:a", QUEUE), True),  # crun may be asked for what runc has made, and the other way
    ],
)
def test_two_routes_may_meet_unless_they_certainly_cannot(
    one: tuple[str, Any], other: tuple[str, Any], meet: bool
) -> None:
    quiet = AgentConfig("q:q", Container(engines.runc.KIND, "quiet"), FileEndpoint(in_="/quiet"))
    loud = AgentConfig("l:l", Container(engines.runc.KIND, "loud"), FileEndpoint(in_="/loud"))
    first = RouteConfig("one", (quiet, AgentConfig("one:x", _container(one[0]), one[1])))
    second = RouteConfig("other", (AgentConfig("other:x", _container(other[0]), other[1]), loud))
    assert may_meet(first, second) is meet
    assert may_meet(second, first) is meet


def test_a_route_meets_itself() -> None:
    assert may_meet(route("r"), route("r", agents=(route("x").agents)))
