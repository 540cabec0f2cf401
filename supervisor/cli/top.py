"""Numbers that `nsbridgectl top` shows: two answers of the daemon → rates. topview.py makes lines of them.

A row is an agent. Its rates are what it did between two looks, its `pending` what waits to enter its container, its CPU
and memory those of its process and of those that send for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TopAnswer = dict[str, Any]  # of the control method `top`


@dataclass(frozen=True, slots=True)
class Row:
    """An agent. Rates are per second, `cpu` in percent of one core, memory in bytes; None is not known (yet)."""

    name: str
    state: str  # as `status` shows it
    phase: str
    detail: str
    pid: int | None
    container: str
    endpoint: str
    out: float | None  # messages that left its container
    in_: float | None  # messages that entered it
    bytes: float | None  # of both
    pending: int
    cpu: float | None
    memory: int | None

    @property
    def rate(self) -> float | None:
        """Return messages per second, in both directions."""
        return None if self.out is None or self.in_ is None else self.out + self.in_

    @property
    def is_in_trouble(self) -> bool:
        """True if it does not run, or waits with its messages."""
        return self.state != "RUNNING" or self.phase in ("blocked", "wedged")

    def item(self) -> dict[str, object]:
        """Return the row for JSON."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Sample:
    """Values now, with the changes since the look before; without one there are no rates."""

    answer: TopAnswer
    seconds: float  # between the two
    rows: list[Row]
    messages: float | None  # per second, of all flows
    bytes: float | None  # the same
    pending: int


def look(before: TopAnswer | None, after: TopAnswer) -> Sample:
    """Return the rows and totals of `after`."""
    flows = _Flows(before, after)
    return Sample(
        after,
        flows.seconds,
        [_row(agent, flows, before, after) for route in after["routes"] for agent in route["agents"]],
        flows.per_second("delivered"),
        flows.per_second("bytes"),
        flows.pending(),
    )


class _Flows:
    """The counters of all flows, then and now."""

    def __init__(self, before: TopAnswer | None, after: TopAnswer) -> None:
        self.seconds = after["clock_s"] - before["clock_s"] if before else 0.0
        self._then = {_ends(flow): flow for flow in _flows(before)}
        self._by_agent: dict[str, list[dict[str, Any]]] = {}
        self._all = _flows(after)
        for flow in self._all:
            for end in _ends(flow):
                self._by_agent.setdefault(end, []).append(flow)

    def per_second(self, counter: str, name: str = "", *ends: str) -> float | None:
        """Return how fast `counter` grew in all flows, or in those that have the agent `name` at one of `ends`."""
        if self.seconds <= 0:
            return None
        grown = 0
        for flow in self._of(name, ends):
            then = self._then.get(_ends(flow), flow)
            grown += max(0, flow[counter] - then[counter])  # a journal that was begun anew counts from 0
        return grown / self.seconds

    def pending(self, name: str = "") -> int:
        """Return the number of messages to be handed over, to the agent `name` or at all."""
        return sum(int(flow["pending"]) for flow in self._of(name, ("to",)))

    def _of(self, name: str, ends: Sequence[str]) -> list[dict[str, Any]]:
        if not name:
            return self._all
        return [flow for flow in self._by_agent.get(name, []) if any(flow[end] == name for end in ends)]


def _flows(answer: TopAnswer | None) -> list[dict[str, Any]]:
    return [flow for route in answer["routes"] for flow in route["flows"]] if answer else []


def _ends(flow: dict[str, Any]) -> tuple[str, str]:
    return str(flow["from"]), str(flow["to"])


def _row(agent: dict[str, Any], flows: _Flows, before: TopAnswer | None, after: TopAnswer) -> Row:
    name = str(agent["name"])
    process = after["processes"].get(name)
    return Row(
        name=name,
        state=str(agent["state"]),
        phase=str(agent.get("phase") or ""),
        detail=str(agent.get("detail") or ""),
        pid=agent.get("pid"),
        container=str(agent["container"]),
        endpoint=str(agent["endpoint"]),
        out=flows.per_second("delivered", name, "from"),
        in_=flows.per_second("delivered", name, "to"),
        bytes=flows.per_second("bytes", name, "from", "to"),
        pending=flows.pending(name),
        cpu=_cpu((before or {"processes": {}})["processes"].get(name), process),
        memory=process["own"] if process else None,
    )


def _cpu(then: dict[str, Any] | None, now: dict[str, Any] | None) -> float | None:
    """Return the CPU time, in percent of a core, between two measurements of the same processes."""
    if then is None or now is None or then["pids"] != now["pids"] or now["at_s"] <= then["at_s"]:
        return None
    return float(100 * (now["cpu_s"] - then["cpu_s"]) / (now["at_s"] - then["at_s"]))


# -- order

_LAST = float("-inf")
_BY: dict[str, Callable[[Row], float]] = {
    "rate": lambda row: _LAST if row.rate is None else row.rate,
    "bytes": lambda row: _LAST if row.bytes is None else row.bytes,
    "pending": lambda row: row.pending,
    "cpu": lambda row: _LAST if row.cpu is None else row.cpu,
    "memory": lambda row: _LAST if row.memory is None else row.memory,
    "state": lambda row: 2 if row.state != "RUNNING" else int(row.is_in_trouble),
}


def ordered(unordered: Sequence[Row], key: str, *, turned: bool = False) -> list[Row]:
    """Sort by `key` (of TOP_KEYS): names from a on, numbers the most first, states what does not run or waits first."""
    by_name = sorted(unordered, key=lambda row: row.name)
    if key == "name":
        return by_name[::-1] if turned else by_name
    return sorted(by_name, key=_BY[key], reverse=not turned)
