"""From text to Config: what is accepted, its defaults, and that one problem hides no other."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config import schema
from nsbridge.config.errors import ConfigError
from nsbridge.config.kind import KINDS
from nsbridge.config.load import load, parse
from nsbridge.config.schema import (
    Config,
    Container,
    DaemonConfig,
    Delivery,
    InDoubt,
    Namespace,
    User,
    Window,
)
from nsbridge.supervisor.containers import engines

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "example.toml"
MINIMAL = """
[route.orders.agent.web]
container = "docker:web"
spool = { out = "/out" }
[route.orders.agent.legacy]
container = "runc:legacy"
queue = { in = { key = 0x4d2 } }
"""
# as the project's interface document shows it
INTERFACE = """
[daemon]
state_dir = "/run/nsbridge"           # journals, dead letters, pid file, control socket
control   = { path = "/run/nsbridge/control.sock", mode = "0660", group = "root", read_group = "adm" }
log       = { file = "/var/log/nsbridge.log", level = "info", format = "text", max_bytes = "50MB", backups = 10 }

[route.orders]
delivery  = "exactly-once"            # or "at-least-once"
in_doubt  = "resend"                  # or "skip"
window    = { messages = 1024, bytes = "4MB" }
autostart = true

[route.orders.agent.web]              # the agent orders:web
container = "docker:web"
spool     = { out = "/var/spool/orders/out", in = "/var/spool/orders/in" }

[route.orders.agent.legacy]           # the agent orders:legacy
container = "runc:legacy"
queue     = { in = { key = 0x4d2, type = 1 }, out = { key = 0x4d2, type = 2 }, create = true, mode = "0660" }
"""


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.toml")
    return caught.value.problems


def test_configuration_of_the_interface_is_read_as_it_is_meant() -> None:
    config = parse(INTERFACE, "f.toml")

    assert config.daemon.log.file == "/var/log/nsbridge.log"
    assert config.daemon.log.max_bytes == 50_000_000
    (route,) = config.routes
    assert (route.name, route.delivery, route.in_doubt) == ("orders", Delivery.EXACTLY_ONCE, InDoubt.RESEND)
    assert route.window == Window(messages=1024, bytes=4_000_000)
    web, legacy = route.agents
    assert web.name == "orders:web"
    assert web.container == Container(engines.docker.KIND, "web")
    assert web.endpoint == SpoolEndpoint(out="/var/spool/orders/out", in_="/var/spool/orders/in")
    assert legacy.endpoint == QueueEndpoint(
        out=QueueOut(key=0x4D2, type=2), in_=QueueIn(key=0x4D2, type=1), create=True, mode=0o660
    )


def test_whatever_is_left_out_has_the_default_of_the_schema() -> None:
    config = parse(MINIMAL, "f.toml")

    assert config.daemon == DaemonConfig()
    (route,) = config.routes
    defaults = schema.RouteConfig(route.name, route.agents)
    assert route == defaults
    assert route.agents[0].endpoint == SpoolEndpoint(out="/out")
    assert route.agents[1].endpoint == QueueEndpoint(in_=QueueIn(key=0x4D2))
    assert route.agents[0].user is None


@pytest.mark.parametrize("text", ["", "\n", "[daemon]\n", "[route]\n", "\ufeff# saved by an editor with a mark\n"])
def test_configuration_without_routes_is_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text, encoding="utf-8")

    assert load(str(path)) == Config(DaemonConfig(), (), str(path))


def test_windows_line_ends_are_read() -> None:
    assert parse(MINIMAL.replace("\n", "\r\n"), "f.toml") == parse(MINIMAL, "f.toml")


def test_source_is_kept_by_parse_and_made_absolute_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.toml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)

    assert parse(MINIMAL, "").source == ""
    assert load("f.toml").source == str(tmp_path / "f.toml")


def test_user_ftok_key_and_namespace_are_read() -> None:
    text = MINIMAL.replace("0x4d2", '{ path = "/etc/x", proj = 7 }').replace(
        'container = "d', 'user = "5:6"\ncontainer = "d'
    )
    web, legacy = parse(text, "f.toml").routes[0].agents

    assert web.user == User(5, 6)
    assert isinstance(legacy.endpoint, QueueEndpoint)
    assert legacy.endpoint.in_ == QueueIn(key=FtokKey("/etc/x", 7))
    assert (web.namespace, legacy.namespace) == (schema.Namespace.MNT, schema.Namespace.IPC)


def test_example_is_valid_and_installed_beside_the_code() -> None:
    config = load(str(EXAMPLE))

    assert {route.name for route in config.routes} == {
        "orders",
        "rates",
        "access",
        "remote",
        "syslog",
        "ticks",
        "alarms",
    }
    assert resources.files("nsbridge.config").joinpath("example.toml").read_text() == EXAMPLE.read_text()


SCHEMA_TABLES = (
    schema.DaemonConfig,
    schema.ControlConfig,
    schema.DeadConfig,
    schema.LogConfig,
    schema.HealthConfig,
    schema.Window,
)


def tables_of(kind: type) -> Iterator[type]:
    """Yield a kind's table and all tables within it."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for cls in typing.get_args(hint):
            if dataclasses.is_dataclass(cls) and isinstance(cls, type):
                yield from tables_of(cls)


