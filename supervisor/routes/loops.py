"""Detects loops: a message that one flow hands over is taken again by the same flow, or by a chain of others.

config/check.py refuses loops between containers that are written alike. Two containers may also share a namespace or a
mount, which shows only when they run. The supervisor has each agent's namespace, and an agent reports its ends.

* A loop within a route is refused: both agents are FATAL, because each message would come back indefinitely.
* A circle through several routes is refused if the supervisor itself has every place (queues with numeric keys): the
  agent that closes the circle is FATAL. Otherwise the supervisor only warns: an agent may be compromised, and its
  report must not stop other routes.
* Two exactly-once routes that send into one queue overwrite each other's evidence of what was sent; that is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nsbridge.agents.places import parse
from nsbridge.config.advice import shared_queue
from nsbridge.config.check import selects
from nsbridge.config.schema import AgentConfig, Delivery, Place, RouteConfig

Warn = Callable[[str, str], None]  # takes an agent's name and a line for the log


@dataclass(frozen=True, slots=True)
class Serving:
    """One serving agent: its route, its configuration, the inode of its namespace, and its own report."""

    route: RouteConfig
    config: AgentConfig
    namespace: int
    reported: object = None  # see places.parse
    is_counted: bool = False  # the kernel counts what it sends


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow: the identities of its place, and True if the supervisor has them by itself."""

    agent: str
    shown: str
    places: frozenset[str]
    is_known: bool
    selector: int | None = None  # see Place
    type: int | None = None  # the type that messages have there; None if any, or they have none
    has_last_sender: bool = False  # see Place; without the kernel's counter


@dataclass(frozen=True, slots=True)
class Flow:
    """From one agent's `out` to the other's `in`."""

    source: End
    sink: End
    is_exact: bool  # delivered exactly once


def flows_of(serving: Sequence[Serving]) -> Iterator[Flow]:
    """Return the flows of one route, as far as both of its agents are known."""
    if len(serving) != 2:  # noqa: PLR2004
        return
    for one, other in (serving, tuple(reversed(serving))):
        source, sink = _end(one, "out"), _end(other, "in")
        if source is not None and sink is not None:
            yield Flow(source, sink, one.route.delivery is Delivery.EXACTLY_ONCE)


def in_route(serving: Sequence[Serving]) -> str:
    """Return the reason why the two agents of a route must not serve together; empty if they may."""
    flows = list(flows_of(serving))
    for flow in flows:
        for other in flows:
            if feeds(flow.sink, other.source):
                return _hears(flow.sink, other.source)
    return ""


def circle(flows: Sequence[Flow], agent: str) -> Sequence[Flow]:
    """Return a circle of flows through one of `agent`: each feeds the next, the last one the first. Empty if none."""
    for first in flows:
        if agent in (first.source.agent, first.sink.agent) and (found := _way(first, first, flows, set())):
            return found
    return ()


def refusal(round_: Sequence[Flow]) -> str:
    """Describe a circle to the operator."""
    way = " → ".join(flow.source.agent for flow in (*round_, round_[0]))
    return f"messages would circulate endlessly: {way}; let one of these routes use another queue, type or path"


class Circles:
    """The flows of all serving routes; the supervisor reports each agent that becomes ready."""

    def __init__(self) -> None:
        self._flows: dict[str, list[Flow]] = {}  # by route
        self._warned: set[frozenset[str]] = set()  # the agents that a warning was about

    def ready(self, name: str, serving: Sequence[Serving], warn: Warn) -> str:
        """Return the reason why the agent `name` must not serve; empty if it may.

        `serving` has the agents of its route whose containers are known; it is empty if its own has just ended.
        """
        if not serving:
            return ""
        route = serving[0].route
        self._flows[route.name] = list(flows_of(serving))
        flows = [flow for of_route in self._flows.values() for flow in of_route]
        self._warn_of_shared_queue(name, route, flows, warn)
        found = circle(flows, name)
        if not found:
            return ""
        if all(end.is_known for flow in found for end in (flow.source, flow.sink)):
            return refusal(found)
        self._warn_once(name, refusal(found), warn, frozenset(flow.source.agent for flow in found))
        return ""

    def forget(self, route: str) -> None:
        """Forget a route that has ended or will start again."""
        self._flows.pop(route, None)

    def _warn_of_shared_queue(self, name: str, route: RouteConfig, flows: Sequence[Flow], warn: Warn) -> None:
        if route.delivery is not Delivery.EXACTLY_ONCE:
            return
        sinks = [flow.sink for flow in flows if flow.sink.has_last_sender and flow.is_exact]
        for mine in (sink for sink in sinks if sink.agent == name):
            for other in sinks:
                if other.agent != name and other.places & mine.places:
                    self._warn_once(name, shared_queue(mine.shown, other.agent), warn, frozenset({name, other.agent}))

    def _warn_once(self, name: str, text: str, warn: Warn, agents: frozenset[str]) -> None:
        """Warn, if that was not done before about the same agents."""
        if agents not in self._warned:
            self._warned.add(agents)
            warn(name, text)


def feeds(sink: End, source: End) -> bool:
    """True if messages handed over at `sink` are taken at `source`."""
    if not sink.places & source.places:
        return False
    return source.selector is None or sink.type is None or selects(source.selector, sink.type)


def _way(at: Flow, first: Flow, flows: Sequence[Flow], seen: set[Flow]) -> list[Flow]:
    """Return a chain from `at` whose last flow feeds `first`; `at` alone does not count (see in_route)."""
    seen.add(at)
    for flow in flows:
        if flow is first or flow in seen or not feeds(at.sink, flow.source):
            continue
        if feeds(flow.sink, first.source):
            return [at, flow]
        if way := _way(flow, first, flows, seen):
            return [at, *way]
    return []


def _hears(sink: End, source: End) -> str:
    who = "itself" if sink.agent == source.agent else source.agent
    return (
        f"{sink.agent} would put messages where {who} takes them: {sink.shown} and {source.shown} are the same, "
        "because their containers share it; use another queue, type or path, or stop sharing it"
    )


def _end(serving: Serving, side: str) -> End | None:
    config = serving.config
    place = config.endpoint.places().get(side)
    if place is None:
        return None
    reported = [place.number] if place.number else parse(serving.reported).get(side, ())
    scope = f"{config.namespace} {serving.namespace} " if place.is_local else f"{config.namespace} "
    return End(
        agent=config.name,
        shown=f"{place.shown} of {config.container}",
        places=frozenset(scope + identity for identity in reported),
        is_known=bool(place.number),
        selector=place.selector,
        type=_type(place, serving),
        has_last_sender=place.has_last_sender and not serving.is_counted,
    )


def _type(place: Place, serving: Serving) -> int | None:
    """Return the type of messages at a place: a sink keeps the types of an endpoint across; without any it is 1."""
    across = next(agent for agent in serving.route.agents if agent.name != serving.config.name)
    return place.type if place.type is not None or across.endpoint.has_types else 1
