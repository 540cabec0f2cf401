"""Methods of the control socket: one for each thing that nsbridgectl does (ControlApi)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple, TypeVar

from nsbridge.config.errors import NsbridgeError, UsageError
from nsbridge.supervisor.containers import unknown
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.dead import DeadApi
from nsbridge.supervisor.control.lettercounts import LetterCounts
from nsbridge.supervisor.control.orders import Method, Orders
from nsbridge.supervisor.control.overview import Overview
from nsbridge.supervisor.control.reloading import Reloader
from nsbridge.supervisor.control.status import agent_status, route_status
from nsbridge.supervisor.control.tap import TapApi
from nsbridge.supervisor.health import processes as health
from nsbridge.supervisor.health.check import HealthCheck
from nsbridge.supervisor.health.gauges import Gauges
from nsbridge.supervisor.health.measuring import Found
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.log.ring import Named, Ring
from nsbridge.supervisor.routes.roster import Roster
from nsbridge.supervisor.routes.route import Route

_VERSION = version("nsbridge")  # read once: for want of a descriptor it may not be readable later
_STREAMED_BYTES = 256 << 10  # of them: as JSON three times as many, which must fit the connection's queue at once
_STREAMED = 20  # the last that `tail` and `events` begin with, if the caller names no number

T = TypeVar("T", bound=Named)


class Api:
    """All methods; those about dead letters are in dead.py, start, stop and restart in orders.py."""

    def __init__(
        self,
        services: Services,
        roster: Roster,
        orders: Orders,
        reloader: Reloader,
        check: HealthCheck,
        stop: Callable[[], None],
    ) -> None:
        self._roster = roster
        self._reloader = reloader
        self._health = check
        self._stop = stop
        self._started = time.monotonic()
        self._gauges = Gauges()
        self._letters = LetterCounts(services.state_dir)
        self._rows = Overview(self._letters)
        self._methods: dict[str, Method] = {
            "version": lambda _params, answer: answer.result({"version": _VERSION}),
            "status": self._status,
            **orders.methods,
            "reload": self._reload,
            "tail": lambda params, answer: self._stream(services.log.ring, params, answer),
            "events": lambda params, answer: self._stream(services.events.ring, params, answer),
            "inspect": self._inspect,
            "top": self._top,
            "overview": lambda _params, answer: answer.result(self._overview()),
            "shutdown": self._shutdown,
            **DeadApi(services, roster.select).methods,
            **TapApi(services.loop, roster.select).methods,
        }

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        """See ControlApi."""
        if method not in self._methods:
            raise UsageError(f"there is no method {method!r}; there are {', '.join(self._methods)}")
        self._methods[method](params, answer)

    def _status(self, params: dict[str, object], answer: Answer) -> None:
        answer.result(self._document(self._roster.select(params)))

    def _document(self, chosen: list[tuple[Route, list[ManagedAgent]]]) -> dict[str, object]:
        routes = [route_status(route, agents, self._letters.exact) for route, agents in chosen]
        return {"schema": 1, "daemon": self._daemon(), "routes": routes}

    def _overview(self) -> dict[str, object]:
        return {"schema": 1, "daemon": self._daemon(), **self._rows.rows(self._roster.routes.values())}

    def _daemon(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "version": _VERSION,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "config": self._reloader.config.source,
        }

    def _top(self, params: dict[str, object], answer: Answer) -> None:
        """Answer after measuring the own memory of a few agents, which takes milliseconds (health/measuring.py)."""
        agents = self._agents(params)

        def send_result(found: Found) -> None:
            self._gauges.learn(agents, found)
            if answer.is_open:
                try:
                    chosen = self._roster.select(params)  # again: a route may have gone meanwhile
                except NsbridgeError as error:
                    answer.error(error)
                else:
                    answer.result(self._document(chosen) | self._gauges.of(self._agents(params)))

        self._health.measurer.ask(self._gauges.due(agents), send_result)

    def _agents(self, params: dict[str, object]) -> list[ManagedAgent]:
        return [agent for _, agents in self._roster.select(params) for agent in agents]

    def _reload(self, params: dict[str, object], answer: Answer) -> None:
        """Answer with the plan: at once, or with `wait` when it has been carried out.

        With `dry_run`, a child asks the engines for containers that they do not know.
        """
        if params.get("dry_run"):
            plan = self._reloader.plan()
            result = {"dry_run": True, **plan.item()}
            answer.by_child(
                lambda: {**result, "warnings": unknown.warnings(plan.config)}, lambda: answer.result(result)
            )
            return
        result = {"dry_run": False, **self._reloader.reload().item()}
        if params.get("wait"):
            self._reloader.when_done(lambda: answer.result(result))
        else:
            answer.result(result)

    def _stream(self, ring: Ring[T], params: dict[str, object], answer: Answer) -> None:
        """Send the last `count` records about `name`; with `follow`, then all that come."""
        name = params.get("name") or ""
        count = params.get("count", _STREAMED)
        if not isinstance(name, str) or not isinstance(count, int):
            raise UsageError("name must be a string, count a number")
        if name:
            self._roster.select({"names": [name]})
        if params.get("follow"):
            answer.follow()
        for entry in ring.recent(count, name, _STREAMED_BYTES):
            answer.item(entry.item())
        if not params.get("follow"):
            answer.result(None)
            return

        def follow(entry: T) -> None:
            answer.item(entry.item())

        answer.on_close(ring.subscribe(follow, name))

    def _inspect(self, params: dict[str, object], answer: Answer) -> None:
        """Let a child inspect the agents. If it hangs at the processes' memory, a second one omits that."""
        known = [_known(agent) for agent in self._agents({"names": [params.get("name")]})]
        pids = [pid for agent in known for pid in agent.pids]

        def look(*, memory: bool) -> list[dict[str, object]]:
            return [_inspected(agent, memory=memory) for agent in known]

        def without_memory() -> None:
            self._health.measurer.ask(
                pids, lambda _found: None
            )  # so that the next inspect can show which of them are unreadable
            answer.by_child(partial(look, memory=False))

        if any(map(self._health.measurer.is_unreadable, pids)):
            without_memory()
        else:
            answer.by_child(partial(look, memory=True), without_memory)

    def _shutdown(self, _params: dict[str, object], answer: Answer) -> None:
        answer.result({"pid": os.getpid()})
        if not self._roster.is_ending:  # or it would not wait for what is in flight any more
            self._stop()


_INSPECTED = ("name", "state", "phase", "detail", "evidence", "no_counter")


class _Known(NamedTuple):
    """The supervisor's data about an inspected agent, for a child, which has no scoreboard."""

    about: dict[str, object]
    pids: list[int]  # its own, if it has a process, and those that send for it
    container_pid: int | None
    landlock: bool


def _known(agent: ManagedAgent) -> _Known:
    about = {key: value for key, value in agent_status(agent).items() if key in _INSPECTED}
    if not agent.pid:
        return _Known({**about, "retry_in_s": agent.retry_in}, [], None, landlock=False)
    landlock = bool((agent.confinement or {}).get("landlock"))
    return _Known(about, [agent.pid, *agent.senders], agent.container_pid, landlock)


def _inspected(agent: _Known, *, memory: bool) -> dict[str, object]:
    """Describe an agent's process and its senders; without a process, the reason, and the seconds until the next start.

    Runs in a child: see health/processes.py.
    """
    if not agent.pids:
        return agent.about
    first, *senders = [health.inspect(pid, container_pid=agent.container_pid, memory=memory) for pid in agent.pids]
    return {**agent.about, **first, "landlock": agent.landlock, "senders": senders}
