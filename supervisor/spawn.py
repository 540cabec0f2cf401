"""The only fork of the supervisor, and the two kinds of children it makes: agents, and short askers.

A child never returns into the parent's stack: it leaves by `os._exit`. Signals are blocked around the fork until the
child has taken the handlers and the wake-up descriptor off, or a signal meant for the parent would be written into
the parent's pipe by the child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from nsbridge.agents import entry, runtime
from nsbridge.agents.entry import Assignment
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.config.errors import NsbridgeError

_ANSWER_LIMIT = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process; `pidfd` is readable when it has ended, and must be closed by whoever reaps it."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """Its exit code, negative for a signal's number. To be called when `pidfd` is readable."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


def fork(main: Callable[[], int]) -> Child:
    """Run `main` in a child, whose exit code is its result. Raises OSError (EAGAIN: no more processes)."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(main)
        return Child(pid, os.pidfd_open(pid))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_child(main: Callable[[], int]) -> None:
    code = entry.EXIT_AGAIN
    try:
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = main()
    except BaseException as error:  # noqa: BLE001  (it must not unwind the parent's stack)
        os.write(2, f"nsbridged: child: {type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)


def agent(assignment: Assignment) -> Child:
    """Fork an agent."""
    return fork(lambda: runtime.main(assignment))


class Question:
    """Asks `function` in a child, because it may block, and calls `on_answer` with its JSON-able result.

    The answer is None if the child could not say: it was killed after `limit` seconds, or died.
    A raised NsbridgeError comes as `{"error": [class name, text]}`.
    """

    def __init__(
        self, loop: Loop, function: Callable[[], object], on_answer: Callable[[object], None], limit: float
    ) -> None:
        self._loop = loop
        self._on_answer = on_answer
        self._received = b""
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(writer, True)
        supervisor = os.getpid()
        try:
            self._child = fork(lambda: _answer(function, writer, supervisor))
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        loop.watch(self._reader, READABLE, self._read)
        self._timer = loop.call_later(limit, self._child.kill)

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        self._on_answer = _nobody
        self._child.kill()

    def _read(self, _events: int) -> None:
        chunk = os.read(self._reader, _ANSWER_LIMIT)
        self._received += chunk
        if chunk and len(self._received) <= _ANSWER_LIMIT:
            return
        self._timer.cancel()
        self._loop.unwatch(self._reader)
        os.close(self._reader)
        self._child.kill()
        self._child.reap()
        try:
            answer = json.loads(self._received)
        except ValueError:
            answer = None
        self._on_answer(answer)


def _nobody(_answer: object) -> None:
    """What hears an abandoned answer."""


def _answer(function: Callable[[], object], writer: int, supervisor: int) -> int:
    entry.die_with_the_supervisor(supervisor)
    entry.close_all_but({0, 1, 2, writer})
    try:
        answer = function()
    except NsbridgeError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    except Exception as error:  # noqa: BLE001  (a bug, told to the parent in one line)
        sys.stderr.write(f"nsbridged: {type(error).__name__}: {error}\n")
        return 1
    os.write(writer, json.dumps(answer).encode())
    return 0
