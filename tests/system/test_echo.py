"""The classic echo session: unchanged C programs, files on one side and a SysV queue on the other."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, run, tool, wait_until

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
ROUND_TRIPS = 10_000
FILES = ("/srv/to_server", "/srv/to_client")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the C programs, built static so that they run in a bare root file system."""
    where = tmp_path_factory.mktemp("peers")
    for name in ("ipc_echo_server", "mnt_echo_client"):
        run([tool("cc"), "-O2", "-Wall", "-static", PEERS / f"{name}.c", "-o", where / name])
    return where


def start_pair(factory: Factory, peers: Path) -> tuple[EngineContainer, EngineContainer]:
    """Start the server's container, running it; and the client's, which waits."""
    server = factory(["/bin/server"], files={"/bin/server": peers / "ipc_echo_server"})
    client = factory(files={"/bin/client": peers / "mnt_echo_client"})
    return server, client


def assert_all_come_back(client: EngineContainer, count: int = ROUND_TRIPS) -> None:
    """Assert that the client ends when every message has come back equal, and prints its times."""
    wait_until(lambda: all((client.rootfs / path.lstrip("/")).exists() for path in FILES), "the bridge makes the files")
    done = client.exec(["/bin/client", "/srv", str(count), "64"])
    assert re.match(rb"rtt_us p50 [0-9.]+ .* round-trips/s\n", done.stdout), done.stdout


@contextmanager
def bridge(server: EngineContainer, client: EngineContainer) -> Iterator[subprocess.Popen[bytes]]:
    """Run `nsbridge bridge` in the foreground."""
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridge", "bridge"]
    paths = [f"/proc/{server.pid}/ns/ipc", f"/proc/{client.pid}/ns/mnt", "--out", FILES[0], "--in", FILES[1]]
    with subprocess.Popen([*command, *paths], stderr=subprocess.PIPE) as program:
        try:
            yield program
        finally:
            program.kill()


def test_bridge_carries_10000_round_trips_for_runc_containers(runc_container: Factory, peers: Path) -> None:
    """Ctrl-C ends it well."""
    server, client = start_pair(runc_container, peers)
    with bridge(server, client) as program:
        assert_all_come_back(client)
        program.send_signal(signal.SIGINT)
        assert program.wait(LIMIT) == 0


def test_bridge_ends_with_a_reason_when_a_container_does(runc_container: Factory, peers: Path) -> None:
    """A namespace that was given by its path does not come back."""
    server, client = start_pair(runc_container, peers)
    with bridge(server, client) as program:
        assert_all_come_back(client, 1)  # both agents are inside
        server.kill()
        _, said = program.communicate(timeout=LIMIT)
        assert program.returncode == 1
        assert said.splitlines()[-1].startswith(b"nsbridge: bridge:queue: container not running")


def test_nsbridged_carries_10000_round_trips_for_docker_names(
    tmp_path: Path, docker_container: Factory, peers: Path
) -> None:
    """A configuration names them so: docker:NAME."""
    server, client = start_pair(docker_container, peers)
    routes = (
        f'[route.echo]\n[route.echo.agent.web]\ncontainer = "{client.spec}"\n'
        f'file = {{ out = "{FILES[0]}", in = "{FILES[1]}", mode = "0666" }}\n'
        f'[route.echo.agent.legacy]\ncontainer = "{server.spec}"\n'
        "queue = { in = { key = 0x4d2, type = 1 }, out = { key = 0x4d2, type = 2 } }\n"
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        assert_all_come_back(client)
        daemon.wait_delivered("echo:web", ROUND_TRIPS)
        daemon.wait_delivered("echo:legacy", ROUND_TRIPS)


@pytest.mark.parametrize(
    "paths",
    [("/proc/999999999/ns/ipc", "/proc/999999999/ns/mnt"), ("/proc/self/ns/ipc", "/proc/self/ns/mnt"), ("mnt", "ipc")],
    ids=["no such process", "the host's own", "swapped"],
)
def test_nsbridge_bridge_with_a_wrong_path_ends_with_one_reason(
    paths: tuple[str, str], unshare_container: Factory
) -> None:
    """It does not wait for what cannot come."""
    there = unshare_container()
    named = [path if path.startswith("/") else f"/proc/{there.pid}/ns/{path}" for path in paths]
    done = run([sys.executable, "-m", "nsbridge.supervisor.cli.nsbridge", "bridge", *named], check=False, timeout=10)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith(b"nsbridge: ")] != []
    assert b"Traceback" not in done.stderr
