"""The runtime `unshare`: plain namespaces and nothing else. enclose.py makes them, here they are started and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from nsbridge.supervisor.cli.demo.containers import (
    START_LIMIT,
    ContainerError,
    DemoContainer,
    Role,
    Site,
    await_ready,
    command,
    pipes,
)
from nsbridge.supervisor.cli.demo.waiting import Lines


def start(role: Role, site: Site) -> DemoContainer:
    """Make the container; ContainerError if that is not possible here."""
    exchange = site.work / role
    exchange.mkdir()
    ends = pipes(site.stack)
    pid_read, pid_write = os.pipe()
    site.stack.callback(os.close, pid_read)
    enclose = [
        sys.executable,
        "-P",
        "-m",
        "nsbridge.supervisor.cli.demo.enclose",
    ]  # -P: nothing of where the person stands
    encloser = subprocess.Popen(  # noqa: S603  (our own program)
        [*enclose, str(pid_write), str(exchange), *command(role, str(exchange))],
        stdin=ends.program_stdin,
        stdout=ends.program_stdout,
        stderr=subprocess.STDOUT,
        pass_fds=[pid_write],
        start_new_session=True,  # the terminal's Ctrl-C is for the demo, which ends things in their order
    )
    inits: list[int] = []
    site.stack.callback(_end, encloser, inits)
    ends.close_program_ends()
    os.close(pid_write)
    lines = Lines(ends.stdout, site.waits)
    try:
        pid = int(Lines(pid_read, site.waits).next(START_LIMIT) or 0)
    except TimeoutError:
        raise ContainerError(f"its namespaces were not there within {START_LIMIT:g} s") from None
    if pid:
        inits.append(os.pidfd_open(pid))
    await_ready(lines)
    return DemoContainer(role, f"pid:{pid}", pid, str(exchange), ends.stdin, lines)


def _end(encloser: subprocess.Popen[bytes], inits: list[int]) -> None:
    """Kill the container's init, with which everything inside ends, and wait until it has been reaped."""
    for pidfd in inits:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    if not inits:
        encloser.kill()  # it did not get as far as its report; its child, if there is one, dies with it
    encloser.wait()
