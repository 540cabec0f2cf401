"""The plan by which a new configuration replaces the old one. No I/O, no state: two configurations in, a plan out.

* Routes are matched by name. A route restarts if any key except `autostart` changed. That key only decides what the
  daemon does with the route when the daemon itself starts. The order of a route's agents in the file has no meaning.
* Two agents must never take from one place at the same time. So a route waits for the end of every old one that it
  `may_meet`. That function compares what is written, as config/check.py does; in doubt it returns True.
* In [daemon], keys in LIVE apply at once. Keys in FIXED are bound to the process and keep their old values.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from nsbridge.config.schema import AgentConfig, Config, DaemonConfig, RouteConfig

LIVE = frozenset({"log", "dead", "health.max_memory", "health.max_descriptors", "health.max_blocked"})
FIXED = frozenset(
    {"state_dir", "control", "evidence", "require", "health.deadline"}
)  # agents beat by the deadline they began with


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of routes, each in one of the four, in the order of the files; `remarks` are about [daemon]."""

    stop: tuple[str, ...]  # not there any more
    start: tuple[str, ...]  # new
    restart: tuple[str, ...]  # another than it was
    unchanged: tuple[str, ...]  # not touched
    remarks: tuple[str, ...]
    config: Config  # what counts from now on

    def item(self) -> dict[str, object]:
        """Return the plan as an object for JSON."""
        return {
            "stop": self.stop,
            "start": self.start,
            "restart": self.restart,
            "unchanged": self.unchanged,
            "daemon": self.remarks,
            **({"held": self.held} if self.held else {}),
        }

    @property
    def held(self) -> tuple[str, ...]:
        """Return the names of the new routes that stay stopped until a person starts them."""
        return tuple(route.name for route in self.config.routes if route.name in self.start and not route.autostart)

    def summary(self) -> str:
        """Return the plan in one line, for the log. It only counts the routes that do not change."""
        done = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("stop", self.stop), ("start", self.start), ("restart", self.restart))
            if names
        ]
        if self.held:
            done.append(f"of these {', '.join(self.held)} stopped, by autostart = false")
        return "; ".join([*done, f"{len(self.unchanged)} unchanged", *self.remarks])


def compare(old: Config, new: Config) -> Plan:
    """Return the plan that leads from `old` to `new`."""
    before = {route.name: route for route in old.routes}
    after = {route.name: route for route in new.routes}
    both = [name for name in after if name in before]
    changed = [name for name in both if _differ(before[name], after[name])]
    return Plan(
        stop=tuple(name for name in before if name not in after),
        start=tuple(name for name in after if name not in before),
        restart=tuple(changed),
        unchanged=tuple(name for name in both if name not in changed),
        remarks=tuple(_remarks(old.daemon, new.daemon)),
        config=dataclasses.replace(new, daemon=_applied(old.daemon, new.daemon)),
    )


def may_meet(one: RouteConfig, other: RouteConfig) -> bool:
    """True if an agent of `one` and an agent of `other` may serve the same place of the same container."""
    return one.name == other.name or any(
        _may_meet(mine, theirs) for mine, theirs in itertools.product(one.agents, other.agents)
    )


def _differ(before: RouteConfig, after: RouteConfig) -> bool:
    first, second = after.agents
    same_start = dataclasses.replace(after, autostart=before.autostart)
    return before not in (same_start, dataclasses.replace(same_start, agents=(second, first)))


def _may_meet(one: AgentConfig, other: AgentConfig) -> bool:
    if one.namespace is not other.namespace:
        return False
    if one.container == other.container:
        return True  # whatever the paths: a link may lead from the one to the other
    if one.container.kind == other.container.kind and one.container.kind.is_unique:
        return False
    mine, theirs = one.endpoint.places().values(), other.endpoint.places().values()
    if any(place.made_of for place in (*mine, *theirs)):
        return True  # its number is known only inside the container
    return not {place.where for place in mine}.isdisjoint(place.where for place in theirs)


T = TypeVar("T")


def _applied(old: T, new: T, above: str = "") -> T:
    """Return `old` with all LIVE values of `new`. `above` is the key of both tables, with a dot."""
    changes: dict[str, object] = {}
    for name in _fields(new):
        before, after = getattr(old, name), getattr(new, name)
        if above + name in LIVE:
            changes[name] = after
        elif dataclasses.is_dataclass(after):
            changes[name] = _applied(before, after, f"{above}{name}.")
    return dataclasses.replace(old, **changes)  # type: ignore[type-var]  # of dataclasses only


def _remarks(old: DaemonConfig, new: DaemonConfig) -> Iterator[str]:
    for key, before, after in _differences("", old, new):
        live = not LIVE.isdisjoint((key, key.partition(".")[0]))
        how = "at once" if live else "needs a restart of the daemon; the old value stays until then"
        yield f"daemon.{key}: {_shown(key, before)} → {_shown(key, after)}: {how}"


def _differences(above: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    for name in _fields(new):
        before, after = getattr(old, name), getattr(new, name)
        if dataclasses.is_dataclass(after):
            yield from _differences(f"{above}{name}.", before, after)
        elif before != after:
            yield above + name, before, after


def _shown(key: str, value: object) -> str:
    if value is None:
        return "none"
    return f'"{value:04o}"' if key.endswith(".mode") else json.dumps(value, ensure_ascii=False)


def _fields(table: object) -> list[str]:
    return [field.name for field in dataclasses.fields(table)]  # type: ignore[arg-type]  # asked of dataclasses only
