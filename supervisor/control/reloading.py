"""Reads the configuration again: HUP, and `reload` over the control socket.

routes/plan.py decides what changes, and routes/roster.py does it.

All or nothing: whatever is wrong is found before anything is touched, and then nothing is. A reload while an earlier
one is still under way needs no waiting: what is asked for counts from then on (routes/roster.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nsbridge.config.advice import advice
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.load import load_trusted
from nsbridge.config.schema import Config, DeadConfig
from nsbridge.supervisor.control import deadletters
from nsbridge.supervisor.control.orders import Orders, is_settled
from nsbridge.supervisor.health.check import HealthCheck
from nsbridge.supervisor.host.limits import read_host, shortages
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.routes.plan import Plan, compare
from nsbridge.supervisor.routes.roster import Roster


class Reloader:
    """`config` is what counts now; `read` gives the configuration that is in a file, or raises ConfigError."""

    def __init__(
        self,
        config: Config,
        services: Services,
        roster: Roster,
        orders: Orders,
        health: HealthCheck,
        read: Callable[[str], Config] = load_trusted,
    ) -> None:
        self.config = config
        self._log = services.log
        self._events = services.events
        self._roster = roster
        self._orders = orders
        self._health = health
        self._dead = services.dead
        self._read = read

    def plan(self) -> Plan:
        """Return what a reload would do now. Raise NsbridgeError: ConfigError has all that is wrong with the file."""
        if not self.config.source:
            raise NsbridgeError("this daemon was started without a configuration file, so there is none to read again")
        if self._roster.is_ending:
            raise NsbridgeError("the daemon is stopping: its configuration is not read again")
        new = self._read(self.config.source)
        plan = compare(self.config, new)
        before, after = self.config.daemon.state_dir, new.daemon.state_dir
        return (
            plan
            if before == after
            else dataclasses.replace(plan, remarks=(*plan.remarks, self._left_in(before, after)))
        )

    def _left_in(self, before: str, after: str) -> str:
        """Say what stays in the old state_dir, which a daemon with the new one would not find."""
        messages = sum(agent.pending for agent in self._roster.agents)
        letters = sum(deadletters.count(before, agent.config.name) or 0 for agent in self._roster.agents)
        waiting = f"{_counted(messages, 'message')} and {_counted(letters, 'dead letter')} in {before}"
        return (
            f"daemon.state_dir: what waits now ({waiting}), counters and positions stay there: to keep them, stop "
            f"nsbridged and move the directory (mv {before} {after}) before it starts again"
        )

    def reload(self) -> Plan:
        """Do it, as far as it can be done at once; the rest follows by itself. Raises NsbridgeError; see `plan`."""
        try:
            plan = self.plan()
            if plan.config.daemon.log != self.config.daemon.log:
                self._log.reconfigure(plan.config.daemon.log)
        except NsbridgeError as error:
            for line in str(error).splitlines():
                self._log.error("", f"reload: {line}")
            self._log.error("", "reload: nothing was changed")
            self._events.reload("nothing was changed: " + "; ".join(str(error).splitlines()))
            raise
        self._log.info("", f"reload: {plan.summary()}")
        for line in (*advice(plan.config), *shortages(plan.config, read_host())):
            self._log.warning("", line)
        self._events.reload(plan.summary())
        self.config = plan.config
        self._health.adopt(plan.config.daemon.health)
        self._adopt_dead(plan.config.daemon.dead)
        self._roster.adopt(plan)
        return plan

    def _adopt_dead(self, limits: DeadConfig) -> None:
        """Send new limits of dead letters to the agents, if they have changed."""
        if limits != self._dead.limits:
            self._dead.limits = limits
            for agent in self._roster.agents:
                agent.send_order("dead", **dataclasses.asdict(limits))

    def on_signal(self) -> None:
        """Reload after HUP; the log gets what is wrong."""
        try:
            self.reload()
        except NsbridgeError:
            pass  # the log has it
        except Exception as bug:  # noqa: BLE001  (a file must never end the daemon)
            self._log.error("", f"reload: a bug, nothing more was changed: {type(bug).__name__}: {bug}")

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the routes match the configuration and every agent has reached its state."""
        self._orders.when(lambda: self._roster.is_settled and all(map(is_settled, self._roster.agents)), callback)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
