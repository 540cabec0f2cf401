"""The text that Prometheus reads, for `/metrics` and `nsbridgectl metrics`. docs/web.md lists every series.

Rules of this file:
* A label is the name of a route, an agent or a state. A reason is never a label: each new text would be a new series.
* Labels have the names that `nsbridgectl` takes (`orders:web`), so that an alert's text can be pasted behind it.
* A value that is not known (None) has no sample. A number of the daemon that is not there at all has no series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client import exposition, registry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)

from nsbridge.supervisor.cli.web.snapshot import Snapshot, Usage, route_of, usage

STATES = ("STOPPED", "STARTING", "RUNNING", "STOPPING", "BACKOFF", "WAITING", "FATAL")

Value = Callable[[dict[str, Any]], float | None]


class _Series(NamedTuple):
    """One family of metrics: its name, its help, and the value of an agent or a flow."""

    name: str
    help: str
    value: Value


def _key(key: str) -> Value:
    return lambda facts: facts.get(key)


_AGENT_GAUGES = (
    _Series(
        "nsbridge_agent_blocked",
        "1 if the agent runs and waits for something (status has the reason)",
        lambda agent: agent["phase"] == "blocked",
    ),
    _Series("nsbridge_agent_start_time_seconds", "When the agent was ready, in seconds since 1970", _key("start_time")),
    _Series("nsbridge_agent_open_fds", "Descriptors of the agent, at its last health check", _key("descriptors")),
)
_AGENT_COUNTERS = (
    _Series("nsbridge_agent_restarts_total", "Restarts of the agent since the daemon started", _key("restarts")),
)
_FLOW_GAUGES = (
    _Series("nsbridge_flow_pending_messages", "Messages taken and not yet handed over", _key("pending")),
    _Series(
        "nsbridge_flow_oldest_pending_seconds",
        "Age of the oldest message that is taken and not yet handed over; 0 if there is none",
        lambda flow: flow["oldest_pending_s"] or 0.0,
    ),
    _Series("nsbridge_flow_dead_letters", "Messages that are put aside now (up to 1000)", _key("dead_letters")),
    _Series("nsbridge_flow_refused_files", "Files that are there now and can never be taken", _key("refused_now")),
)
_FLOW_COUNTERS = (
    _Series("nsbridge_flow_delivered_messages_total", "Messages handed over", _key("delivered")),
    _Series("nsbridge_flow_delivered_bytes_total", "Bytes of the messages handed over", _key("bytes")),
    _Series("nsbridge_flow_repeats_dropped_total", "Repeats that were recognised and dropped", _key("repeats_dropped")),
    _Series(
        "nsbridge_flow_in_doubt_total", "Messages that may or may not have been sent before a kill", _key("in_doubt")
    ),
    _Series(
        "nsbridge_flow_dead_letters_total", "Messages that could never be delivered and were put aside", _key("dead")
    ),
    _Series("nsbridge_flow_dead_letters_dropped_total", "Dead letters that the quota removed", _key("dead_dropped")),
    _Series("nsbridge_flow_refused_total", "Files that can never be taken", _key("refused")),
    _Series("nsbridge_flow_missed_total", "Files that could not be read, or not whole", _key("missed")),
    _Series("nsbridge_flow_missed_bytes_total", "Bytes of these, at least", _key("missed_bytes")),
)
_KEYS = {  # of the daemon's answer, for series that an older daemon does not have
    "nsbridge_flow_oldest_pending_seconds": "oldest_pending_s",
    "nsbridge_flow_refused_files": "refused_now",
    "nsbridge_flow_refused_total": "refused",
}
_CLASHING = "nsbridge_flow_dead_letters_total"  # in OpenMetrics its family would have the gauge's name


class _Families(registry.Collector):
    """A collector of what is there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        return self._metrics


