"""The readers of single values, each at its edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nsbridge.config import values
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.problems import InvalidValue, Problem, dotted, nearest, quoted, shown
from nsbridge.config.schema import Container, Delivery, User
from nsbridge.supervisor.containers import engines


def refused(reader: Callable[[object], object], value: object) -> str:
    with pytest.raises(InvalidValue) as caught:
        reader(value)
    return f"{caught.value.what}; {caught.value.fix}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (4096, 4096),
        ("1B", 1),
        ("8kB", 8_000),
        ("50MB", 50_000_000),
        ("50 MB", 50_000_000),
        ("1GB", 10**9),
        ("2TB", 2 * 10**12),
        ("1KiB", 1024),
        ("4MiB", 4 << 20),
        ("3GiB", 3 << 30),
        ("1TiB", 1 << 40),
        ((1 << 63) - 1, (1 << 63) - 1),
    ],
)
def test_size_is_read(value: object, expected: int) -> None:
    assert values.size(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        1 << 63,
        True,
        1.0,
        None,
        [],
        {},
        "",
        "5",
        "MB",
        "5M",
        "5mb",
        "5KB",
        "-5MB",
        "1.5MB",
        "0B",
        "5MB ",
        "\u0663MB",
    ],
)
def test_what_is_no_size_is_refused(value: object) -> None:
    refused(values.size, value)


@pytest.mark.parametrize(("value", "expected"), [("0660", 0o660), ("660", 0o660), ("0000", 0), ("0777", 0o777)])
def test_mode_is_read(value: str, expected: int) -> None:
    assert values.mode(value) == expected


@pytest.mark.parametrize("value", ["", "0", "66", "0o660", "0888", "1777", "rw-r--r--", " 660", 0o660, 660, True, None])
def test_what_is_no_mode_is_refused(value: object) -> None:
    refused(values.mode, value)


@pytest.mark.parametrize("value", [1, 0x4D2, (1 << 31), (1 << 32) - 1])
def test_queue_key_is_read(value: int) -> None:
    assert values.queue_key(value) == value


def test_key_zero_is_refused_as_ipc_private() -> None:
    assert "IPC_PRIVATE" in refused(values.queue_key, 0)


def test_key_of_thousands_of_digits_is_refused() -> None:  # str() of such a number raises
    assert "too large" in refused(values.queue_key, 1 << 100_000)
    assert "out of range" in refused(values.size, 1 << 100_000)


def test_negative_key_is_refused_with_the_same_bits_as_a_fix() -> None:
    assert refused(values.queue_key, -1).endswith("0xffffffff")
    assert refused(values.queue_key, -(1 << 31) - 1).endswith("keys have 32 bits")


@pytest.mark.parametrize("value", [1 << 32, 1 << 100, True, 1.0, "0x4d2", None])
def test_what_is_no_key_is_refused(value: object) -> None:
    refused(values.queue_key, value)


@pytest.mark.parametrize("name", ["a", "orders", "a.b", "_x", "0", "A-Z_9", "x" * 64])
def test_name_is_read(name: str) -> None:
    assert values.agent_name(name) == name
    assert values.route_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a:b", "a/b", "ä", "a\n", "x" * 65])
def test_what_is_no_name_is_refused(name: str) -> None:
    refused(values.agent_name, name)
    refused(values.route_name, name)


def test_route_named_all_is_refused_but_an_agent_may_be() -> None:
    assert "nsbridgectl" in refused(values.route_name, "all")
    assert values.agent_name("all") == "all"


@pytest.mark.parametrize("name", ["/", "/a", "/a/.b", "/a..b", "/…", "/" + "x" * 4094])
def test_path_is_read(name: str) -> None:
    assert values.path(name) == name


@pytest.mark.parametrize("name", ["", "a", "./a", "~/a", "/..", "/a/../b", "/a/..", "/a\0", "/" + "x" * 4095, 5, None])
def test_what_is_no_path_is_refused(name: object) -> None:
    refused(values.path, name)


def test_socket_path_is_measured_in_bytes_against_sun_path() -> None:
    assert values.socket_path("/" + "x" * 106)
    assert "108 bytes" in refused(values.socket_path, "/" + "x" * 107)
    assert "109 bytes" in refused(values.socket_path, "/" + "ä" * 54)


@pytest.mark.parametrize(
    ("value", "kind", "name"),
    [
        ("docker:web", engines.docker.KIND, "web"),
        ("docker:shop_web.1-a", engines.docker.KIND, "shop_web.1-a"),
        ("docker:" + "0123456789abcdef" * 4, engines.docker.KIND, "0123456789abcdef" * 4),
        ("podman:w", engines.podman.KIND, "w"),
        ("runc:_a+b.c-d", engines.runc.KIND, "_a+b.c-d"),
        ("runc:...", engines.runc.KIND, "..."),
        ("crun:a b:c", engines.crun.KIND, "a b:c"),
        ("pid:1", engines.pid.KIND, "1"),
        ("pidfile:/run/x.pid", engines.pidfile.KIND, "/run/x.pid"),
        ("ns:/proc/1/ns/mnt", engines.ns.KIND, "/proc/1/ns/mnt"),
        ("host", engines.host.KIND, ""),
    ],
)
def test_container_is_read_and_written_back(value: str, kind: ContainerKind, name: str) -> None:
    assert values.container(value) == Container(kind, name)
    assert str(values.container(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        ":",
        "web",
        "docker",
        "docker:",
        "Docker:web",
        "lxc:../web",
        "docker:w",
        "docker:-web",
        "docker:a/b",
        "docker:web\n",
        "podman:",
        "podman:.a",
        "podman:a b",
        "runc:.",
        "runc:..",
        "runc:-a",
        "runc:a/b",
        "runc:a,b",
        "crun:",
        "crun:..",
        "crun:-a",
        "crun:a/b",
        "crun:a\0b",
        "pid:",
        "pid:0",
        "pid:01",
        "pid:-1",
        "pid:self",
        "pid:\uff11",
        "pidfile:x",
        "pidfile:",
        "ns:/proc/../x",
        "host:",
        "host:host",
        5,
        None,
        ["docker:web"],
    ],
)
def test_what_is_no_container_is_refused(value: object) -> None:
    refused(values.container, value)


def test_misspelt_kind_comes_with_the_nearest() -> None:
    assert 'did you mean "docker:web"?' in refused(values.container, "dokcer:web")


def test_user_is_read() -> None:
    assert values.user("1000:0") == User(1000, 0)
    assert values.user("owner") == values.OWNER
    assert values.user("4294967294:4294967294") == User((1 << 32) - 2, (1 << 32) - 2)


@pytest.mark.parametrize("value", ["", "1000", "1000:", ":", "root:root", "-1:0", "4294967295:0", "0:4294967295", 1000])
def test_what_is_no_user_is_refused(value: object) -> None:
    refused(values.user, value)


@pytest.mark.parametrize("value", [0, 1, None, "true", 1.0])
def test_what_only_looks_like_a_boolean_is_refused(value: object) -> None:
    refused(values.boolean, value)


@pytest.mark.parametrize("value", [True, False, "5", 5.0, None, 0, 256])
def test_what_is_no_integer_in_range_is_refused(value: object) -> None:
    refused(values.integer(1, 255), value)


def test_member_is_read_and_others_come_with_the_nearest() -> None:
    assert values.member(Delivery)("exactly-once") is Delivery.EXACTLY_ONCE
    assert 'did you mean "exactly-once"?' in refused(values.member(Delivery), "exactly_once")


@pytest.mark.parametrize("value", ["root", "adm", "_apt", "1000", "www-data", "machine$"])
def test_group_is_read(value: str) -> None:
    assert values.group(value) == value


@pytest.mark.parametrize("value", ["", "a:b", "a b", "-x", "a\n", 0])
def test_what_is_no_group_is_refused(value: object) -> None:
    refused(values.group, value)


def test_key_path_quotes_only_what_toml_would() -> None:
    assert dotted(("route", "a-b_C9", "x.y", "", 'q"')) == 'route.a-b_C9."x.y".""."q\\""'


def test_problem_is_one_line_whatever_it_is_made_of() -> None:
    line = Problem(("a\nb", "\x1b[0m"), "x\u2028y", "z\r").line("f\n.toml")

    assert line == 'f\\n.toml: "a\\nb"."\\x1b[0m": x\\u2028y; z\\r'


def test_problem_without_a_source_still_says_what_it_is_about() -> None:
    assert Problem((), "is wrong", "fix it").line("") == "configuration: is wrong; fix it"


def test_value_is_shown_short() -> None:
    assert shown("x" * 1000) == '"' + "x" * 80 + '…"'
    assert len(shown(1 << 100_000)) < 100
    values_of_toml: tuple[object, ...] = (True, 5, 1.5, [], {})
    assert [shown(value) for value in values_of_toml] == ["true", "5", "1.5", "an array", "a table"]
    assert quoted('a\\"') == '"a\\\\\\""'


def test_nearest_key_is_found_in_any_case_and_nothing_far_off() -> None:
    assert nearest("Delivery", ("delivery", "window")) == "delivery"
    assert nearest("colour", ("delivery", "window")) is None


@pytest.mark.parametrize("pattern", ["*.tmp", "draft-?", "[a-z]*", "ä*", "*", " "])
def test_patterns_of_names_are_taken_as_they_are(pattern: str) -> None:
    assert values.name_pattern(pattern) == pattern


@pytest.mark.parametrize("wrong", ["", "a/b", "a\0b", "x" * 256, 5, None])
def test_what_is_no_pattern_of_a_name_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidValue):
        values.name_pattern(wrong)
