"""Speed of `nsbridgectl status`, beside `supervisorctl status`, which people know as fast enough."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_fake import DEADLINE, daemon

pytestmark = pytest.mark.alone  # it measures

ROUNDS = 15
BIN = Path(sys.executable).parent


@pytest.fixture
def nsbridged() -> Iterator[str]:
    """Yield the path of a control socket that is served by a process of its own."""
    with daemon() as path:
        yield path


@pytest.fixture
def supervisord(tmp_path: Path) -> Iterator[Path]:
    """Yield the configuration of a running supervisord, with as many programs as we have agents."""
    config, path = tmp_path / "supervisord.conf", tmp_path / "supervisor.sock"
    programs = "".join(f"[program:{name}]\ncommand=sleep 1000\n" for name in ("web", "legacy"))
    config.write_text(
        f"[unix_http_server]\nfile={path}\n[supervisord]\nnodaemon=true\nuser=root\nlogfile={tmp_path}/log\n"
        f"pidfile={tmp_path}/pid\n[supervisorctl]\nserverurl=unix://{path}\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n" + programs
    )
    with subprocess.Popen([BIN / "supervisord", "-c", config], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + DEADLINE
        while _status(config).stdout.count("RUNNING") != 2:
            assert time.monotonic() < end, (tmp_path / "log").read_text()
        yield config
        process.terminate()


def _status(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "supervisorctl", "-c", config, "status"], capture_output=True, text=True, check=False)


def test_status_takes_less_than_half_the_time_of_supervisorctl(nsbridged: str, supervisord: Path) -> None:
    commands: dict[str, list[str | Path]] = {
        "nsbridgectl": [BIN / "nsbridgectl", "-s", nsbridged, "status"],
        "supervisorctl": [BIN / "supervisorctl", "-c", supervisord, "status"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times[name].append(time.perf_counter() - started)
            assert done.stdout.count("RUNNING") == 2
    medians = {name: statistics.median(taken) * 1000 for name, taken in times.items()}
    print(", ".join(f"{name} {median:.1f} ms" for name, median in medians.items()))
    assert medians["nsbridgectl"] / medians["supervisorctl"] < 0.5, medians