def keys_of_table(table: type) -> set[str]:
    return {field.name.rstrip("_") for field in dataclasses.fields(table)}


KEYS_OF_KINDS = {name: set().union(*map(keys_of_table, tables_of(kind))) for name, kind in KINDS.items()}
EVERY_KEY = set().union(*map(keys_of_table, SCHEMA_TABLES)) | {
    field.name for field in dataclasses.fields(schema.RouteConfig) if field.name not in ("name", "agents")
}


def keys_of(value: object) -> set[str]:
    if not isinstance(value, dict):
        return set()
    return set(value) | {key for inner in value.values() for key in keys_of(inner)}


def test_example_shows_every_key() -> None:
    shown = keys_of(tomllib.loads(EXAMPLE.read_text()))

    assert (EVERY_KEY | {"user", "container"}) - shown == set()


@pytest.mark.parametrize("kind", KINDS)
def test_example_shows_every_kind_with_all_its_keys(kind: str) -> None:
    example = tomllib.loads(EXAMPLE.read_text())
    agents = [agent for route in example["route"].values() for agent in route["agent"].values()]
    shown = keys_of({str(count): agent[kind] for count, agent in enumerate(agents) if kind in agent})

    assert KEYS_OF_KINDS[kind] - shown == set()


@pytest.mark.parametrize("kind", KINDS)
def test_reference_documents_every_kind_with_all_its_keys(kind: str) -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text()
    _, begun, after = reference.partition(f"\n### `{kind}`")
    assert begun, f"a section for {kind}"
    section = re.split(r"\n##+ ", after)[0]

    assert [key for key in KEYS_OF_KINDS[kind] if not re.search(rf"[`.]{key}`", section)] == []


def test_reference_documents_every_key() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text()

    # a queue's keys stand with their end there, like `out.type`
    assert [key for key in EVERY_KEY if f"`{key}`" not in reference and f".{key}`" not in reference] == []


def test_line_is_as_documented() -> None:
    text = MINIMAL.replace('"/out"', '"spool"')

    (problem,) = problems(text)
    assert problem == (
        'f.toml: route.orders.agent.web.spool.out: must be an absolute path, got "spool"; '
        'write it from the root, like "/var/spool/orders/out"'
    )


def test_unknown_key_comes_with_the_nearest_and_all_known_ones() -> None:
    text = "[route.orders]\ndelivry = 1\n" + MINIMAL

    (problem,) = problems(text)
    assert problem == (
        'f.toml: route.orders.delivry: unknown key; did you mean "delivery"? '
        "known here: agent, autostart, delivery, fsync, in_doubt, window"
    )


def test_unknown_endpoint_is_reported_with_the_known_ones() -> None:
    text = MINIMAL.replace("spool = {", "pipe = {")

    known = "container, file, log, mqueue, nats, queue, socket, spool, user"
    assert problems(text) == (f"f.toml: route.orders.agent.web.pipe: unknown key; known here: {known}",)


