"""Runs a program of the host that may hang or print without end; for children of the supervisor, because it blocks."""

from __future__ import annotations

import os
import selectors
import subprocess
import time

from nsbridge.supervisor.containers.deadline import ANSWER_LIMIT, TIME_LIMIT, seconds_left
from nsbridge.supervisor.containers.identity import NoAnswer


def run_bounded(command: list[str], deadline: float) -> tuple[int, bytes, str]:
    """Run a program; return (exit status, output, text on stderr), both texts at most ANSWER_LIMIT bytes.

    Raises NoAnswer if it cannot be run, has not ended at the deadline (monotonic clock) or writes more.
    """
    try:
        process = subprocess.Popen(  # noqa: S603  (no shell; a container's name comes checked, and after "--")
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise NoAnswer(f"{command[0]} cannot be run: {error.strerror}") from None
    with process:
        try:
            output, said = _read_both(process, deadline)
            return process.wait(max(0.0, deadline - time.monotonic())), output, said.decode("utf-8", "backslashreplace")
        except (TimeoutError, subprocess.TimeoutExpired):
            raise NoAnswer(f"{command[0]} does not answer (waited {TIME_LIMIT:g} s)") from None
        finally:
            process.kill()  # harmless when it has ended


def _read_both(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Read both outputs to their ends. Raises TimeoutError at the deadline, NoAnswer if there is too much."""
    assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  (both are pipes)
    said = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for fd in said:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(seconds_left(deadline))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                said[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                if len(said[key.fd]) > ANSWER_LIMIT:
                    raise NoAnswer(f"{process.args!r} says more than {ANSWER_LIMIT} bytes")
    return said[process.stdout.fileno()], said[process.stderr.fileno()]
