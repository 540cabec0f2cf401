"""A container engine that is one file and one line: registered by a test, served by the real daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsbridge.config import containerkind
from nsbridge.supervisor.cli.commands import completion
from tests.system import directory_engine
from tests.system.conftest import Factory
from tests.system.directory_engine import report_started
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.test_arrivals import come
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

LAUNCHER = "tests.system.directory_engine"
ROOT = Path(__file__).parents[2]


class Daemon(Nsbridged):
    """nsbridged, with that engine registered."""

    program = (LAUNCHER, "nsbridged")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the engine's state directory, which does not exist yet, as before the first container."""
    monkeypatch.setenv(directory_engine.VARIABLE, str(tmp_path / "state of dir"))
    return tmp_path / "state of dir"


def launch(*words: str | Path, check: bool = True) -> str:
    """Run one of nsbridge's programs with the engine registered; its output, of both kinds."""
    command = [sys.executable, "-m", LAUNCHER, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_engine_of_its_own_is_served(tmp_path: Path, root: Path, unshare_container: Factory) -> None:
    """Waited for, found by name, seen to start, left and entered again, with every message once and in order."""
    web, legacy = unshare_container(start=False), unshare_container()
    bodies = [b"%d" % number for number in range(30)]

    def start() -> None:
        web.start()
        report_started(root, "web", web.pid)

    with Daemon(tmp_path, route("dir:web", legacy.spec)) as daemon:
        daemon.wait_for("WAITING", "r:files")
        assert 'container "web" is not known to dir' in daemon.agents()["r:files"]["detail"]
        followed = Followed(daemon)
        pids, received = [], []
        for life in range(3):
            send_all(legacy, 0x52, [Sent(1, body) for body in bodies[10 * life :][:10]])
            come(daemon, followed, "r:files", start)
            pids.append(daemon.agents()["r:files"]["container_pid"])
            received += [path.read_bytes() for path in wait_for_files(web.rootfs / "srv/in", 10)]
            web.stop()
            daemon.wait_for("WAITING", "r:files")
        assert daemon.agents()["r:files"]["container"] == "dir:web"
    assert received == bodies
    assert len(set(pids)) == len(pids), "each life has its own init"


def test_engine_of_its_own_is_a_source(tmp_path: Path, root: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    report_started(root, "web", web.pid)
    (web.rootfs / "srv/out").mkdir()
    with Daemon(tmp_path, route("dir:web", legacy.spec)) as daemon, Receiver(legacy, 0x51, 2) as receiver:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"one", b"two"])
        assert [sent.body for sent in receiver.messages()] == [b"one", b"two"]
        assert daemon.agents()["r:files"]["container_pid"] == web.pid


def test_engine_of_its_own_is_listed(root: Path, unshare_container: Factory) -> None:
    """Under the name that it gives, and not as a process that no engine knows."""
    web = unshare_container()
    report_started(root, "web", web.pid)
    (root / "gone").mkdir()
    listed = launch("nsbridge", "containers").splitlines()
    (line,) = [line.split() for line in listed if str(web.pid) in line.split()]
    assert line[:3] == ["dir:web", "running", str(web.pid)]
    assert [line.split()[:2] for line in launch("nsbridge", "containers", "dir:").splitlines()[1:]] == [
        ["dir:gone", "stopped"],
        ["dir:web", "running"],
    ]


def test_shell_completes_a_name_of_its_own_engine(tmp_path: Path, root: Path, unshare_container: Factory) -> None:
    """The test completes as bash does: it calls the completion script, which runs nsbridgectl."""
    web = unshare_container()
    report_started(root, "web", web.pid)
    program = tmp_path / "nsbridgectl"
    program.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m {LAUNCHER} nsbridgectl "$@"\n')
    program.chmod(0o755)
    line = "nsbridge containers dir:w"
    script = (
        completion.answer("bash", [])
        + f'COMP_WORDBREAKS=; COMP_LINE="{line}"; COMP_POINT={len(line)}; _nsbridge; echo "${{COMPREPLY[@]}}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "dir:web\n"


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ("dri:web", f'did you mean "dir:web"? kinds: {", ".join(containerkind.known())}, dir'),
        ("dir:WEB", 'is no dir name, got "dir:WEB": a dir name has small letters, digits and -'),
    ],
)
def test_check_knows_an_engine_of_its_own(tmp_path: Path, root: Path, container: str, said: str) -> None:
    config = tmp_path / "nsbridge.toml"
    config.write_text(route(container, "dir:ok"), encoding="utf-8")
    checked = launch("nsbridged", "--check", "-c", config, check=False)
    assert said in checked.replace("; ", ": ", 1), root
