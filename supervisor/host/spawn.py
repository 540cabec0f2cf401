"""The two kinds of children that the supervisor forks (agents/fork.py): agents, and children that write lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from nsbridge.agents import main as agent_main
from nsbridge.agents.confinement import entry
from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.counter import Lease
from nsbridge.agents.fork import Child, fork
from nsbridge.agents.loop import READABLE, Loop, Timer

LINE_LIMIT = 64 << 10  # bytes of one line from a child
_CHUNK = 64 << 10  # bytes read at once; no pipe holds more
_REST = 0.02  # seconds between full chunks: a child that writes without end is read slowly, and blocks in its pipe


def agent(assignment: Assignment, register: Callable[[Lease], None]) -> Child:
    """Fork an agent, which gets its own scoreboard and no other. `register` has the kernel count its messages."""

    def main() -> int:
        if assignment.counter is not None:
            register(assignment.counter)
        return agent_main.main(assignment)

    with assignment.scoreboard.lent():
        return fork(main)


class LineListener(Protocol):
    """Receiver of a child's lines."""

    def line_received(self, line: bytes) -> None:
        """Take a whole line, without its end; any bytes that the child chose to write, LINE_LIMIT at most."""

    def child_ended(self, code: int) -> None:
        """Take the end of the child, after its last line: its exit code, negative for a signal's number."""


class LineChild:
    """Child that does work which may block, and reports to its parent in lines: the parent never waits for it.

    `main` gets the descriptor to write to; its result is the exit code. The child dies with its parent, and is killed
    when it writes a line that is too long. Raises OSError, and leaves no child, if one cannot be made or watched.
    """

    def __init__(self, loop: Loop, main: Callable[[int], int], listener: LineListener) -> None:
        self._loop = loop
        self._listener: LineListener | None = listener
        self._received = b""
        self._over = False
        self._resting: Timer | None = None
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(writer, True)
        supervisor = os.getpid()
        try:
            self._child = fork(partial(_run_child, main, writer, supervisor))
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        try:
            loop.watch(self._reader, READABLE, self._read)
            loop.watch(self._child.pidfd, READABLE, self._ended)
        except OSError:
            self._child.kill()
            loop.unwatch(self._reader)
            os.close(self._reader)
            self._child.reap()  # it has only begun, so nothing can delay its death
            raise

    def kill(self) -> None:
        """End it, because it takes too long; the listener gets its exit code. Harmless when it has ended."""
        if not self._over:
            self._child.kill()

    def abandon(self) -> None:
        """End it, and call the listener no more."""
        self._listener = None
        self.kill()

    def _read(self, _events: int) -> None:
        chunk = self._read_chunk()
        if chunk == b"":
            self._loop.unwatch(self._reader)  # its end is seen by its pidfd
        elif chunk and len(chunk) == _CHUNK:
            self._loop.unwatch(self._reader)
            self._resting = self._loop.call_later(_REST, self._read_again)

    def _read_chunk(self) -> bytes | None:
        """Read once and pass the lines on; return empty at the end, None if there is nothing now."""
        try:
            chunk = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return None
        *lines, self._received = (self._received + chunk).split(b"\n")
        if any(len(line) > LINE_LIMIT for line in (*lines, self._received)):
            lines, self._received = [], b""
            self.kill()
        for line in lines:
            if self._listener is not None:
                self._listener.line_received(line)
        return chunk

    def _read_again(self) -> None:
        self._resting = None
        self._loop.watch(self._reader, READABLE, self._read)

    def _ended(self, _events: int) -> None:
        while self._read_chunk():
            pass  # what its pipe still holds, which is little: no other process writes into it
        if self._resting is not None:
            self._resting.cancel()
        self._loop.unwatch(self._reader)
        os.close(self._reader)
        self._loop.unwatch(self._child.pidfd)
        code = self._child.reap()
        self._over = True
        if self._listener is not None:
            self._listener.child_ended(code)


def _run_child(main: Callable[[int], int], writer: int, supervisor: int) -> int:
    entry.die_with_the_supervisor(supervisor)
    entry.close_all_but({0, 1, 2, writer})
    try:
        return main(writer)
    except BrokenPipeError:
        return 1  # the parent has closed its end
    except Exception as error:  # noqa: BLE001  (a bug, reported in one line)
        os.write(2, f"nsbridged: {type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
        return 1
