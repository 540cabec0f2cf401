"""A daemon whose configuration file is written anew, routes for it, and a program that never stops sending."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from nsbridge.supervisor.cli.client import ControlClient
from tests.system import queue_program
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, wait_until
from tests.system.traffic import in_ipc_of, visible


def route(name: str, files: EngineContainer, queue: EngineContainer, key: int, more: str = "") -> str:
    """Return a route between the spools /srv/NAME-out and -in and the queues `key` (in) and `key` + 1 (out)."""
    return (
        f"[route.{name}]\n{more}\n"
        f'[route.{name}.agent.files]\ncontainer = "{files.spec}"\n'
        f'spool = {{ out = "/srv/{name}-out", in = "/srv/{name}-in" }}\n'
        f'[route.{name}.agent.queue]\ncontainer = "{queue.spec}"\n'
        f"queue = {{ in = {{ key = {key} }}, out = {{ key = {key + 1} }}, create = true }}\n"
    )


class Reloadable(Nsbridged):
    """`reload` writes the file and asks for it; a long answer is waited for."""

    def write(self, *routes: str, daemon: str = "") -> None:
        """Write the file, with these routes."""
        head = self.config.read_text(encoding="utf-8").partition("[route")[0]
        if daemon:
            head = head.replace("[daemon]\n", f"[daemon]\n{daemon}\n", 1)
        self.config.write_text(head + "".join(routes), encoding="utf-8")

    def reload(self, *routes: str, wait: bool = True) -> dict[str, Any]:
        """Reload; return the plan; with `wait`, when it has been carried out."""
        self.write(*routes)
        answer: dict[str, Any] = self.call("reload", wait=wait)
        return answer

    def pids(self, name: str) -> dict[str, Any]:
        """Return the pids of the agents of a route and of their senders."""
        agents = self.agents()
        return {
            agent: (state["pid"], state["senders"]) for agent, state in agents.items() if agent.startswith(f"{name}:")
        }

    def events(self, name: str = "") -> list[dict[str, str]]:
        """Return all events that are kept, about `name`."""
        with ControlClient(str(self.socket), LIMIT) as client:
            return list(client.stream("events", {"count": 10_000, "name": name}))

    @contextmanager
    def following(self, name: str) -> Iterator[Iterator[dict[str, str]]]:
        """Yield events about `name` from now on, as they come; the daemon has got the request."""
        with ControlClient(str(self.socket), LIMIT) as client:
            stream = client.stream("events", {"count": 1, "name": name, "follow": True}, follow=True)
            next(stream)  # one of the past: it is subscribed in the same moment
            yield stream


class Sender(threading.Thread):
    """Puts the numbers from 0 on into the container's queue until it gets a stop; then `count` of them are in it.

    It sends some thousands a second, so that what arrives can be looked at; a full queue holds it back.
    """

    def __init__(self, container: EngineContainer, key: int) -> None:
        super().__init__()
        self.count = 0
        self._container = container
        self._key = key
        self._forked = threading.Event()
        self._enough = threading.Event()

    def __enter__(self) -> Sender:
        """Return when its program runs: until the exec, a forked child has open for writing what this process has."""
        self.start()
        assert self._forked.wait(LIMIT)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Send no more; returns when all are in the queue."""
        self._enough.set()
        self.join(LIMIT)

    def run(self) -> None:
        with in_ipc_of(self._container, "put", str(self._key)) as program:
            self._forked.set()
            assert program.stdin is not None
            for number in itertools.count():
                if self._enough.is_set() or (number % 10 == 0 and self._enough.wait(0.002)):
                    break
                body = b"%d" % number
                program.stdin.write(queue_program.FRAME.pack(1, len(body)) + body)
                program.stdin.flush()
                self.count = number + 1
            program.stdin.close()
            assert program.wait(LIMIT) == 0


def numbers_in(directory: Path, count: int) -> list[int]:
    """Return the numbers that arrived in a spool, in order, when there are `count` of them."""
    wait_until(lambda: len(visible(directory)) >= count, f"{count} files in {directory}")
    return [int((directory / name).read_bytes()) for name in sorted(visible(directory))]
