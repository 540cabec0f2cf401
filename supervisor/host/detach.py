"""`--daemon`: detaching with python-daemon, without losing an error on the way. The only user of that library.

The original command stays until the daemon says through a pipe that it is ready, or why it is not:

    command ── fork ── child ── DaemonContext (fork, setsid, fork) ── daemon
       └──────────────── {"code": 0} or {"code": 2, "message": "..."} ───┘

Some facts about DaemonContext (python-daemon 3.1) and what they mean here:
* Its parent leaves at once with 0, so a fork of our own (spawn.fork) goes before it: one process must be left to wait.
* It looks at sys.stdin, stdout and stderr, which are None where the command was started with them closed.
* By itself it does not detach under init or inetd; here a person has asked for it, so it always does.
* It closes every descriptor, so the loop, the log and the sockets are opened after it, in `start`.
* The pid file is entered last of all, in the daemon itself: POSIX locks are not inherited.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable

import daemon

from nsbridge.agents import limits
from nsbridge.agents.fork import fork
from nsbridge.config.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, NsbridgeError
from nsbridge.supervisor.host.pidfile import PidFile

# What the daemon writes without naming a mode (rotated logs, dead letters) holds other people's messages: its
# group may read them, the rest of the host may not, and only root may change them.
UMASK = 0o027

Ready = Callable[[], None]


def run_detached(start: Callable[[Ready], int], pidfile: PidFile | None = None) -> int:
    """Run `start` as a daemon; the result is the exit code of the original command, in which alone this returns.

    `start` is called in the daemon with a function to be called once it is ready, and returns the daemon's exit code;
    an error or exit code before that goes to the command's stderr.
    """
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write it a second time
    reader, writer = os.pipe()
    try:
        child = fork(lambda: _become_daemon(start, pidfile, writer))
    except OSError as error:
        os.close(reader)
        raise NsbridgeError(f"cannot start the daemon's process: {limits.explained(error)}") from None
    finally:
        os.close(writer)
    try:
        report = _wait_for_report(reader)
        child.reap()
    except KeyboardInterrupt:
        sys.stderr.write(
            "nsbridged: interrupted; the daemon continues to start, nsbridgectl status shows its progress\n"
        )
        return EXIT_INTERRUPTED
    finally:
        os.close(reader)
    return _conclude(report)


def _become_daemon(start: Callable[[Ready], int], pidfile: PidFile | None, writer: int) -> int:
    """Detach and run `start` in a forked child; return its exit code, after any error was reported."""
    report = _Report(writer)
    code = EXIT_FAILED
    try:
        context = daemon.DaemonContext(
            detach_process=True,
            working_directory="/",
            umask=UMASK,
            files_preserve=[writer],
            pidfile=pidfile,
            signal_map={},  # signals are events of our loop
        )
        with context:  # closes `reader` too, which only the command may hold
            code = start(report.ready)
        report.failed(code, f"it ended with exit code {code} before it was ready")
    except NsbridgeError as error:
        code = error.exit_code
        report.failed(code, str(error))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_FAILED
        report.failed(code, f"it ended with exit code {code} before it was ready")
    except BaseException as error:  # noqa: BLE001  (python-daemon's own, and bugs: nothing unwinds the parent's stack)
        report.failed(code, f"cannot run as a daemon: {type(error).__name__}: {error}")
    return code


class _Report:
    """The daemon's end of the pipe: the first word counts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> None:
        """Let the command end well."""
        self._send({"code": EXIT_OK})

    def failed(self, code: int, message: str) -> None:
        """Let the command end with `code` and `message`."""
        self._send({"code": code or EXIT_FAILED, "message": message})

    def _send(self, report: dict[str, object]) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):  # the command was interrupted; the daemon is none the worse
            os.write(fd, json.dumps(report).encode() + b"\n")
        os.close(fd)


def _wait_for_report(reader: int) -> bytes:
    """Return the report's line. Do not wait for the end of file: the daemon's children may hold the pipe open."""
    received = b""
    while not received.endswith(b"\n"):
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        received += chunk
    return received


def _conclude(received: bytes) -> int:
    if not received.endswith(b"\n"):
        sys.stderr.write("nsbridged: the daemon was killed before it was ready; the kernel's log may say why (dmesg)\n")
        return EXIT_FAILED
    report = json.loads(received)
    for line in str(report.get("message", "")).splitlines():
        sys.stderr.write(f"nsbridged: {line}\n")
    return int(report["code"])


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 and their streams, whatever the command was started with."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:  # noqa: PLR2004  (the lowest free one is taken: this fills the holes)
        fd = os.dup(fd)
    os.close(fd)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
