"""The two kinds of children that the supervisor makes (by agents/fork.py): agents, and short askers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from nsbridge.agents import entry, runtime
from nsbridge.agents.entry import Assignment
from nsbridge.agents.fork import Child, fork
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.config.errors import NsbridgeError

_ANSWER_LIMIT = 64 << 10  # bytes


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
        os.write(2, f"nsbridged: {type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
        return 1
    os.write(writer, json.dumps(answer).encode())
    return 0
