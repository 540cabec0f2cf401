"""The supervisor: one thread, one loop. routes/roster.py has its routes; control/api.py answers the control socket."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version

from nsbridge.agents.confinement import emptyns
from nsbridge.agents.loop import Loop
from nsbridge.agents.statefiles import journal_path
from nsbridge.config.advice import advice
from nsbridge.config.schema import Config, RouteConfig
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.control.api import Api
from nsbridge.supervisor.control.orders import Orders, is_settled
from nsbridge.supervisor.control.reloading import Reloader
from nsbridge.supervisor.control.server import ControlServer
from nsbridge.supervisor.health.check import HealthCheck
from nsbridge.supervisor.host.limits import read_host, shortages
from nsbridge.supervisor.host.pidfile import PidFile
from nsbridge.supervisor.host.strays import Strays
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.evidence import CounterLeases
from nsbridge.supervisor.lifecycle.services import DeadLetterLimits, Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import Log
from nsbridge.supervisor.ownfiles import OwnFiles
from nsbridge.supervisor.routes.keywatch import KeyWatch
from nsbridge.supervisor.routes.loops import Circles
from nsbridge.supervisor.routes.plan import compare
from nsbridge.supervisor.routes.roster import Roster
from nsbridge.supervisor.routes.route import Route


class Supervisor:
    """Serves a configuration until it is stopped. `observer` gets every agent whose state changes."""

    def __init__(
        self,
        config: Config,
        log: Log,
        observer: Callable[[ManagedAgent], None] = lambda _agent: None,
        pidfile: PidFile | None = None,
    ) -> None:
        self.loop = Loop()
        log.attach(self.loop)
        self._config = config
        self._log = log
        arrivals, daemon = Arrivals(self.loop, log), config.daemon
        self._empty, self._not_empty = emptyns.make()
        self._circles = Circles()
        self._services = Services(
            self.loop,
            log,
            Events(),
            daemon.state_dir,
            arrivals,
            health=daemon.health,
            require=daemon.require,
            empty=self._empty,
            dead=DeadLetterLimits(daemon.dead),
            evidence=CounterLeases(daemon.evidence, daemon.state_dir, partial(log.info, "")),
        )
        self._observer = observer
        self._pidfile = pidfile
        self._own_files = OwnFiles(self.loop, log, daemon.state_dir, self._journals)
        self._roster = Roster(self.loop, log, self._make_route, self._settled)
        self._health = HealthCheck(self._services, self._roster)
        self._keys = KeyWatch(self._services, self._roster)
        self._orders = Orders(self._roster)
        self._reloader = Reloader(config, self._services, self._roster, self._orders, self._health)

    def run(self, ready: Callable[[], None] = lambda: None, *, with_control: bool = True) -> None:
        """Start what is to start, call `ready`, serve; returns when everything has stopped. Raises NsbridgeError."""
        _raise_descriptor_limit()
        api = Api(self._services, self._roster, self._orders, self._reloader, self._health, self.stop)
        notice, audit = (partial(write, "") for write in (self._log.warning, self._log.info))
        control = ControlServer(self.loop, self._config.daemon.control, api, notice, audit)
        self.loop.on_signal(signal.SIGTERM, self.stop)
        self.loop.on_signal(signal.SIGINT, self.stop)
        self.loop.on_signal(signal.SIGUSR1, self._log.reopen)
        self.loop.on_signal(signal.SIGHUP, self._reloader.on_signal)
        strays = Strays(self.loop, self._log)
        strays.watch()
        try:
            if with_control:
                control.open()
            self._start()
            self._own_files.start(self._services.arrivals, self._pidfile, control if with_control else None)
            self._orders.when(lambda: self._roster.is_settled, lambda: self._report(ready))
            if not self._has_stopped():
                self.loop.run()
        finally:
            control.close()
            self._keys.close()
            self._roster.close()
            self._services.evidence.close(is_orderly=self._has_stopped())
            strays.close()
            self._services.arrivals.close()
            for namespace in self._empty:
                os.close(namespace.fd)
            self._health.close()
            self._log.attach(None)
            self.loop.close()
        self._log.info("", "nsbridged stopped")

    @property
    def events(self) -> Events:
        """Return the stream of events, for its followers."""
        return self._services.events

    def states(self) -> list[tuple[str, State]]:
        """Return every agent's name and state."""
        return [(agent.config.name, agent.state) for agent in self._roster.agents]

    def stop(self) -> None:
        """Stop every route in order, then end. A second call does not wait for what is in flight."""
        agents = self._roster.agents
        if self._roster.is_ending:
            for agent in agents:
                agent.stop()
                agent.exit()
            return
        self._roster.end()
        self._log.info("", "stopping: handing over what is in flight")
        self._services.events.daemon("stopping")
        for agent in agents:
            agent.stop()
        self._settled()

    def _start(self) -> None:
        started = f"pid {os.getpid()}: {self._config.count}"
        self._log.info("", f"nsbridged {version('nsbridge')} started, {started}")
        self._services.events.daemon("started", started)
        for kind, why in self._not_empty.items():
            self._log.warning("", f"agents stay in the host's {kind} namespace: no empty one can be made here ({why})")
        for line in (*advice(self._config), *shortages(self._config, read_host())):
            self._log.warning("", line)
        began = self.loop.now()
        self._roster.adopt(compare(Config(self._config.daemon, ()), self._config))
        self._health.start()
        agents = self._roster.agents
        self._orders.when(lambda: all(map(is_settled, agents)), lambda: self._log_started(agents, began))

    def _report(self, ready: Callable[[], None]) -> None:
        if not self._roster.is_ending:
            ready()

    def _log_started(self, agents: Sequence[ManagedAgent], began: float) -> None:
        """Log that the first start of all agents is over: with hundreds it takes seconds."""
        states = Counter(agent.state.value for agent in agents)
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        if agents and not self._roster.is_ending:
            self._log.info("", f"all agents were started within {self.loop.now() - began:.1f} s: {counted}")

    def _journals(self) -> Iterator[str]:
        """Yield the paths of the journals that agents have open, for agents that have been ready."""
        for agent in self._roster.agents:
            if agent.uptime is None:
                continue
            for side, is_there in (("out", agent.config.endpoint.out), ("in", agent.config.endpoint.in_)):
                if is_there:
                    yield str(journal_path(self._services.state_dir, agent.config.name, side))

    def _make_route(self, config: RouteConfig) -> Route:
        return Route(self._services, config, self._circles, self._changed)

    def _changed(self, agent: ManagedAgent) -> None:
        self._observer(agent)
        self._roster.changed()
        if agent.state is State.RUNNING:
            self._keys.wake()
        self._settled()

    def _settled(self) -> None:
        self._orders.changed()
        if self._has_stopped():
            self.loop.stop()

    def _has_stopped(self) -> bool:
        return self._roster.is_ending and all(route.is_stopped() for route in self._roster.routes.values())


def _raise_descriptor_limit() -> None:
    """Raise the soft limit: a route needs about ten descriptors, and select(2), which it is meant for, is not used."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
