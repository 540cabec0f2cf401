"""All routes: those that the configuration asks for, those that are there, and how the one becomes the other.

Nothing here waits. A new configuration defines what is wanted from now on. Then, and whenever a route has ended,
`settle` does what can be done. It drops the routes that have ended, makes those that are missing, and starts those
that nothing blocks. So it makes no difference whether one configuration comes or three in the same second.

* A route that was removed or changed is held: it hands over what is in flight, and ends. A successor follows a changed
  route. Each of its agents is wanted if the agent of the same name was wanted when the old route ended.
* A new route is held too, as long as an old one is there that it may meet (plan.py).
* A held agent may be wanted; it starts when it is not held any more. So people may start and stop what is on its way.
* Starting an agent is a fork, and takes milliseconds. So a few routes are started in one turn of the loop: the daemon
  answers while hundreds start, and shows how far it is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol

from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.config.schema import RouteConfig
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.log.log import Log
from nsbridge.supervisor.routes.plan import Plan, may_meet
from nsbridge.supervisor.routes.route import Route

MAKE_AGAIN = 1.0  # seconds until a route is tried again for which there was no descriptor or memory
AT_ONCE = 4  # routes that are started in one turn of the loop


class Later(Protocol):
    """The loop, as far as it is used here."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        """See Loop."""
        ...


class Roster:
    """The routes of a daemon. `make` makes one, with its agents held; `on_settled` is called when routes changed."""

    def __init__(
        self, loop: Later, log: Log, make: Callable[[RouteConfig], Route], on_settled: Callable[[], None]
    ) -> None:
        self.routes: dict[str, Route] = {}  # those that are there, in the configuration's order
        self._loop = loop
        self._log = log
        self._make = make
        self._on_settled = on_settled
        self._asked: dict[str, RouteConfig] = {}
        self._wanted: dict[str, dict[str, bool]] = {}  # of routes that ended to be followed: by the agent's name
        self.is_ending = False  # nothing is started any more
        self._due = False

    @property
    def agents(self) -> list[ManagedAgent]:
        """Return the agents of all routes."""
        return [agent for route in self.routes.values() for agent in route.agents]

    @property
    def is_settled(self) -> bool:
        """True if exactly the routes that the configuration asks for exist, and none is held; also while all ends."""
        return self.is_ending or (
            self.routes.keys() == self._asked.keys() and not any(r.is_held for r in self.routes.values())
        )

    def adopt(self, plan: Plan) -> None:
        """Ask for the routes of its configuration from now on, of which it says what is other than before."""
        self._asked = {route.name: route for route in plan.config.routes}
        self._wanted = {name: wanted for name, wanted in self._wanted.items() if name in self._asked}
        for name in (*plan.stop, *plan.restart):
            if name in self.routes:
                self.routes[name].retire()
        for name in plan.unchanged:
            if name in self.routes and not self.routes[name].is_leaving:
                self.routes[name].config = self._asked[name]
        self.settle()

    def end(self) -> None:
        """Start nothing any more."""
        self.is_ending = True

    def changed(self) -> None:
        """Note that an agent's state changed. If a route has ended, settle once the caller is done with the agent."""
        if any(route.is_leaving and route.is_stopped() for route in self.routes.values()):
            self._settle_soon()

    def _settle_soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(0, self.settle)

    def settle(self) -> None:
        """Do what can be done now."""
        self._due = False
        if self.is_ending:
            return
        for route in [route for route in self.routes.values() if route.is_leaving and route.is_stopped()]:
            self._remove(route)
        missing = [config for config in self._asked.values() if config.name not in self.routes]
        if missing:
            self._make_all(missing)
        self.routes = {name: self.routes[name] for name in (*self._asked, *self.routes) if name in self.routes}
        leaving = [route for route in self.routes.values() if route.is_leaving]
        held = [route for route in self.routes.values() if route.is_held]
        free = [route for route in held if not any(may_meet(route.config, other.config) for other in leaving)]
        for route in free[:AT_ONCE]:
            route.release()
            if self.is_ending:  # an observer may end it all at the first agent that cannot start
                break
        if len(free) > AT_ONCE:
            self._settle_soon()
        self._on_settled()

    def is_going(self, route: Route) -> bool:
        """True if the route is on its way out and no successor follows it."""
        return route.is_leaving and route.config.name not in self._asked

    def select(self, params: dict[str, object]) -> list[tuple[Route, list[ManagedAgent]]]:
        """Return the routes and agents that `names` means; all if it is empty or has `all`. Raises NoSuchNameError."""
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

    def close(self) -> None:
        """Give everything back; all have stopped."""
        for route in self.routes.values():
            route.close()

    def _remove(self, route: Route) -> None:
        del self.routes[route.config.name]
        if route.config.name in self._asked:
            self._wanted[route.config.name] = {agent.config.name: agent.wanted for agent in route.agents}
        route.close()

    def _make_all(self, missing: list[RouteConfig]) -> None:
        for config in missing:
            try:
                route = self._make(config)
            except OSError as error:
                self._log.error("", f"route {config.name} cannot be made, it is tried again: {error.strerror}")
                self._loop.call_later(MAKE_AGAIN, self.settle)
                break
            wanted = self._wanted.pop(config.name, {})
            by_itself = any(wanted.values()) if wanted else config.autostart
            for agent in route.agents:
                agent.wanted = wanted.get(agent.config.name, by_itself)
            self.routes[config.name] = route
        gc.collect()
        gc.freeze()  # what is shared with the agents stays shared: the collector would write into every object


def no_longer(route: Route) -> NsbridgeError:
    """Return the error for a caller that wants to start a route that is on its way out."""
    return NsbridgeError(
        f"{route.config.name} was taken out of the configuration, and is handing over its last messages"
    )


def _names(route: Route) -> list[str]:
    return [route.config.name, *(agent.config.name for agent in route.agents)]
