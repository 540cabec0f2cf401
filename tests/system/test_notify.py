"""sd_notify: what a service manager hears of the real daemon over a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT
from tests.system.test_relay import route


class ServiceManager:
    """Listens as systemd does; `address` as NOTIFY_SOCKET has it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(LIMIT)

    def close(self) -> None:
        self._socket.close()

    def next(self) -> dict[str, str]:
        """Return the next datagram."""
        lines = self._socket.recv(65536).decode().splitlines()
        self.said.append(dict(line.split("=", 1) for line in lines))
        return self.said[-1]

    def falls_silent(self, seconds: float) -> bool:
        """Read what is on its way first; True when nothing has come for so long, False if it never ends."""
        self._socket.settimeout(seconds)
        try:
            for _ in range(20):
                self.next()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(LIMIT)
        return False

    def wait_for(self, **wanted: str) -> dict[str, str]:
        """Wait until a datagram has these fields; earlier ones do not count."""
        while True:
            said = self.next()
            if wanted.items() <= said.items():
                return said


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@nsbridge-test-{os.getpid()}"
    with closing(ServiceManager(address)) as listening:
        yield listening


@contextmanager
def started(daemon: Nsbridged, manager: ServiceManager, **env: str) -> Iterator[int]:
    """Start the daemon as systemd does; yield its pid."""
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "-c", str(daemon.config)]
    given = os.environ | {"NOTIFY_SOCKET": manager.address} | env
    with subprocess.Popen(["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", *command], env=given) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT)


def test_a_manager_hears_of_the_whole_life(tmp_path: Path, manager: ServiceManager, runc_container: Factory) -> None:
    """READY with a sentence, the sentence again when an agent waits, the reload with its clock, and the end."""
    web, legacy = runc_container(), runc_container()
    daemon = Nsbridged(tmp_path, route(web.spec, legacy.spec))
    with started(daemon, manager) as pid:
        ready = manager.next()
        assert (ready["READY"], ready["MAINPID"]) == ("1", str(pid))
        assert "of 2 agents running" in ready["STATUS"]
        if ready["STATUS"] != "2 of 2 agents running":
            manager.wait_for(STATUS="2 of 2 agents running")
        legacy.stop()
        manager.wait_for(STATUS="1 of 2 agents running; r:queue waits for its container")
        before = time.monotonic_ns() // 1000
        os.kill(pid, signal.SIGHUP)
        reloading = manager.wait_for(RELOADING="1")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        manager.wait_for(READY="1")
        assert not any("WATCHDOG" in said for said in manager.said)
        os.kill(pid, signal.SIGTERM)
        manager.wait_for(STOPPING="1")


def test_the_watchdog_is_fed_only_while_the_main_loop_runs(tmp_path: Path, manager: ServiceManager) -> None:
    """Twice in each interval."""
    daemon = Nsbridged(tmp_path, "")
    with started(daemon, manager, WATCHDOG_USEC="400000") as pid:
        manager.wait_for(READY="1")
        began = time.monotonic()
        for _ in range(5):
            manager.wait_for(WATCHDOG="1")
        assert 0.5 < time.monotonic() - began < LIMIT / 2
        os.kill(pid, signal.SIGSTOP)
        assert manager.falls_silent(1.0)
        os.kill(pid, signal.SIGCONT)
        manager.wait_for(WATCHDOG="1")


def test_a_detached_daemon_says_that_it_is_the_main_process_now(tmp_path: Path, manager: ServiceManager) -> None:
    """The one that the manager started has ended."""
    daemon = Nsbridged(tmp_path, "")
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "--daemon", "-c", str(daemon.config)]
    assert subprocess.run(command, env=os.environ | {"NOTIFY_SOCKET": manager.address}, check=False).returncode == 0
    pid = int((tmp_path / "state/nsbridged.pid").read_text(encoding="ascii"))
    try:
        assert manager.next()["MAINPID"] == str(pid)
    finally:
        os.kill(pid, signal.SIGTERM)
        manager.wait_for(STOPPING="1")


def test_a_manager_that_is_gone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with Nsbridged(tmp_path, "") as daemon:
        assert daemon.call("version")
        assert daemon.stop() == 0
