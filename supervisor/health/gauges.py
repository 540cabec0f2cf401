"""Measures the agents' processes for `nsbridgectl top`: on request, never by itself.

Callers may ask as often as they like, so the cost is bounded. A process is measured again only after MIN_AGE. The
expensive part, its own memory, is measured only for OWN_AT_ONCE agents at a time, longest waiting first. That part may
hang (measuring.py): `due` returns the agents whose turn it is, a child measures, and `learn` gets the results.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

from nsbridge.supervisor.health.measuring import Found
from nsbridge.supervisor.host.usage import Meter
from nsbridge.supervisor.lifecycle.agent import ManagedAgent

MIN_AGE = 0.25  # seconds
OWN_MIN_AGE = 1.0  # seconds
OWN_AT_ONCE = 16  # about 14 ms of a child (400 agents, a busy machine); of 400 all are known after 26 calls

_NEVER = float("-inf")


class Measures(Protocol):
    """usage.Meter."""

    def usage(self) -> tuple[float, int]:
        """See Meter."""
        ...


class Gauges:
    """Remembers what was measured, as long as the agents are there. `now` is a monotonic clock, in seconds."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        meter: Callable[[tuple[int, ...]], Measures] = Meter,
    ) -> None:
        self._now = now
        self._meter = meter
        self._gauges: WeakKeyDictionary[ManagedAgent, _Gauge] = WeakKeyDictionary()
        self._daemon = _Gauge((os.getpid(),), meter)

    def due(self, agents: Iterable[ManagedAgent]) -> list[int]:
        """Return the processes whose own memory should be measured now, and count them as measured."""
        now = self._now()
        waiting = [gauge for gauge in self._everyone(agents) if now - gauge.own_at >= OWN_MIN_AGE]
        chosen = sorted(waiting, key=lambda gauge: gauge.own_at)[:OWN_AT_ONCE]
        for gauge in chosen:
            gauge.own_at = now
        return [pid for gauge in chosen for pid in gauge.pids]

    def learn(self, agents: Iterable[ManagedAgent], found: Found) -> None:
        """Note the measurements of these agents."""
        for gauge in self._everyone(agents):
            gauge.learn(found)

    def of(self, agents: Iterable[ManagedAgent]) -> dict[str, object]:
        """Return the JSON object: `clock_s` now, the daemon's own process, and by name those of the running agents."""
        now = self._now()
        gauges = {agent.config.name: self._gauge(agent) for agent in agents if agent.pid}
        for gauge in (self._daemon, *gauges.values()):
            gauge.measure(now)
        processes = {name: gauge.facts() for name, gauge in gauges.items()}
        return {"clock_s": now, "daemon_process": self._daemon.facts(), "processes": processes}

    def _everyone(self, agents: Iterable[ManagedAgent]) -> list[_Gauge]:
        return [self._daemon, *(self._gauge(agent) for agent in agents if agent.pid)]

    def _gauge(self, agent: ManagedAgent) -> _Gauge:
        pids = (agent.pid or 0, *agent.senders)
        gauge = self._gauges.get(agent)
        if gauge is None or gauge.pids != pids:
            gauge = self._gauges[agent] = _Gauge(pids, self._meter)
        return gauge


class _Gauge:
    """Last measurement of an agent's processes, and its time."""

    def __init__(self, pids: tuple[int, ...], meter: Callable[[tuple[int, ...]], Measures]) -> None:
        self.pids = pids
        self.own_at = _NEVER
        self._at = _NEVER
        self._meter = meter(pids)
        self._cpu_s, self._rss = 0.0, 0
        self._own: int | None = None

    def measure(self, now: float) -> None:
        """Measure CPU and resident memory, unless that was just done."""
        if now - self._at >= MIN_AGE:
            self._cpu_s, self._rss = self._meter.usage()
            self._at = now

    def learn(self, found: Found) -> None:
        """Note the own memory of all its processes, if that was measured."""
        own = [memory for pid in self.pids if (memory := found.get(pid)) is not None]
        if own:
            self._own = sum(own)

    def facts(self) -> dict[str, object]:
        """Return the JSON object; `at_s` is of the same clock as `clock_s`; `own` is null until it was measured."""
        return {
            "pids": list(self.pids),
            "at_s": self._at,
            "cpu_s": round(self._cpu_s, 2),
            "rss": self._rss,
            "own": self._own,
        }
