"""The real daemon for tests: started as a process of its own with a configuration, asked over its control socket."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.client import ControlClient
from tests.system.room import LIMIT, allowed, wait_dead, wait_until

EVIDENCE = "NSB_TEST_EVIDENCE"  # in the environment: the evidence that daemons use, for tests that do not say
SENDERS = 2  # of an exactly-once queue
_ROOT = Path(__file__).parents[2]


class Nsbridged:
    """One daemon; `routes` is the TOML of its routes, `more` of further keys of [daemon].

    `through` is a command that it is started by, such as strace. A context manager: it is stopped at the end.
    """

    program: tuple[str, ...] = (
        "nsbridge.supervisor.cli.nsbridged",
    )  # a module, and words for it before the daemon's own

    def __init__(self, directory: Path, routes: str, more: str = "", through: Sequence[str] = ()) -> None:
        self._through = through
        if (evidence := os.environ.get(EVIDENCE)) and "evidence" not in more:
            more = f'evidence = "{evidence}"\n{more}'
        self.directory = directory
        self.config = directory / "nsbridge.toml"
        self.socket = directory / "state" / "control.sock"
        self.log = directory / "nsbridged.log"
        self.config.write_text(
            f'[daemon]\nstate_dir = "{directory}/state"\ncontrol = {{ path = "{self.socket}" }}\n'
            f'log = {{ file = "{self.log}", level = "debug" }}\n{more}\n{routes}',
            encoding="utf-8",
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT)
            finally:
                self.process.kill()
                self.process.wait()

    @property
    def pid(self) -> int:
        """Return the supervisor's pid."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it; returns when it answers."""
        command = [*self._through, sys.executable, "-m", *self.program, "-c", str(self.config)]
        self.process = subprocess.Popen(command, cwd=_ROOT)  # a test's own program is found from there
        wait_until(self._answers, f"nsbridged answers; its log:\n{self.said()}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"nsbridged ended with {self.process.returncode}:\n{self.said()}"
        return self.answers()

    def answers(self) -> bool:
        """True if it answers, no matter which process started it."""
        try:
            self.call("version")
        except NsbridgeError:
            return False
        return True

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def call(self, method: str, **params: object) -> Any:
        """Ask over the control socket. NsbridgeError is its answer when it cannot."""
        with ControlClient(str(self.socket), LIMIT) as client:
            return client.call(method, params)

    def agents(self) -> dict[str, dict[str, Any]]:
        """Return the status of each agent, by name."""
        routes = self.call("status")["routes"]
        return {agent["name"]: agent for route in routes for agent in route["agents"]}

    def flow(self, source: str) -> dict[str, Any]:
        """Return the status of the flow that begins at the agent `source`."""
        flows = [flow for route in self.call("status")["routes"] for flow in route["flows"]]
        return next(flow for flow in flows if flow["from"] == source)

    def wait_delivered(self, source: str, count: int) -> None:
        """Wait until the flow that begins at `source` counts so many messages; agents show a count a little later."""
        wait_until(lambda: self.flow(source)["delivered"] == count, f"{count} messages delivered from {source}")

    def counters(self, source: str) -> dict[str, Any]:
        """Return the flow that begins at the agent `source`, without what changes by itself."""
        flow = self.flow(source)
        del flow["oldest_pending_s"]
        return flow

    def wait_for(self, state: str, *names: str, with_senders: bool = True) -> None:
        """Wait until these agents (all, if none is named) have that state, and running ones have all their senders."""

        def reached() -> bool:
            routes = self.call("status")["routes"]
            agents = {agent["name"]: agent for route in routes for agent in route["agents"]}
            short = _short_of_senders(routes) if state == "RUNNING" and with_senders else set()
            return all(agents[name]["state"] == state and name not in short for name in names or agents)

        try:
            wait_until(reached, f"{names or 'all agents'} in state {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.agents()}; log:\n{self.said()}") from None

    def processes(self) -> list[int]:
        """Return the processes of the supervisor and of its agents."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def kill(self) -> list[int]:
        """Kill the supervisor alone; return the pids of the processes it had."""
        children = self.processes()
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(LIMIT)
        return children

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


class Followed:
    """Events of a daemon's agents, from now on, as `nsbridgectl events -f` would print them."""

    def __init__(self, daemon: Nsbridged) -> None:
        self._items: queue.Queue[dict[str, str]] = queue.Queue()
        self._client = ControlClient(str(daemon.socket), LIMIT)
        began = threading.Event()
        threading.Thread(target=self._follow, args=[began], daemon=True).start()
        assert began.wait(LIMIT)

    def until(self, name: str, state: str, limit: float = LIMIT) -> datetime:
        """Return when that agent came into that state, since the last call or from now on."""
        deadline = time.monotonic() + allowed(limit)
        seen: list[dict[str, str]] = []
        while True:
            try:
                item = self._items.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{name} did not come into state {state} in {limit} s: {seen}") from None
            seen.append(item)
            if (item["name"], item["event"], item["to"]) == (name, "state", state):
                return datetime.fromisoformat(item["time"])

    def _follow(self, began: threading.Event) -> None:
        with self._client as client, suppress(NsbridgeError):  # the daemon ends
            for item in client.stream("events", {"follow": True, "count": 1}, follow=True):
                if began.is_set():
                    self._items.put(item)
                began.set()  # the first one has happened before, and says that the next ones will be heard


def kill_and_wait(pid: int) -> None:
    """Kill it; return when it is dead."""
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)


def _short_of_senders(routes: list[dict[str, Any]]) -> set[str]:
    """Return agents whose senders are still to come, a little after they run."""
    return {
        agent["name"]
        for route in routes
        for agent in route["agents"]
        if agent["evidence"] == "senders"
        and agent["endpoint"] == "queue"  # no other kind has processes that send
        and route["delivery"] == "exactly-once"
        and agent["name"] in [flow["to"] for flow in route["flows"]]
        and len(agent["senders"]) < SENDERS
    }
