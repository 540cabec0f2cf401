"""One agent hands over what another takes: refused if containers share a namespace or a mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_queue_faults import KEY, OTHER, agent


@contextmanager
def two_of_one(one: EngineContainer) -> Iterator[tuple[str, str]]:
    """Yield the container and a second one that shares its ipc namespace, as nsbridge finds them."""
    program = ["nsenter", f"--target={one.pid}", "--ipc", "--", "sleep", "1000"]
    with subprocess.Popen(program) as second:
        inside = os.stat(f"/proc/{one.pid}/ns/ipc").st_ino
        wait_until(lambda: os.stat(f"/proc/{second.pid}/ns/ipc").st_ino == inside, "the second is inside")
        try:
            yield f"pid:{one.pid}", f"pid:{second.pid}"
        finally:
            second.kill()


@pytest.mark.parametrize("types", [("", ""), (", type = 3", ", type = 3")], ids=["any", "type"])
def test_shared_ipc_namespace_with_one_queue_is_fatal(
    tmp_path: Path, unshare_container: Factory, types: tuple[str, str]
) -> None:
    """Each message would come back endlessly. The supervisor detects the loop before an agent takes anything."""
    with two_of_one(unshare_container()) as (one, two):
        routes = "[route.r]\n" + agent("one", one, f"queue = {{ out = {{ key = {KEY}{types[0]} }}, create = true }}")
        routes += agent("two", two, f"queue = {{ in = {{ key = {KEY}{types[1]} }}, create = true }}")
        with Nsbridged(tmp_path, routes) as daemon:
            daemon.wait_for("FATAL", "r:two")
            daemon.wait_for("FATAL")
            for name in ("r:one", "r:two"):
                assert "r:two would put messages where r:one takes them" in daemon.agents()[name]["detail"]
            assert daemon.flow("r:one")["delivered"] == 0


def test_shared_ipc_namespace_with_other_types_is_served(tmp_path: Path, unshare_container: Factory) -> None:
    """One queue with two types is no loop."""
    with two_of_one(unshare_container()) as (one, two):
        routes = "[route.r]\n" + agent("one", one, f"queue = {{ out = {{ key = {KEY}, type = 3 }}, create = true }}")
        routes += agent("two", two, f"queue = {{ in = {{ key = {KEY}, type = 4 }}, create = true }}")
        with Nsbridged(tmp_path, routes) as daemon:
            daemon.wait_for("RUNNING")


@pytest.mark.parametrize("kind", ["log", "spool", "file"])
def test_shared_mount_with_one_place_is_fatal(tmp_path: Path, unshare_container: Factory, kind: str) -> None:
    """The same directory under two names in two containers; the file need not be there yet."""
    shared = tmp_path / "shared"
    shared.mkdir()
    one, two = unshare_container(), unshare_container()
    for container, name in ((one, "/srv/a"), (two, "/srv/b")):
        container.exec(["mkdir", name])
        container.exec(["mount", "--bind", str(shared), name])
    routes = "[route.r]\n" + agent("one", one, f'{kind} = {{ out = "/srv/a/x" }}')
    routes += agent("two", two, f'{kind} = {{ in = "/srv/b/x" }}')
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("FATAL")
        assert "r:two would put messages where r:one takes them" in daemon.agents()["r:two"]["detail"]


def one_way(name: str, source: str, out: int, sink: str, in_: int) -> str:
    """Return a route of that name between two queues."""
    return (
        f'[route.{name}]\n[route.{name}.agent.a]\ncontainer = "{source}"\n'
        f"queue = {{ out = {{ key = {out} }}, create = true }}\n"
        f'[route.{name}.agent.b]\ncontainer = "{sink}"\nqueue = {{ in = {{ key = {in_} }}, create = true }}\n'
    )


def test_circle_through_two_routes_is_refused(tmp_path: Path, unshare_container: Factory) -> None:
    """The agent that closes it, where the supervisor itself knows every queue."""
    with two_of_one(unshare_container()) as (one, two), two_of_one(unshare_container()) as (out, back):
        routes = one_way("r", one, KEY, out, OTHER) + one_way("s", back, OTHER, two, KEY)
        with Nsbridged(tmp_path, routes) as daemon:
            wait_until(lambda: "FATAL" in states(daemon), "one route is refused")
            assert "messages would circulate endlessly" in daemon.said()
            assert "RUNNING" in states(daemon)


def states(daemon: Nsbridged) -> set[str]:
    return {agent["state"] for agent in daemon.agents().values()}


def test_two_exact_routes_into_one_queue_are_warned_of(tmp_path: Path, unshare_container: Factory) -> None:
    """--check and the start warn if the names are equal, else the log does later. The kind: evidence overwritten."""
    with two_of_one(unshare_container()) as (one, two):
        files = unshare_container()
        routes = from_spool("r", files, one) + from_spool("s", files, two)
        with Nsbridged(tmp_path, routes, 'evidence = "senders"') as daemon:
            daemon.wait_for("RUNNING")
            wait_until(lambda: "neither can find out after a kill" in daemon.said(), "it is warned of")
        assert Nsbridged(tmp_path, "").said().count("neither can find out after a kill") == 1


def from_spool(name: str, files: EngineContainer, queue: str) -> str:
    """Return a route of that name from a spool into a queue."""
    return (
        f'[route.{name}]\n[route.{name}.agent.a]\ncontainer = "{files.spec}"\nspool = {{ out = "/srv/{name}" }}\n'
        f'[route.{name}.agent.b]\ncontainer = "{queue}"\nqueue = {{ in = {{ key = {KEY} }}, create = true }}\n'
    )
