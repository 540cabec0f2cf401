"""Runs functions in forked children, for what a process can do to itself only once."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from nsbridge.agents import linux

LIMIT = 20.0  # seconds for a child to answer, or to end
PR_SET_CHILD_SUBREAPER = 36


def fork(main: Callable[[], int]) -> int:
    """Fork a child that leaves with main's result, or with 99 if it raises, and never returns; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = main()
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Return the exit code of a child, negative for a signal. AssertionError if it does not end within LIMIT."""
    pidfd = os.pidfd_open(pid)
    in_time = ended(pidfd)
    os.close(pidfd)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert in_time, f"process {pid} did not end"
    return code


def ended(pidfd: int) -> bool:
    """True if the process ends within LIMIT."""
    return bool(select.select([pidfd], [], [], LIMIT)[0])


def exit_code(main: Callable[[], int]) -> int:
    """Run `main` in a child; return its exit code."""
    return wait(fork(main))


def in_child(function: Callable[[], object]) -> Any:
    """Run the function in a child; return its result, through JSON. AssertionError if it raised, died or hung."""
    reader, writer = os.pipe()

    def main() -> int:
        try:
            answer: dict[str, object] = {"result": function()}
        except BaseException as error:  # noqa: BLE001  (the test raises it)
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode())
        return 0

    pid = fork(main)
    os.close(writer)
    try:
        code = wait(pid)
        received = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
    assert received, f"the child wrote nothing, status {code}"
    said = json.loads(received)
    assert "error" not in said, said["error"]
    return said["result"]


class Family:
    """A child and its own child, which runs `main(pid of its parent)` and then waits; the user of this class is a
    subreaper.

    The constructor returns when `main` is done, or with `ready_before` when it begins.
    """

    def __init__(self, main: Callable[[int], None], *, ready_before: bool = False) -> None:
        reader, writer = os.pipe()

        def inner(parent: int) -> int:
            said = b"%d" % os.getpid()
            if ready_before:
                os.write(writer, said)
            main(parent)
            if not ready_before:
                os.write(writer, said)
            time.sleep(LIMIT)  # not signal.pause(): an agent may not make that call
            return 98

        def outer() -> int:
            parent = os.getpid()
            fork(lambda: inner(parent))
            signal.pause()
            return 98

        self.parent = fork(outer)
        os.close(writer)
        self.child = int(os.read(reader, 100))
        os.close(reader)

    def kill_parent(self) -> int:
        """Kill the parent; return how the child ends then: its exit code, negative for a signal."""
        os.kill(self.parent, signal.SIGKILL)
        wait(self.parent)
        return wait(self.child)


def be_subreaper(*, yes: bool) -> None:
    """Have orphans among the own descendants become children, which can be asked how they ended."""
    linux.prctl(PR_SET_CHILD_SUBREAPER, int(yes))
