"""The rules that span keys: what two ends of a route, or agents of one container, must agree on.

Containers are compared by how they are written, and queues by their keys as they are written: nothing here looks at
the host. `docker:web` and `pid:4711` may be the same container, 0x4d2 and an ftok key the same queue; that is not seen.
"""

from __future__ import annotations

import itertools
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nsbridge.config.problems import KeyPath, Problem, quoted
from nsbridge.config.schema import (
    AgentConfig,
    FileEndpoint,
    FtokKey,
    LogEndpoint,
    QueueEndpoint,
    QueueIn,
    QueueOut,
    SpoolEndpoint,
)

# as under /proc/PID/ns, namespaces(7)
_NAMESPACE_FILES = frozenset(
    ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")
)
AGENTS = 2  # of a route


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
            yield from _file_loops(side, across)


def host_problems(routes: Iterable[Sequence[Side]]) -> Iterator[Problem]:
    """Find what is wrong between agents of any routes that serve the same container."""
    pairs = [pair for sides in routes for pair in _with_across(sides)]
    yield from _shared_sources(side for side, _ in pairs)
    yield from _queue_loops(pairs)


def _agent_problems(side: Side, agent: AgentConfig) -> Iterator[Problem]:
    container = agent.container
    if container.kind.is_namespace_file:
        last = posixpath.basename(container.name)
        if last in _NAMESPACE_FILES and last != agent.namespace:
            what = f"is a namespace of the kind {last}, and the endpoint {agent.endpoint.name} needs {agent.namespace}"
            right = posixpath.join(posixpath.dirname(container.name), agent.namespace)
            fix = f"write {quoted(f'{container.kind}:{right}')}, or choose another endpoint"
            yield Problem((*side.path, "container"), f"{what}, got {quoted(str(container))}", fix)
    if isinstance(agent.endpoint, SpoolEndpoint | LogEndpoint | FileEndpoint):
        yield from _same_paths(side, agent.endpoint)


def _same_paths(side: Side, endpoint: SpoolEndpoint | LogEndpoint | FileEndpoint) -> Iterator[Problem]:
    named = [("out", endpoint.out), ("in", endpoint.in_)]
    if isinstance(endpoint, SpoolEndpoint):
        named.append(("done", endpoint.done))
    for (one, path), (other, again) in itertools.combinations(named, 2):
        if path is not None and again is not None and _same(path) == _same(again):
            what = f'is the same path as "{one}", got {quoted(again)}'
            fix = "what is put there would be taken or overwritten: choose another path"
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


def _file_loops(side: Side, across: Side) -> Iterator[Problem]:
    """Find a path that `side` takes from and `across` writes to in one container: each message would come back
    endlessly.
    """
    if side.agent is None or across.agent is None or str(side.agent.container) != str(across.agent.container):
        return
    taken, written = side.agent.endpoint, across.agent.endpoint
    if isinstance(taken, QueueEndpoint) or isinstance(written, QueueEndpoint):
        return
    if taken.out is not None and written.in_ is not None and _same(taken.out) == _same(written.in_):
        what = f"is where {side.name} takes messages, in the same container, got {quoted(written.in_)}"
        fix = "it would hear itself endlessly: choose another path"
        yield Problem(across.key_path("in"), what, fix)


def _with_across(sides: Sequence[Side]) -> list[tuple[Side, Side | None]]:
    """Return each side and the one that it is bridged to, None if that is not clear."""
    if len(sides) != AGENTS:
        return [(side, None) for side in sides]
    first, second = sides
    return [(first, second), (second, first)]


def _shared_sources(sides: Iterable[Side]) -> Iterator[Problem]:
    """Find two agents that take from one place: each message would reach only one of them, and nobody knows which."""
    files: dict[tuple[str, str], Side] = {}
    queues: dict[tuple[str, int | FtokKey], list[tuple[Side, QueueOut]]] = defaultdict(list)
    for side in sides:
        if side.agent is None or side.agent.endpoint.out is None:
            continue
        container = str(side.agent.container)
        out = side.agent.endpoint.out
        if isinstance(out, QueueOut):
            others = queues[container, same_key(out.key)]
            for other, theirs in others:
                if selectors_overlap(out.type, theirs.type):
                    yield _taken_already(side, other, f"key {shown_key(out.key)}, types {out.type} and {theirs.type}")
                    break
            others.append((side, out))
        elif (first := files.setdefault((container, _same(out)), side)) is not side:
            yield _taken_already(side, first, quoted(out))


def _taken_already(side: Side, other: Side, what: str) -> Problem:
    fix = "each message would reach only one of the two: let them take from different places"
    return Problem(side.key_path("out"), f"is where {other.name} takes messages too, got {what}", fix)


def _queue_loops(pairs: Sequence[tuple[Side, Side | None]]) -> Iterator[Problem]:
    """Find an agent that takes the types that it, or another one, feeds into the same queue."""
    taken: dict[tuple[str, int | FtokKey], list[tuple[Side, QueueOut]]] = defaultdict(list)
    for side, _ in pairs:
        if side.agent is not None and isinstance(side.agent.endpoint.out, QueueOut):
            out = side.agent.endpoint.out
            taken[str(side.agent.container), same_key(out.key)].append((side, out))
    for side, across in pairs:
        if side.agent is None or not isinstance(side.agent.endpoint.in_, QueueIn):
            continue
        put = side.agent.endpoint.in_
        for taker, out in taken[str(side.agent.container), same_key(put.key)]:
            if put.type is None and (across is None or across.endpoint is None):
                continue
            # unless `type` is set, a queue keeps the types that came out of a queue across; all else has type 1
            unknown = put.type is None and across is not None and across.endpoint == QueueEndpoint.name
            if unknown or selects(out.type, put.type or 1):
                yield _hears_itself(side, put, taker, out, unknown)


def _hears_itself(side: Side, put: QueueIn, taker: Side, out: QueueOut, unknown: bool) -> Problem:
    who = "it" if taker is side else taker.name
    if unknown:
        what = f"has no type, and {who} takes from the same queue with out.type {out.type}"
        fix = f'types come from the queue across, so any may be heard again: write a "type" that {who} does not take'
    else:
        what = f"puts messages of type {put.type or 1} where {who} takes them, with out.type {out.type}"
        fix = "it would hear itself: use another type, or better another queue"
    return Problem(side.key_path("in"), f"{what}, got key {shown_key(put.key)}", fix)


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


def _same(path: str) -> str:
    """Return the path without what makes no difference: doubled and last slashes, and `.`."""
    return "/" + posixpath.normpath(path).lstrip("/")


def same_key(key: int | FtokKey) -> int | FtokKey:
    """Return the key with its path as `_same` writes it."""
    return FtokKey(_same(key.path), key.proj) if isinstance(key, FtokKey) else key


def shown_key(key: int | FtokKey) -> str:
    """Return the key as the configuration may write it."""
    return f"{{ path = {quoted(key.path)}, proj = {key.proj} }}" if isinstance(key, FtokKey) else f"{key:#x}"
