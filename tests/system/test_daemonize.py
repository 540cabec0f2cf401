"""`nsbridged --daemon` and `nsbridgectl`, as an operator types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, wait_dead
from tests.system.test_relay import route


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands to its end."""
    path = Path(sys.executable).with_name(str(words[0]))
    return subprocess.run([path, *words[1:]], capture_output=True, text=True, check=False, timeout=LIMIT)


def test_a_detached_daemon_is_ready_on_return_and_shuts_down(tmp_path: Path, runc_container: Factory) -> None:
    """It has left session, terminal, directory and descriptors of the caller; a second one says whose place it is."""
    web, legacy = runc_container(), runc_container()
    daemon = Nsbridged(tmp_path, route(web.spec, legacy.spec))
    control = ("nsbridgectl", "-s", daemon.socket)
    started = command("nsbridged", "--daemon", "-c", daemon.config)
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    pid = int((tmp_path / "state/nsbridged.pid").read_text(encoding="ascii"))
    try:
        assert command(*control, "start", "--wait", "all").returncode == 0
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
        second = command("nsbridged", "--daemon", "-c", daemon.config)
        assert second.returncode == 1
        assert str(pid) in second.stderr
        agents = json.loads(command(*control, "status", "--json").stdout)["routes"][0]["agents"]
        assert {agent["state"] for agent in agents} == {"RUNNING"}
    finally:
        assert command(*control, "shutdown").returncode == 0
        wait_dead(pid)
    assert not daemon.socket.exists()
    assert command(*control, "status").returncode == 4
    for agent in agents:
        assert not Path(f"/proc/{agent['pid']}").exists()


def test_detached_daemon_without_log_file_says_where_it_is(tmp_path: Path) -> None:
    """It has no terminal any more, and no file: the end of the log is in memory only."""
    daemon = Nsbridged(tmp_path, route("runc:nobody-1", "runc:nobody-2"))
    text = daemon.config.read_text(encoding="utf-8").replace(f'file = "{daemon.log}", ', "")
    daemon.config.write_text(text, encoding="utf-8")
    started = command("nsbridged", "--daemon", "-c", daemon.config)
    try:
        assert (started.returncode, started.stdout) == (0, "")
        where = f"nsbridgectl -s {daemon.socket} tail"
        assert started.stderr.startswith(
            f"nsbridged: the daemon keeps the end of its log in memory, and {where} shows it"
        )
        assert started.stderr.count("\n") == 1
        assert "started, pid " in command(*where.split()).stdout
    finally:
        assert command("nsbridgectl", "-s", daemon.socket, "shutdown", "--wait").returncode == 0


def test_status_of_a_missing_container_exits_3_with_the_reason(tmp_path: Path) -> None:
    """For people and for programs."""
    with Nsbridged(tmp_path, route("runc:nobody-1", "runc:nobody-2")) as daemon:
        daemon.wait_for("WAITING")
        done = command("nsbridgectl", "-s", daemon.socket, "status")
        assert done.returncode == 3
        lines = done.stdout.splitlines()
        assert [line.split()[:2] for line in lines] == [["r:files", "WAITING"], ["r:queue", "WAITING"]]
        assert 'container "nobody-1" is not known to runc' in lines[0]
        assert command("nsbridgectl", "-s", daemon.socket, "status", "nosuch").returncode == 5


def test_restart_wait_returns_0_when_it_runs_again(tmp_path: Path, runc_container: Factory) -> None:
    """One agent, then the route: the state between is nobody's business."""
    web, legacy = runc_container(), runc_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        for name in ("r:queue", "r", "all"):
            before = daemon.agents()["r:queue"]["pid"]
            done = command("nsbridgectl", "-s", daemon.socket, "restart", "--wait", name)
            assert (done.returncode, done.stderr) == (0, "")
            after = daemon.agents()["r:queue"]
            assert after["state"] == "RUNNING"
            assert after["pid"] != before


def test_an_engine_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker may start after nsbridged, or be upgraded under it."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with Nsbridged(tmp_path, route("docker:web", "docker:legacy")) as daemon:
        daemon.wait_for("WAITING")
        assert "docker.sock" in daemon.agents()["r:files"]["detail"]
