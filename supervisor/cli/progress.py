"""Shows on a terminal how much is left while a command with --wait waits: one line on stderr, removed in the end.

The command's own connection waits for its answer, so a thread asks `status` over one of its own, every second. Whatever
goes wrong there only ends the line. Where stderr is no terminal, nothing is shown.
"""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager
from typing import Any

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.client import ControlClient

EVERY = 1.0  # seconds
_REMOVED = "\r\x1b[K"  # the terminal's line is empty, and the next text begins it
_DONE = {"start": "run", "restart": "run", "stop": "have stopped", "shutdown": "have stopped"}


class Progress(AbstractContextManager["Progress"]):
    """The line, between `with` and its end. `names` are those that the command was given."""

    def __init__(self, socket: str, command: str, names: list[str]) -> None:
        self._socket = socket
        self._command = command
        self._names = names
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(EVERY)
            sys.stderr.write(_REMOVED)
            sys.stderr.flush()

    def _run(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                with ControlClient(self._socket, EVERY) as client:
                    result = client.call("status", {"names": self._names})
            except NsbridgeError:
                continue
            if not self._ended.is_set():
                sys.stderr.write(_REMOVED + line(self._command, result))
                sys.stderr.flush()


def line(command: str, result: dict[str, Any]) -> str:
    """Return how much is left of `command`, by the status document: `stop: 3 of 8 agents have stopped, …`."""
    aim = "RUNNING" if _DONE[command] == "run" else "STOPPED"
    agents = [agent for route in result["routes"] for agent in route["agents"]]
    done = sum(agent["state"] == aim for agent in agents)
    return f"{command}: {done} of {len(agents)} agents {_DONE[command]}{left(result)}"


def left(result: dict[str, Any]) -> str:
    """Return how many messages are on their way, to follow a text; empty if none is."""
    pending = sum(flow["pending"] for route in result["routes"] for flow in route["flows"])
    if not pending:
        return ""
    return f", {pending:,} message{'s are' if pending > 1 else ' is'} not handed over yet"