def text(snapshot: Snapshot | None, accept: str = "", *, sees_pids: bool) -> tuple[bytes, str]:
    """Return the text and its content type; for None, of a daemon that is down.

    `accept` is the reader's header: OpenMetrics if it asks for that. With `sees_pids` processes are measured.
    """
    write, content_type = exposition.choose_encoder(accept)
    is_open = content_type.startswith("application/openmetrics-text")
    metrics: list[Metric] = [GaugeMetricFamily("nsbridge_up", "1 if nsbridged answers", float(snapshot is not None))]
    if snapshot is not None:
        metrics += _families(snapshot, is_open=is_open, sees_pids=sees_pids)
    return write(_Families(metrics)), content_type


def _families(snapshot: Snapshot, *, is_open: bool, sees_pids: bool) -> Iterator[Metric]:
    build = InfoMetricFamily("nsbridge_build", "The version of the daemon")
    build.add_metric([], {"version": str(snapshot.daemon["version"])})
    yield build
    yield _states(snapshot)
    agents = [([route_of(agent["name"]), agent["name"]], agent) for agent in snapshot.agents]
    flows = [([route_of(flow["from"]), flow["from"], flow["to"]], flow) for flow in snapshot.flows]
    of_agent, of_flow = ("route", "agent"), ("route", "source", "sink")
    for series in _AGENT_GAUGES:
        yield _filled(GaugeMetricFamily(series.name, series.help, labels=of_agent), series, agents)
    for series in _AGENT_COUNTERS:
        yield _filled(CounterMetricFamily(series.name, series.help, labels=of_agent), series, agents)
    known = set(flows[0][1]) if flows else set()
    for series in _FLOW_GAUGES:
        if _KEYS.get(series.name, "from") in known:
            yield _filled(GaugeMetricFamily(series.name, series.help, labels=of_flow), series, flows)
    for series in _FLOW_COUNTERS:
        if _KEYS.get(series.name, "from") in known:
            kind = UnknownMetricFamily if is_open and series.name == _CLASHING else CounterMetricFamily
            yield _filled(kind(series.name, series.help, labels=of_flow), series, flows)
    if sees_pids:
        yield from _processes(snapshot)


def _states(snapshot: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "nsbridge_agent_state", "1 for the state that the agent is in", labels=("route", "agent", "state")
    )
    for agent in snapshot.agents:
        name, now = agent["name"], agent["state"]
        route = route_of(name)
        for state in STATES:
            family.add_metric([route, name, state], float(state == now))
    return family


def _filled(family: Any, series: _Series, rows: Iterable[tuple[list[str], dict[str, Any]]]) -> Metric:
    for labels, facts in rows:
        if (value := series.value(facts)) is not None:
            family.add_metric(labels, float(value))
    metric: Metric = family
    return metric


def _processes(snapshot: Snapshot) -> Iterator[Metric]:
    cpu = CounterMetricFamily("nsbridge_supervisor_cpu_seconds_total", "CPU time of nsbridged's own process")
    memory = GaugeMetricFamily("nsbridge_supervisor_resident_memory_bytes", "Memory of nsbridged's own process")
    if (own := usage(snapshot.daemon["pid"])) is not None:
        cpu.add_metric([], own.cpu_s)
        memory.add_metric([], float(own.resident))
    yield cpu
    yield memory
    of_agent = ("route", "agent")
    cpu = CounterMetricFamily(
        "nsbridge_agent_cpu_seconds_total", "CPU time of the agent's process and its senders", labels=of_agent
    )
    memory = GaugeMetricFamily(
        "nsbridge_agent_resident_memory_bytes", "Resident memory of these, with what they share", labels=of_agent
    )
    for agent in snapshot.agents:
        found: Usage | None = usage(agent["pid"], agent["senders"])
        if found is not None:
            labels = [route_of(agent["name"]), agent["name"]]
            cpu.add_metric(labels, found.cpu_s)
            memory.add_metric(labels, float(found.resident))
    yield cpu
    yield memory
