"""The real daemon, as a demo runs it: a configuration, a subprocess, and its control socket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from nsbridge.agents import linux
from nsbridge.config.errors import NsbridgeError, UnreachableError
from nsbridge.supervisor.cli.client import ControlClient
from nsbridge.supervisor.cli.demo.containers import DemoContainer, Site

DAEMON = "nsbridge.supervisor.cli.nsbridged"
START_LIMIT = 20.0  # seconds until both agents run
STOP_LIMIT = 15.0  # seconds for the daemon to end in order; then it is killed, and the agents die with it
SETTLE_LIMIT = 2.0  # seconds for counters to catch up with what the person has seen
POLL = 0.05  # seconds between two looks at the status
CALL_LIMIT = 5.0  # seconds
LOG_LINES = 5  # of the daemon's log are shown when it fails

_DAEMON = """\
[daemon]
state_dir = {state_dir}
control   = {{ path = {control}, mode = "0600", group = "0", read_group = "0" }}
log       = {{ file = {log} }}

"""
_ROUTE = """\
[route.echo.agent.client]             # the agent echo:client
container = {client}
file      = {{ out = {file_out}, in = {file_in} }}

[route.echo.agent.server]             # the agent echo:server
container = {server}
queue     = {{ in = {{ key = 0x4d2, type = 1 }}, out = {{ key = 0x4d2, type = 2 }} }}
"""


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a configuration whose places have these strings, in quotes."""
    # What JSON escapes in a string, TOML escapes in the same way, as long as the rest is left as it is.
    return template.format(**{key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})


class DemoDaemon:
    """nsbridged with these routes, all of whose files are in `site.work`; `site.stack` stops it.

    `enter` is called in its process before it begins.
    """

    def __init__(self, site: Site, routes: str, enter: Callable[[], None] = lambda: None) -> None:
        self._waits = site.waits
        self._log = site.work / "nsbridged.log"
        self._output = site.work / "nsbridged.out"
        self._control = str(site.work / "control.sock")
        file = site.work / "nsbridge.toml"
        values = {"state_dir": str(site.work / "state"), "control": self._control, "log": str(self._log)}
        file.write_text(filled(_DAEMON, values) + routes, encoding="utf-8")
        with self._output.open("wb") as output:
            self._daemon = subprocess.Popen(  # noqa: S603  (our own program)
                [sys.executable, "-P", "-m", DAEMON, "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for the demo, which ends things in their order
                preexec_fn=partial(_begin, enter),  # noqa: PLW1509  (no threads)
            )
        site.stack.callback(self._stop)

    @property
    def pid(self) -> int:
        """Return the daemon's pid."""
        return self._daemon.pid

    def status(self) -> dict[str, Any]:
        """Return the output of `nsbridgectl status --json`."""
        with ControlClient(self._control, CALL_LIMIT) as client:
            result: dict[str, Any] = client.call("status")
            return result

    def settled_status(self) -> dict[str, Any]:
        """Return the status once every answer is also counted: the agents confirm just after they hand over."""
        deadline = self._waits.now() + SETTLE_LIMIT
        while True:
            status = self.status()
            flows = status["routes"][0]["flows"]
            settled = not any(flow["pending"] for flow in flows) and len({flow["delivered"] for flow in flows}) == 1
            if settled or self._waits.now() > deadline:  # it is shown as it is: this is a demo of the real thing
                return status
            self._waits.pause(POLL)

    def agents(self) -> dict[str, dict[str, Any]]:
        """Return the agents' part of the status, by their names in the route."""
        agents = self.status()["routes"][0]["agents"]
        return {agent["name"].partition(":")[2]: agent for agent in agents}

    def wait_running(self) -> dict[str, dict[str, Any]]:
        """Return the agents when both run; raise NsbridgeError with what holds them up if they are late."""
        deadline = self._waits.now() + START_LIMIT
        problem = ""
        while self._waits.now() < deadline:
            if self._daemon.poll() is not None:
                raise NsbridgeError(self.explain(f"nsbridged has ended with exit code {self._daemon.returncode}"))
            try:
                agents = self.agents()
            except UnreachableError as error:  # as long as it has not opened its control socket
                problem = str(error)
            else:
                waiting = [agent for agent in agents.values() if agent["state"] != "RUNNING"]
                if not waiting:
                    return agents
                problem = "; ".join(f"{agent['name']} is {agent['state']} {agent['detail']}" for agent in waiting)
            self._waits.pause(POLL)
        raise NsbridgeError(self.explain(f"the agents did not run within {START_LIMIT:g} s: {problem}"))

    def explain(self, what: str) -> str:
        """Return `what`, and beneath it the end of what the daemon has logged."""
        lines = []
        for file in (self._log, self._output):
            with suppress(OSError):
                lines += file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n  ".join([what, *lines])

    def _stop(self) -> None:
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()


class Bridge(DemoDaemon):
    """nsbridged between two containers of one host."""

    def __init__(self, site: Site, client: DemoContainer, server: DemoContainer) -> None:
        values = {
            "client": client.reference,
            "server": server.reference,
            "file_out": f"{client.exchange}/to_server",
            "file_in": f"{client.exchange}/to_client",
        }
        super().__init__(site, filled(_ROUTE, values))


def _begin(enter: Callable[[], None]) -> None:
    enter()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
