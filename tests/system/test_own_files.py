"""The files of a running daemon are removed: it notices, makes them again, and keeps a second daemon out.

The kind: a name that outlives or dies before what it stands for. Control socket, pid file and journals belong to it;
the log file is opened anew on USR1 (test_logs.py), and endpoints' directories are the agents' (test_faults.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsbridge.supervisor.cli.client import ControlClient
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, wait_until
from tests.system.test_daemon_faults import relays
from tests.system.test_relay import route


@pytest.fixture
def pair(unshare_container: Factory) -> tuple[Any, Any]:
    """Return the container with files, and the one with queues."""
    return unshare_container(), unshare_container()


def second(daemon: Nsbridged, control: str = "") -> subprocess.CompletedProcess[str]:
    """Start another daemon with the same state_dir; one that serves is ended by the limit."""
    config = daemon.directory / "second.toml"
    control = control or str(daemon.socket)
    config.write_text(f'[daemon]\nstate_dir = "{daemon.directory}/state"\ncontrol = {{ path = "{control}" }}\n')
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "-c", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def empty(directory: Path) -> None:
    """Remove everything in a directory, like `rm -rf DIRECTORY/*`."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_removed_control_socket_is_made_again(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """Also a second time, and when something else took its name; callers that are connected stay."""
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon:
        daemon.wait_for("RUNNING")
        with ControlClient(str(daemon.socket), LIMIT) as connected:
            for _ in range(2):
                daemon.socket.unlink()
                wait_until(daemon.answers, "it answers again", 5)
            (tmp_path / "other").touch()
            daemon.socket.unlink()
            wait_until(daemon.answers, "it answers again", 5)
            assert connected.call("version", {})
        assert f"{daemon.socket} was removed while the daemon runs: created again" in daemon.said()
        assert os.listdir(daemon.socket.parent).count("control.sock") == 1


def test_second_daemon_refuses_after_state_was_removed(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """It has its own control socket, so that only the lock shows the first daemon."""
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon:
        daemon.wait_for("RUNNING")
        os.kill(daemon.pid, 19)  # it cannot make its pid file again meanwhile
        try:
            empty(tmp_path / "state")
            refused = second(daemon, str(tmp_path / "second.sock"))
        finally:
            os.kill(daemon.pid, 18)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused
        assert f"another nsbridged (pid {daemon.pid}) runs with this state_dir" in refused.stderr
        wait_until(daemon.answers, "it answers again", 5)
        relays(daemon, pair)


@pytest.mark.parametrize("whole", [False, True])
def test_removal_of_state_is_logged(tmp_path: Path, pair: tuple[Any, Any], whole: bool) -> None:
    """The agents hold their journals open and work on; the directory itself may be gone too."""
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon:
        daemon.wait_for("RUNNING")
        if whole:
            shutil.rmtree(tmp_path / "state")
        else:
            empty(tmp_path / "state")
        wait_until(daemon.answers, "it answers again", 5)
        wait_until(lambda: "removed while agents have it open" in daemon.said(), "it is logged", 5)
        assert (tmp_path / "state/nsbridged.pid").read_text() == f"{daemon.pid}\n"
        refused = second(daemon, str(tmp_path / "second.sock"))
        assert f"another nsbridged (pid {daemon.pid})" in refused.stderr
        relays(daemon, pair)
        assert daemon.stop() == 0
    assert not (tmp_path / "state/nsbridged.pid").exists()


def test_lock_of_an_untrusted_user_does_not_keep_the_daemon_out(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """Every user who may read state_dir may flock it."""
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    with subprocess.Popen(
        [
            "sh",
            "-c",
            'exec 9<"$1"; exec setpriv --reuid=51000 --clear-groups sh -c "flock 9; echo locked; exec cat"',
            "sh",
            state,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"locked\n"
        with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon:
            daemon.wait_for("RUNNING")
        assert squatter.stdin is not None
        squatter.stdin.close()
