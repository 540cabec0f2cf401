"""Progress of slow commands: how much is left, at a terminal with --wait, and in the log at the daemon's start."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from nsbridge.supervisor.cli.progress import line
from tests.control_fake import agent, flow, status_document
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.terminal import Terminal
from tests.system.test_relay import route
from tests.system.traffic import put_into_spool

CTL = str(Path(sys.executable).with_name("nsbridgectl"))


def test_line_counts_agents_and_messages() -> None:
    document = status_document(
        agent("a:a", state="STOPPED"), agent("a:b", state="STOPPING"), flows=(flow("a:a", "a:b", pending=1234),)
    )
    assert line("stop", document) == "stop: 1 of 2 agents have stopped, 1,234 messages are not handed over yet"
    document = status_document(agent("a:a"), agent("a:b", state="STARTING"))
    assert line("start", document) == "start: 1 of 2 agents run"


def test_stop_and_shutdown_show_what_is_left(tmp_path: Path, unshare_container: Factory) -> None:
    """A full queue, which no program reads, holds both up for the five seconds that they give it."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"x" * 4000] * 50)
        wait_until(lambda: daemon.flow("r:files")["pending"] > 10, "the queue is full")
        with Terminal([CTL, "-s", str(daemon.socket), "stop", "--wait", "all"]) as terminal:
            terminal.see("stop: 0 of 2 agents have stopped, ")
            terminal.see(" messages are not handed over yet")
            assert terminal.end() == 0
            assert re.search(r"\r\x1b\[Kr:files +STOPPED", terminal.shown)
        done = run([CTL, "-s", daemon.socket, "start", "--wait", "all"])
        assert done.stderr == b"", "no terminal, no progress"
        wait_until(lambda: daemon.flow("r:files")["pending"] > 10, "the queue is full")
        late = run([CTL, "-s", daemon.socket, "--timeout", "0.5", "shutdown", "--wait"], check=False)
        assert late.returncode == 1
        assert b"shutdown: not done within 0.5 s: r:" in late.stderr
        assert re.search(rb" is STOPPING.*, [0-9]+ messages are not handed over yet; it continues", late.stderr)
        with Terminal([CTL, "-s", str(daemon.socket), "shutdown", "--wait"]) as terminal:
            terminal.see("shutdown: 0 of 2 agents have stopped, ")
            assert terminal.end() == 0
            assert terminal.shown.endswith("\r\x1b[Knsbridged has ended\r\n")


def test_daemon_logs_that_all_agents_have_started(tmp_path: Path, unshare_container: Factory) -> None:
    web = unshare_container()
    with Nsbridged(tmp_path, route(web.spec, "runc:nobody-there")) as daemon:
        wait_until(lambda: "all agents were started within " in daemon.said(), "it is logged")
        (said,) = [text for text in daemon.said().splitlines() if "all agents were started within" in text]
        assert re.search(r"all agents were started within \d+\.\d s: 1 RUNNING, 1 WAITING$", said)