def test_log_has_lines_unless_its_framing_says_otherwise() -> None:
    lines = parse(MINIMAL.replace("spool = {", "log = {"), "f.toml")
    lengths = parse(MINIMAL.replace("spool = {", 'log = { framing = "length", max_message = "1MiB",'), "f.toml")

    assert lines.routes[0].agents[0].endpoint == LogEndpoint(out="/out")
    assert lengths.routes[0].agents[0].endpoint == LogEndpoint("/out", framing=Framing.LENGTH, max_message=1 << 20)
    assert lines.routes[0].agents[0].namespace is Namespace.MNT


def test_number_given_as_a_mode_is_explained() -> None:
    (problem,) = problems(MINIMAL.replace('out = "/out"', 'out = "/out", mode = 660'))

    assert "TOML reads numbers as decimal" in problem


def test_bare_octal_is_explained() -> None:
    (problem,) = problems("[daemon]\ncontrol = { mode = 0660 }\n")

    assert re.match(r"f\.toml: line 2, column \d+: is not TOML: ", problem)
    assert 'put a mode in quotes, like "0660"' in problem


def test_table_declared_twice_is_named_and_the_rest_is_checked() -> None:
    found = problems(MINIMAL + "[route.orders.agent.web]\nx = 1\n[route.orders.agent.legacy]\n[deamon]\n")

    assert [line.split(";")[0] for line in found] == [
        "f.toml: route.orders.agent.web: is declared a second time at line 8, column 24",
        "f.toml: route.orders.agent.legacy: is declared a second time at line 10, column 27",
        "f.toml: deamon: unknown key",
    ]


def test_wrong_detail_does_not_hide_that_a_queue_hears_itself() -> None:
    found = problems(MINIMAL.replace("in = { key = 0x4d2 }", "in = { key = 1 }, out = { key = 1 }, mode = 5, x = 1"))

    assert [line.split(": ")[1].rpartition("queue.")[2] for line in found] == ["mode", "x", "out", "in"]


def test_wrong_essential_key_causes_no_further_problems() -> None:
    found = problems(MINIMAL.replace("in = { key = 0x4d2 }", "in = { key = 0x4d2, tipe = 3 }"))

    assert [line.split(": ")[1] for line in found] == ["route.orders.agent.legacy.queue.in.tipe"]


def test_file_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"

    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert caught.value.problems == (
        f"{path}: cannot be read: No such file or directory; name a file that is there and readable (-c FILE)",
    )


@pytest.mark.parametrize("path", ["/", "/tmp/\0", "", "/proc/self/mem"])
def test_unreadable_file_is_a_configuration_error(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert "cannot be read" in problem
    assert problem.isprintable()


def test_deeply_nested_header_is_a_configuration_error() -> None:
    assert problems(f"[{'.'.join(['a'] * 20_000)}]")


def test_many_tables_declared_twice_end_in_an_error() -> None:
    assert 50 < len(problems("[daemon]\n" * 200)) < 60


def test_ctl_needs_neither_the_loader_nor_cattrs() -> None:
    code = (
        "import sys, nsbridge.config.errors, nsbridge.config.schema;"
        "print([m for m in ('cattrs', 'nsbridge.config.load') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_quota_of_dead_letters_is_read() -> None:
    """Every key; and what is left out has its default."""
    text = 'dead = { max_bytes = "64MB", max_letters = 10000, when_full = "block", max_age = "30d" }'
    read = parse(f"[daemon]\n{text}\n", "f.toml").daemon.dead
    assert read == schema.DeadConfig(64_000_000, 10_000, schema.WhenFull.BLOCK, 30 * 86400.0)
    assert parse('[daemon]\ndead = { when_full = "drop-oldest" }\n', "f.toml").daemon.dead.when_full == "drop-oldest"
    assert parse("", "f.toml").daemon.dead == schema.DeadConfig()


@pytest.mark.parametrize("endpoint", ["spool", "log", "file"])
def test_message_that_no_peer_takes_is_refused(endpoint: str) -> None:
    """The wire carries 64 MiB. The source offered a longer message again and again (issue 13, F17)."""
    text = MINIMAL.replace('spool = { out = "/out" }', f'{endpoint} = {{ out = "/out", max_message = "%s" }}')
    parse(text % "64MiB", "f.toml")
    (problem,) = problems(text % "100MB")
    assert f"route.orders.agent.web.{endpoint}.max_message: is out of range" in problem
    assert "a message has at most 64 MiB" in problem
