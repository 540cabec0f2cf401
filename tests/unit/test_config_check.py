"""The rules that span keys: loops, shared sources, directions; what is close to each of them and allowed."""

from __future__ import annotations

import pytest

from nsbridge.config.check import selectors_overlap, selects
from nsbridge.config.errors import ConfigError
from nsbridge.config.load import parse

SPOOL_BOTH = 'spool = { out = "/out", in = "/in" }'
SPOOL_IN = 'spool = { in = "/in" }'
SPOOL_OUT = 'spool = { out = "/out" }'


def route(name: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    """Return a route of agents x and y, each a container and an endpoint."""
    return "".join(
        f'[route.{name}.agent.{agent}]\ncontainer = "{container}"\n{endpoint}\n'
        for agent, (container, endpoint) in (("x", one), ("y", other))
    )


def found(text: str) -> list[str]:
    """Return the key paths that have problems; empty if none has."""
    try:
        parse(text, "f")
    except ConfigError as error:
        return [problem.split(": ")[1] for problem in error.problems]
    return []


def queue(out: str = "", in_: str = "") -> str:
    ends = [f"out = {{ {out} }}"] * bool(out) + [f"in = {{ {in_} }}"] * bool(in_)
    return f"queue = {{ {', '.join(ends)} }}"


@pytest.mark.parametrize(
    ("selector", "message_type", "taken"),
    [(0, 1, True), (0, 99, True), (5, 5, True), (5, 4, False), (-5, 5, True), (-5, 1, True), (-5, 6, False)],
)
def test_selector_takes_what_msgrcv_takes(selector: int, message_type: int, taken: bool) -> None:
    assert selects(selector, message_type) is taken


def test_selectors_overlap_where_some_type_is_taken_by_both() -> None:
    for one in range(-6, 7):
        for other in range(-6, 7):
            both = any(selects(one, kind) and selects(other, kind) for kind in range(1, 20))
            assert selectors_overlap(one, other) is both, (one, other)


@pytest.mark.parametrize(
    ("out", "in_"),
    [
        ("key = 1", "key = 1, type = 9"),
        ("key = 1, type = 2", "key = 1, type = 2"),
        ("key = 1, type = -2", "key = 1, type = 2"),
        ("key = 1, type = -2", "key = 1"),
        ("key = 1, type = 1", "key = 1"),
        ("key = 1, type = -9223372036854775808", "key = 1, type = 9223372036854775807"),
        ('key = { path = "/x", proj = 1 }', 'key = { path = "/x", proj = 1 }'),
        ('key = { path = "/x", proj = 1 }', 'key = { path = "//x/", proj = 1 }'),
    ],
)
def test_queue_that_would_hear_itself_is_refused(out: str, in_: str) -> None:
    assert found(route("r", ("docker:aa", queue(out, in_)), ("docker:bb", SPOOL_BOTH))) == ["route.r.agent.x.queue.in"]


@pytest.mark.parametrize(
    ("out", "in_"),
    [
        ("key = 1", "key = 2"),
        ("key = 1, type = 2", "key = 1, type = 1"),
        ("key = 1, type = 2", "key = 1"),
        ("key = 1, type = -2", "key = 1, type = 3"),
        ('key = { path = "/x", proj = 1 }', 'key = { path = "/x", proj = 2 }'),
    ],
)
def test_queue_that_hears_only_others_is_accepted(out: str, in_: str) -> None:
    assert found(route("r", ("docker:aa", queue(out, in_)), ("docker:bb", SPOOL_BOTH))) == []


def test_queue_facing_a_queue_needs_its_own_type_if_it_takes() -> None:
    across = ("docker:bb", queue("key = 3", "key = 4"))
    text = route("r", ("docker:aa", queue("key = 1, type = 2", "key = 1")), across)

    assert found(text) == ["route.r.agent.x.queue.in"]
    with pytest.raises(ConfigError, match='write a "type" that it does not take'):
        parse(text, "f")
    assert found(route("r", ("docker:aa", queue("key = 1, type = 2", "key = 1, type = 1")), across)) == []
    assert found(route("r", ("docker:aa", queue("key = 1, type = 2", "key = 9")), across)) == []


def test_queue_loop_is_not_reported_if_the_peer_is_unclear() -> None:
    across = ("docker:bb", f"{queue('key = 3', 'key = 4')}\n{SPOOL_BOTH}")

    assert found(route("r", ("docker:aa", queue("key = 1, type = 2", "key = 1")), across)) == ["route.r.agent.y"]


def test_queue_fed_by_one_route_and_taken_by_another_is_refused() -> None:
    feeds = route("a", ("docker:aa", queue(in_="key = 1, type = 5")), ("docker:bb", SPOOL_OUT))
    takes = route("b", ("docker:aa", queue("key = 1")), ("docker:bb", SPOOL_IN))

    assert found(feeds + takes) == ["route.a.agent.x.queue.in"]
    assert found(takes + feeds) == ["route.a.agent.x.queue.in"]
    assert found(feeds + takes.replace("docker:aa", "podman:aa")) == []


def test_two_queues_of_one_container_in_one_route_must_differ() -> None:
    assert found(route("r", ("docker:aa", queue("key = 1")), ("docker:aa", queue(in_="key = 1, type = 1")))) == [
        "route.r.agent.y.queue.in"
    ]


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 7), (7, 7), (-7, 7), (-1, -9)])
def test_queue_from_which_two_agents_take_one_type_is_refused(one: int, other: int) -> None:
    text = route("a", ("docker:aa", queue(f"key = 1, type = {one}")), ("docker:bb", SPOOL_IN)) + route(
        "b", ("docker:aa", queue(f"key = 1, type = {other}")), ("docker:bb", SPOOL_IN)
    )

    assert found(text) == ["route.b.agent.x.queue.out"]


