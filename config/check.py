"""The rules that span keys: what two ends of a route, or agents of one container, must agree on.

Containers are compared by how they are written, and queues by their keys as they are written: nothing here looks at
the host. `docker:web` and `pid:4711` may be the same container, 0x4d2 and an ftok key the same queue; that is not seen.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nsbridge.config.kind import KINDS
from nsbridge.config.patterns import TooManyError, common_name
from nsbridge.config.problems import KeyPath, Problem, dotted, quoted
from nsbridge.config.schema import JOINED, AgentConfig, Endpoint, Namespace, Place

# as under /proc/PID/ns, namespaces(7)
_NAMESPACE_FILES = frozenset(
    ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")
)
AGENTS = 2  # of a route

_At = tuple[str, Namespace, Hashable]  # a place: its container, its namespace, and where it is there


@dataclass(frozen=True, slots=True)
class Side:
    """One agent of a route, as far as it could be made out.

    `endpoint` is the key of its only endpoint table, None if that is not clear; `out` and `in_` say whether that table
    has such a key, be its value right or wrong; `agent` is None if too much is wrong to compare it with others.
    """

    path: KeyPath
    name: str
    endpoint: str | None
    out: bool
    in_: bool
    agent: AgentConfig | None

    def place(self, end: str) -> Place | None:
        """Return the place at `end`; None if there is none or it is not clear."""
        return self.agent.endpoint.places().get(end) if self.agent is not None else None

    def serving(self, place: Place) -> _At:
        """Return what is the same for all agents that serve that place of that container."""
        assert self.agent is not None  # noqa: S101  (it has a place)
        return str(self.agent.container), self.agent.namespace, place.where

    def key_path(self, key: str) -> KeyPath:
        """Return the key path of `key` in its endpoint."""
        return (*self.path, self.endpoint or "", key)


def route_problems(sides: Sequence[Side]) -> Iterator[Problem]:
    """Find what is wrong between the two sides of one route; directions need two, with one endpoint each."""
    for side in sides:
        if side.agent is not None:
            yield from _agent_problems(side, side.agent)
    for side, across in _with_across(sides):
        if across is not None and side.endpoint is not None and across.endpoint is not None:
            yield from _direction_problems(side, across)
            yield from _loops(side, across)


def agent_count(path: KeyPath, names: list[str]) -> Problem:
    """Return the problem that a route has these agents, and not two."""
    got = f"{len(names)} ({', '.join(map(quoted, names))})" if names else "none"
    fix = f"add [{dotted(path)}.agent.NAME]" if len(names) < AGENTS else "make another route for what is left"
    return Problem((*path, "agent"), f"a route has exactly two agents, got {got}", fix)


def host_problems(routes: Iterable[Sequence[Side]]) -> Iterator[Problem]:
    """Find what is wrong between agents of any routes that serve the same container."""
    pairs = [pair for sides in routes for pair in _with_across(sides)]
    yield from _shared_sources(side for side, _ in pairs)
    yield from _typed_loops(pairs)


def _agent_problems(side: Side, agent: AgentConfig) -> Iterator[Problem]:
    container = agent.container
    if container.kind.is_namespace_file:
        last = posixpath.basename(container.name)
        if last in _NAMESPACE_FILES and last != agent.namespace:
            what = f"is a namespace of the kind {last}, and the endpoint {agent.endpoint.name} needs {agent.namespace}"
            right = posixpath.join(posixpath.dirname(container.name), agent.namespace)
            fix = f"write {quoted(f'{container.kind}:{right}')}, or choose another endpoint"
            yield Problem((*side.path, "container"), f"{what}, got {quoted(str(container))}", fix)
    if agent.namespace not in JOINED and not container.kind.is_host:
        what = f"must be the host for the endpoint {agent.endpoint.name}, got {quoted(str(container))}"
        yield Problem((*side.path, "container"), what, 'write container = "host"')
    yield from _same_places(side, agent.endpoint)
    for key, end in agent.endpoint.idle_keys().items():
        what = f'has no effect, because this {agent.endpoint.name} has no "{end}"'
        where = "files are taken" if end == "out" else "files are put"
        yield Problem(side.key_path(key), what, f"write it at the {agent.endpoint.name} where {where}, or take it out")
    yield from _takes_nothing(side)


def _same_places(side: Side, endpoint: Endpoint) -> Iterator[Problem]:
    """Find places that are one place, where nothing is selected by type; for others see `_typed_loops`."""
    for (one, place), (other, again) in itertools.combinations(endpoint.places().items(), 2):
        if place.where == again.where and place.selector is None:
            what = f'is the same path as "{one}", got {again.written}'
            fix = "what is put there would be taken or overwritten: choose another one"
            yield Problem(side.key_path(other), what, fix)


def _direction_problems(side: Side, across: Side) -> Iterator[Problem]:
    """Find ends of `side` without a counterpart in `across`; a side with no end at all has its own problem already."""
    if not across.out and not across.in_:
        return
    for end, there, needed, present in (("out", side.out, "in", across.in_), ("in", side.in_, "out", across.out)):
        if there and not present:
            what = f'has no "{needed}" across: {across.name} has only "{end}"'
            fix = f'give {across.name} an "{needed}", or take this "{end}" out'
            yield Problem(side.key_path(end), what, fix)


def _loops(side: Side, across: Side) -> Iterator[Problem]:
    """Find a place that `side` takes from and `across` writes to in one container: each message would come back."""
    taken, written = side.place("out"), across.place("in")
    if taken is None or written is None or taken.selector is not None:
        return
    if side.serving(taken) == across.serving(written):
        what = f"is where {side.name} takes messages, in the same container, got {written.written}"
        fix = "its own messages would circulate endlessly: choose another path"
        yield Problem(across.key_path("in"), what, fix)


def _with_across(sides: Sequence[Side]) -> list[tuple[Side, Side | None]]:
    """Return each side and the one that it is bridged to, None if that is not clear."""
    if len(sides) != AGENTS:
        return [(side, None) for side in sides]
    first, second = sides
    return [(first, second), (second, first)]


def _shared_sources(sides: Iterable[Side]) -> Iterator[Problem]:
    """Find two agents that take from one place: each message would reach only one of them, and it is unknown which."""
    taken: dict[_At, list[tuple[Side, Place]]] = defaultdict(list)
    for side in sides:
        out = side.place("out")
        if out is None:
            continue
        others = taken[side.serving(out)]
        for other, theirs in others:
            if out.names is not None and theirs.names is not None:
                yield from _names_of_both(side, out, other, theirs)
            elif out.selector is None or theirs.selector is None:
                yield _taken_already(side, other, out.written)
                break
            elif selectors_overlap(out.selector, theirs.selector):
                types = f", types {out.selector} and {theirs.selector}"
                yield _taken_already(side, other, out.written + types)
                break
        others.append((side, out))


def _names_of_both(side: Side, out: Place, other: Side, theirs: Place) -> Iterator[Problem]:
    """Find a name in one directory that both would take."""
    assert out.names is not None  # noqa: S101  (asked by the caller)
    assert theirs.names is not None  # noqa: S101
    fix = 'give each its own names by "match" and "ignore", so that no name is for both'
    try:
        name = common_name(out.names, theirs.names)
    except TooManyError:
        what = f"is where {other.name} takes files too, got {out.written}, and the patterns are too many to compare"
        yield Problem(side.key_path("out"), what, f"{fix}, with fewer or shorter patterns")
        return
    if name is not None:
        example = quoted(os.fsdecode(name))
        what = f"is where {other.name} takes files too, got {out.written}: both would take a file {example}"
        yield Problem(side.key_path("out"), what, f"{fix}, or another directory")


def _takes_nothing(side: Side) -> Iterator[Problem]:
    """Find patterns that leave no name to take."""
    out = side.place("out")
    with suppress(TooManyError):
        if out is not None and out.names is not None and common_name(out.names, out.names) is None:
            what = f'takes no file at all: "ignore" has every name that "match" has, got {out.written}'
            yield Problem(side.key_path("out"), what, "change one of the two; hidden names are never taken")


def _taken_already(side: Side, other: Side, what: str) -> Problem:
    fix = "each message would reach only one of the two: let them take from different places"
    return Problem(side.key_path("out"), f"is where {other.name} takes messages too, got {what}", fix)


def _typed_loops(pairs: Sequence[tuple[Side, Side | None]]) -> Iterator[Problem]:
    """Find an agent that takes the types that it, or another one, feeds into the same place."""
    taken: dict[_At, list[tuple[Side, int]]] = defaultdict(list)
    for side, _ in pairs:
        out = side.place("out")
        if out is not None and out.selector is not None:
            taken[side.serving(out)].append((side, out.selector))
    for side, across in pairs:
        put = side.place("in")
        if put is None:
            continue
        keeps = put.type is None and across is not None and _has_types(across.endpoint)  # the types of the queue across
        for taker, selector in taken[side.serving(put)]:
            if put.type is None and (across is None or across.endpoint is None):
                continue
            if keeps or selects(selector, put.type or 1):
                yield _hears_itself(side, put, taker, selector, keeps)


def _has_types(kind: str | None) -> bool:
    return kind is not None and KINDS[kind].has_types


def _hears_itself(side: Side, put: Place, taker: Side, selector: int, unknown: bool) -> Problem:
    who = "it" if taker is side else taker.name
    if unknown:
        what = f"has no type, and {who} takes from the same queue with out.type {selector}"
        fix = f'types come from the queue across, so any may be heard again: write a "type" that {who} does not take'
    else:
        what = f"puts messages of type {put.type or 1} where {who} takes them, with out.type {selector}"
        fix = "it would take its own messages: use another type, or better another queue"
    return Problem(side.key_path("in"), f"{what}, got {put.written}", fix)


def selects(selector: int, message_type: int) -> bool:
    """True if msgrcv(2) with `selector` takes messages of `message_type` (which is at least 1)."""
    if selector < 0:
        return message_type <= -selector
    return selector in (0, message_type)


def selectors_overlap(one: int, other: int) -> bool:
    """True if both selectors take some message."""
    if one > 0:
        return selects(other, one)
    if other > 0:
        return selects(one, other)
    return True  # 0 and all negative ones take type 1
