"""What the control socket may ask of the daemon: one method for each thing that nsbridgectl does (ControlApi)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TypeVar

from nsbridge.config.errors import UsageError
from nsbridge.supervisor import health
from nsbridge.supervisor.control import Answer
from nsbridge.supervisor.deadapi import DeadApi
from nsbridge.supervisor.gauges import Gauges
from nsbridge.supervisor.managed import Managed
from nsbridge.supervisor.orders import Method, Orders
from nsbridge.supervisor.reloading import Reloader
from nsbridge.supervisor.ring import Named, Ring
from nsbridge.supervisor.roster import Roster
from nsbridge.supervisor.route import Route
from nsbridge.supervisor.services import Services
from nsbridge.supervisor.status import agent_status, route_status

_VERSION = version("nsbridge")  # read once: for want of a descriptor it may not be readable later
_STREAMED = 20  # the last that `tail` and `events` begin with, if they are not told how many

T = TypeVar("T", bound=Named)


class Api:
    """All methods; those about dead letters are in deadapi.py, start, stop and restart in orders.py."""

    def __init__(
        self, services: Services, roster: Roster, orders: Orders, reloader: Reloader, stop: Callable[[], None]
    ) -> None:
        self._roster = roster
        self._reloader = reloader
        self._stop = stop
        self._started = time.monotonic()
        self._gauges = Gauges()
        self._state_dir = services.state_dir
        self._methods: dict[str, Method] = {
            "version": lambda _params, answer: answer.result({"version": _VERSION}),
            "status": self._status,
            **orders.methods,
            "reload": self._reload,
            "tail": lambda params, answer: self._stream(services.log.ring, params, answer),
            "events": lambda params, answer: self._stream(services.events.ring, params, answer),
            "inspect": self._inspect,
            "top": self._top,
            "shutdown": self._shutdown,
            **DeadApi(services, roster.select).methods,
        }

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        """See ControlApi."""
        if method not in self._methods:
            raise UsageError(f"there is no method {method!r}; there are {', '.join(self._methods)}")
        self._methods[method](params, answer)

    def _status(self, params: dict[str, object], answer: Answer) -> None:
        answer.result(self._document(self._roster.select(params)))

    def _document(self, chosen: list[tuple[Route, list[Managed]]]) -> dict[str, object]:
        return {
            "schema": 1,
            "daemon": {
                "pid": os.getpid(),
                "version": _VERSION,
                "uptime_s": round(time.monotonic() - self._started, 3),
                "config": self._reloader.config.source,
            },
            "routes": [route_status(route, agents, self._state_dir) for route, agents in chosen],
        }

    def _top(self, params: dict[str, object], answer: Answer) -> None:
        chosen = self._roster.select(params)
        answer.result(self._document(chosen) | self._gauges.of([agent for _, agents in chosen for agent in agents]))

    def _reload(self, params: dict[str, object], answer: Answer) -> None:
        """Answer with the plan: at once, or with `wait` when it has been carried out."""
        dry_run = bool(params.get("dry_run"))
        plan = self._reloader.plan() if dry_run else self._reloader.reload()
        result = {"dry_run": dry_run, **plan.item()}
        if params.get("wait") and not dry_run:
            self._reloader.when_done(lambda: answer.result(result))
        else:
            answer.result(result)

    def _stream(self, ring: Ring[T], params: dict[str, object], answer: Answer) -> None:
        """The last `count` about `name`; with `follow`, then all that come."""
        name = params.get("name") or ""
        count = params.get("count", _STREAMED)
        if not isinstance(name, str) or not isinstance(count, int):
            raise UsageError("name must be a string, count a number")
        if name:
            self._roster.select({"names": [name]})
        for entry in ring.recent(count, name):
            answer.item(entry.item())
        if not params.get("follow"):
            answer.result(None)
            return

        def follow(entry: T) -> None:
            answer.item(entry.item())

        answer.on_close(ring.subscribe(follow, name))

    def _inspect(self, params: dict[str, object], answer: Answer) -> None:
        chosen = self._roster.select({"names": [params.get("name")]})
        agents = [agent for _, agents in chosen for agent in agents]
        answer.result([_inspected(agent) for agent in agents])

    def _shutdown(self, _params: dict[str, object], answer: Answer) -> None:
        answer.result({"pid": os.getpid()})
        if not self._roster.is_ending:  # or it would not wait for what is in flight any more
            self._stop()


def _inspected(agent: Managed) -> dict[str, object]:
    """Its process and those that send for it; if there is none, why, and when the next is tried, in seconds."""
    about = {key: value for key, value in agent_status(agent).items() if key in ("name", "state", "phase", "detail")}
    if not agent.pid:
        return {**about, "retry_in_s": agent.retry_in}
    processes = [health.inspect(pid, container_pid=agent.container_pid) for pid in (agent.pid, *agent.senders)]
    landlock = bool((agent.confinement or {}).get("landlock"))
    return {**about, **processes[0], "landlock": landlock, "senders": processes[1:]}
