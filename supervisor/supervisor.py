"""The supervisor: all routes of a configuration, and what the control socket may ask of them. One thread, one loop."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from importlib.metadata import version

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.config.schema import Config
from nsbridge.supervisor import health
from nsbridge.supervisor.control import Answer, ControlServer
from nsbridge.supervisor.deadapi import DeadApi
from nsbridge.supervisor.lifecycle import State
from nsbridge.supervisor.logs import Entry, Log
from nsbridge.supervisor.managed import Managed
from nsbridge.supervisor.route import Route
from nsbridge.supervisor.services import Services
from nsbridge.supervisor.status import route_status

HEALTH_EVERY = 5.0  # seconds
_SETTLED = {State.RUNNING, State.WAITING, State.FATAL, State.STOPPED}


class Supervisor:
    """Serves a configuration until told to stop."""

    def __init__(self, config: Config, log: Log, observer: Callable[[Managed], None] = lambda _agent: None) -> None:
        self.config = config
        self.loop = Loop()
        self.routes: dict[str, Route] = {}
        self._log = log
        self._services = Services(self.loop, log, config.daemon.state_dir)
        self._started = time.monotonic()
        self._observer = observer
        self._health_due = 0.0
        self._stopping = False
        self._when_settled: list[Callable[[], bool]] = []  # each is asked after a change until it says that it is done
        self._methods: dict[str, Callable[[dict[str, object], Answer], None]] = {
            "version": lambda _params, answer: answer.result({"version": version("nsbridge")}),
            "status": self._status,
            "start": lambda params, answer: self._order(params, answer, Managed.start),
            "stop": lambda params, answer: self._order(params, answer, Managed.stop),
            "restart": lambda params, answer: self._order(params, answer, Managed.restart),
            "tail": self._tail,
            "inspect": self._inspect,
            "shutdown": self._shutdown,
            **DeadApi(config.daemon.state_dir, log, self._select).methods,
        }

    def run(self, ready: Callable[[], None] = lambda: None, *, with_control: bool = True) -> None:
        """Start what is to start, call `ready`, serve; returns when everything has stopped. Raises NsbridgeError."""
        _raise_descriptor_limit()
        control = ControlServer(self.loop, self.config.daemon.control, self, lambda line: self._log.warning("", line))
        self.loop.on_signal(signal.SIGTERM, self.stop)
        self.loop.on_signal(signal.SIGINT, self.stop)
        self.loop.on_signal(signal.SIGUSR1, self._log.reopen)
        self.loop.on_signal(signal.SIGHUP, lambda: self._log.warning("", "SIGHUP: restart to apply a configuration"))
        try:
            if with_control:
                control.open()
            for config in self.config.routes:
                self.routes[config.name] = Route(self._services, config, self._changed)
            gc.collect()
            gc.freeze()  # what is shared with the agents stays shared: the collector would write into every object
            self._log.info("", f"nsbridged {version('nsbridge')} started, pid {os.getpid()}: {_count(self.config)}")
            for agent in [a for route in self.routes.values() if route.config.autostart for a in route.agents]:
                if not self._stopping:  # an observer may end it all at the first agent that cannot start
                    agent.start()
            self._health_due = self.loop.now()
            self._check_health()
            ready()
            if not self._has_stopped():
                self.loop.run()
        finally:
            control.close()
            for route in self.routes.values():
                route.close()
            self.loop.close()
        self._log.info("", "nsbridged stopped")

    def stop(self) -> None:
        """Stop every route in order, then end. A second call does not wait for what is in flight."""
        agents = self._all_agents()
        if self._stopping:
            for agent in agents:
                agent.stop()
                agent.exit()
            return
        self._stopping = True
        self._log.info("", "stopping: handing over what is in flight")
        for agent in agents:
            agent.stop()
        self._changed(None)

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        """Do what a caller of the control socket may ask (ControlApi)."""
        if method not in self._methods:
            raise UsageError(f"there is no method {method!r}; there are {', '.join(self._methods)}")
        self._methods[method](params, answer)

    def _all_agents(self) -> list[Managed]:
        return [agent for route in self.routes.values() for agent in route.agents]

    def _changed(self, agent: Managed | None) -> None:
        if agent is not None:
            self._observer(agent)
        self._when_settled = [done for done in self._when_settled if not done()]
        if self._has_stopped():
            self.loop.stop()

    def _has_stopped(self) -> bool:
        return self._stopping and all(route.is_stopped() for route in self.routes.values())

    def _check_health(self) -> None:
        late = self.loop.now() - self._health_due
        if (
            late < HEALTH_EVERY
        ):  # else this process was stopped itself, and its agents may have been: let them beat first
            for agent in self._all_agents():
                agent.check_health()
                agent.log_blocked()
        self._health_due = self.loop.now() + HEALTH_EVERY
        self.loop.call_at(self._health_due, self._check_health)

    def _select(self, params: dict[str, object]) -> list[tuple[Route, list[Managed]]]:
        """The routes and agents that `names` means; all if it is empty or has `all`. Raises NoSuchNameError."""
        names = params.get("names") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError("names must be a list of strings")
        everything = not names or "all" in names
        known = {name for route in self.routes.values() for name in _names(route)}
        unknown = [name for name in names if name != "all" and name not in known]
        if unknown:
            listed = ", ".join(repr(name) for name in unknown)
            raise NoSuchNameError(
                f"there is no route or agent {listed}; there are {', '.join(sorted(known)) or 'none'}"
            )
        chosen = []
        for route in self.routes.values():
            whole = everything or route.config.name in names
            agents = [agent for agent in route.agents if whole or agent.config.name in names]
            if agents:
                chosen.append((route, agents))
        return chosen

    def _status(self, params: dict[str, object], answer: Answer) -> None:
        answer.result(
            {
                "schema": 1,
                "daemon": {
                    "pid": os.getpid(),
                    "version": version("nsbridge"),
                    "uptime_s": round(time.monotonic() - self._started, 3),
                    "config": self.config.source,
                },
                "routes": [route_status(route, agents) for route, agents in self._select(params)],
            }
        )

    def _order(self, params: dict[str, object], answer: Answer, order: Callable[[Managed], None]) -> None:
        if not params.get("names"):
            raise UsageError("name a route or an agent, or write all")
        if self._stopping:
            raise NsbridgeError("the daemon is stopping")
        agents = [agent for _, chosen in self._select(params) for agent in chosen]
        restarting = {agent: agent.pid for agent in agents} if order is Managed.restart else {}
        for agent in agents:
            order(agent)

        def settled() -> bool:
            if not all(a.state in _SETTLED and (a.pid is None or restarting.get(a) != a.pid) for a in agents):
                return False
            answer.result(
                {"agents": [{"name": a.config.name, "state": a.state.value, "detail": a.detail} for a in agents]}
            )
            return True

        if not params.get("wait"):
            answer.result(
                {"agents": [{"name": a.config.name, "state": a.state.value, "detail": a.detail} for a in agents]}
            )
        elif not settled():
            self._when_settled.append(settled)

    def _tail(self, params: dict[str, object], answer: Answer) -> None:
        name = params.get("name") or ""
        count = params.get("count", 20)
        if not isinstance(name, str) or not isinstance(count, int):
            raise UsageError("name must be a string, count a number")
        if name:
            self._select({"names": [name]})
        for line in self._log.recent(count, name):
            answer.item(line.item())
        if not params.get("follow"):
            answer.result(None)
            return

        def follow(line: Entry) -> None:
            answer.item(line.item())

        answer.on_close(self._log.subscribe(follow, name))

    def _inspect(self, params: dict[str, object], answer: Answer) -> None:
        name = params.get("name")
        chosen = [agent for _, agents in self._select({"names": [name]}) for agent in agents]
        answer.result([{"name": agent.config.name, "state": agent.state.value} | _inspected(agent) for agent in chosen])

    def _shutdown(self, _params: dict[str, object], answer: Answer) -> None:
        answer.result({"pid": os.getpid()})
        self.stop()


def _inspected(agent: Managed) -> dict[str, object]:
    """Its process and those that send for it; nothing if there is none."""
    if not agent.pid:
        return {}
    processes = [health.inspect(pid, container_pid=agent.container_pid) for pid in (agent.pid, *agent.senders)]
    return {**processes[0], "senders": processes[1:]}


def _names(route: Route) -> list[str]:
    return [route.config.name, *(agent.config.name for agent in route.agents)]


def _count(config: Config) -> str:
    count = len(config.routes)
    return f"{count} route{'' if count == 1 else 's'}"


def _raise_descriptor_limit() -> None:
    """A route needs about ten descriptors here; the soft limit is meant for select(2), which is not used."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
