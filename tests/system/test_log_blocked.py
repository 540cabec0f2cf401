"""The reader of the daemon's log does not read: the daemon continues, and counts and reports the dropped records.

The kind: a write of the supervisor that waits for somebody. stderr may be a pipe, a terminal that was stopped with
Ctrl-S, a socket, or a file; a log file may be on a file system that does not answer (below, and test_logs.py).
"""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.client import ControlClient
from tests.system.room import wait_until

FLOOD = 3000  # requests that the daemon logs, of some 100 bytes each


class Daemon:
    """A daemon without routes that logs to stderr, which is `fd`."""

    def __init__(self, directory: Path, fd: int) -> None:
        self.socket = directory / "control.sock"
        config = directory / "nsbridge.toml"
        config.write_text(
            f'[daemon]\nstate_dir = "{directory}/state"\ncontrol = {{ path = "{self.socket}" }}\n', encoding="utf-8"
        )
        command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "-c", str(config)]
        self.process = subprocess.Popen(command, stderr=fd)
        wait_until(self.socket.exists, "the control socket")

    def flood(self) -> None:
        """Let it log more than any pipe holds; each text differs, so none is held back as a repeat."""
        with ControlClient(str(self.socket), 5.0) as client:
            for number in range(FLOOD):
                with pytest.raises(NsbridgeError):
                    client.call("start", {"names": [f"nothing-{number:060}"]})

    def end(self) -> int:
        """Send SIGTERM; return its exit code."""
        self.process.terminate()
        return self.process.wait(5.0)

    def kill(self) -> None:
        """Kill it; harmless when it has ended."""
        self.process.kill()
        self.process.wait()


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    return reader, writer


def _terminal() -> tuple[int, int]:
    """Return a terminal that is stopped, as Ctrl-S does it."""
    reader, writer = pty.openpty()
    termios.tcflow(writer, termios.TCOOFF)
    return reader, writer


def _socket() -> tuple[int, int]:
    """Make a socket like that of systemd's journal."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize("make", [_pipe, _terminal, _socket])
def test_unread_stderr_does_not_stop_the_daemon(tmp_path: Path, make: Callable[..., tuple[int, int]]) -> None:
    with ExitStack() as stack:
        reader, writer = make()
        stack.callback(os.close, reader)
        daemon = Daemon(tmp_path, writer)
        stack.callback(daemon.kill)
        stopped = make is _terminal
        if not stopped:
            os.close(writer)
        daemon.flood()
        if stopped:
            termios.tcflow(writer, termios.TCOON)
            os.close(writer)
        os.set_blocking(reader, False)
        said = bytearray()

        def read() -> bool:
            try:
                said.extend(os.read(reader, 1 << 16))
            except (BlockingIOError, OSError):
                pass
            return b"could not be written: nobody reads stderr" in said

        wait_until(read, "what was dropped is reported", 10)
        lines = said.decode().splitlines()
        assert all(line.startswith("20") for line in lines), "no line is cut or mixed with another"
        written = sum("asks to start" in line for line in lines)
        (report,) = [line for line in lines if "could not be written" in line]
        dropped = int(report.split("up to ")[1].split()[0])
        assert written + dropped == FLOOD
        assert daemon.end() == 0


def test_daemon_ends_while_its_stderr_is_not_read(tmp_path: Path) -> None:
    """TERM is answered, and the last records are not waited for."""
    reader, writer = os.pipe()
    daemon = Daemon(tmp_path, writer)
    try:
        os.close(writer)
        daemon.flood()
        assert daemon.end() == 0
    finally:
        daemon.kill()
        os.close(reader)


def test_stderr_of_others_stays_blocking(tmp_path: Path) -> None:
    """O_NONBLOCK would affect the shell and every other writer."""
    reader, writer = os.pipe()
    daemon = Daemon(tmp_path, writer)
    try:
        assert os.get_blocking(writer)
        assert daemon.end() == 0
        assert os.get_blocking(writer)
    finally:
        daemon.kill()
        os.close(reader)
        os.close(writer)