def test_queue_from_which_two_agents_take_two_types_is_accepted() -> None:
    text = route("a", ("docker:aa", queue("key = 1, type = 1")), ("docker:bb", SPOOL_IN)) + route(
        "b", ("docker:aa", queue("key = 1, type = 2")), ("docker:bb", SPOOL_IN)
    )

    assert found(text) == []


@pytest.mark.parametrize(("one", "other"), [("/out", "/out"), ("/out", "/out/"), ("//out/.", "/out")])
def test_directory_that_two_agents_take_from_is_refused(one: str, other: str) -> None:
    first = route("a", ("docker:aa", f'spool = {{ out = "{one}" }}'), ("docker:bb", SPOOL_IN))
    second = route("b", ("docker:aa", f'spool = {{ out = "{other}" }}'), ("docker:bb", SPOOL_IN))

    assert found(first + second) == ["route.b.agent.x.spool.out"]
    assert found(first + second.replace("docker:aa", "docker:cc")) == []


def test_file_that_two_agents_take_from_is_refused() -> None:
    taken = 'file = { out = "/f" }'
    text = "".join(route(name, ("host", taken), ("docker:bb", SPOOL_IN)) for name in "ab")

    assert found(text) == ["route.b.agent.x.file.out"]


def test_directory_taken_and_written_by_one_route_is_refused() -> None:
    loop = route("r", ("docker:aa", 'spool = { out = "/s" }'), ("docker:aa", 'spool = { in = "/s" }'))
    first = route("a", ("docker:bb", SPOOL_OUT), ("docker:aa", 'spool = { in = "/s" }'))
    second = route("b", ("docker:aa", 'spool = { out = "/s" }'), ("docker:cc", SPOOL_IN))

    assert found(loop) == ["route.r.agent.y.spool.in"]
    assert found(loop.replace("docker:aa", "docker:bb", 1)) == []
    assert found(first + second) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (SPOOL_OUT, SPOOL_IN, []),
        (SPOOL_IN, SPOOL_OUT, []),
        (SPOOL_BOTH, SPOOL_BOTH, []),
        (SPOOL_BOTH, SPOOL_OUT, ["route.r.agent.x.spool.out"]),
        (SPOOL_BOTH, SPOOL_IN, ["route.r.agent.x.spool.in"]),
        (SPOOL_IN, SPOOL_IN, ["route.r.agent.x.spool.in", "route.r.agent.y.spool.in"]),
        (SPOOL_OUT, SPOOL_OUT, ["route.r.agent.x.spool.out", "route.r.agent.y.spool.out"]),
        ("spool = {}", SPOOL_IN, ["route.r.agent.x.spool"]),
        ("spool = {}", "file = {}", ["route.r.agent.x.spool", "route.r.agent.y.file"]),
    ],
)
def test_every_end_needs_its_counterpart_across(one: str, other: str, expected: list[str]) -> None:
    assert found(route("r", ("docker:aa", one), ("docker:bb", other))) == expected


@pytest.mark.parametrize(
    ("container", "endpoint", "expected"),
    [
        ("ns:/proc/5/ns/mnt", SPOOL_OUT, []),
        ("ns:/proc/5/ns/ipc", queue("key = 1"), []),
        ("ns:/run/netns/web", SPOOL_OUT, []),
        ("ns:/proc/5/ns/ipc", SPOOL_OUT, ["route.r.agent.x.container"]),
        ("ns:/proc/5/ns/mnt", queue("key = 1"), ["route.r.agent.x.container"]),
        ("ns:/run/x/pid_for_children", queue("key = 1"), ["route.r.agent.x.container"]),
    ],
)
def test_namespace_file_must_be_of_the_endpoint_s_kind(container: str, endpoint: str, expected: list[str]) -> None:
    assert found(route("r", (container, endpoint), ("docker:bb", SPOOL_IN))) == expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ('spool = { out = "/a", in = "/b", done = "/a" }', ["route.r.agent.x.spool.done"]),
        ('spool = { out = "/a", in = "/b", done = "/b/" }', ["route.r.agent.x.spool.done"]),
        ('spool = { out = "/a", in = "/a" }', ["route.r.agent.x.spool.in"]),
        ('file = { out = "/a", in = "/./a" }', ["route.r.agent.x.file.in"]),
        ('spool = { out = "/a", in = "/b", done = "/a/done" }', []),
    ],
)
def test_paths_of_one_endpoint_must_differ(endpoint: str, expected: list[str]) -> None:
    assert found(route("r", ("docker:aa", endpoint), ("docker:bb", SPOOL_BOTH))) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('match = ["*.xml"]', 'match = ["*.csv"]'),
        ('match = ["*.xml"]', 'ignore = ["*.xml"]'),
        ('match = ["[a-m]*"]', 'match = ["[n-z]*"]'),
    ],
)
def test_one_spool_with_two_sets_of_names_is_accepted(one: str, other: str) -> None:
    text = route("a", ("docker:aa", f'spool = {{ out = "/o", {one} }}'), ("docker:bb", SPOOL_IN))
    text += route("b", ("docker:aa", f'spool = {{ out = "//o/", {other} }}'), ("docker:bb", SPOOL_IN))

    assert found(text) == []


def test_name_that_two_routes_would_take_is_shown() -> None:
    text = route("a", ("docker:aa", 'spool = { out = "/o", match = ["*.xml"] }'), ("docker:bb", SPOOL_IN))
    text += route("b", ("docker:aa", 'spool = { out = "/o", match = ["ORDER-*"] }'), ("docker:bb", SPOOL_IN))

    with pytest.raises(ConfigError, match=r'both would take a file "ORDER-\.xml"'):
        parse(text, "f")
