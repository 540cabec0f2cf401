"""Subjects that are measured, each under a name, and the goals that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import alternatives, flows, jetstream
from benchmarks.flows import Figures, Flow
from benchmarks.lab import Lab

ALO, EXACT = "at-least-once", "exactly-once"
EVIDENCE = ("counter", "senders")  # what shows after a kill which messages were sent
SIZES = (16, 64, 256, 1024, 4096, 8192)  # bytes; 8192 is kernel.msgmax
ROUTES = (1, 2, 4, 8)
_SIZED = (("log", "queue"), ("queue", "log"), ("queue", "queue"))


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that gives figures; `run(lab, scale)` with 1 for the full number of messages."""

    name: str
    group: str
    run: Callable[[Lab, float], Figures]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table: the ratio of a metric of two subjects, or the metric itself without `against`.

    Without `limit` it is no goal: it is only reported.
    """

    title: str
    metric: str
    subject: str
    against: str | None
    limit: float | None
    at_least: bool = False

    def met(self, value: float) -> bool:
        """True if the value is on the right side of the limit."""
        if self.limit is None:
            return True
        return value >= self.limit if self.at_least else value <= self.limit


def _flow(name: str, group: str, flow: Flow) -> Subject:
    return Subject(name, group, partial(_carry, flow))


def _carry(flow: Flow, lab: Lab, scale: float) -> Figures:
    count = max(64, int(flow.count * scale))
    return flows.carry(lab, replace(flow, count=count))


def _counted(run: Callable[..., Figures], count: int, *rest: int | str) -> Callable[[Lab, float], Figures]:
    return lambda lab, scale: run(lab, max(100, int(count * scale)), *rest)


def _shared(kind: str) -> Callable[[Lab, int, int], Figures]:
    return lambda lab, count, size: alternatives.shared_one_way(lab, kind, count, size)


def _nats(prefix: str) -> Callable[[Lab, int, int], Figures]:
    return lambda lab, count, size: alternatives.nats_one_way(lab, prefix, count, size)


def _alone(role: str, lab: Lab, count: int, size: int) -> Figures:
    return jetstream.alone(lab, role, count, size)


def _tick(routes: int, lab: Lab, scale: float) -> Figures:
    return flows.tick(lab, routes, max(1, int(10 * scale)))


ECHO, C_ECHO, KERNEL, FILES = "echo", "echo, C bridge", "kernel 256 B", "files 256 B"
C_TWO = "echo, C, two processes"
SHARED_ECHO, SHARED_LOG, SHARED_SPOOL = "echo, shared mount", "log, shared mount", "spool, shared mount"
STATUS, SUPERVISORCTL = "nsbridgectl status", "supervisorctl status"
NATS_ECHO, NATS, JETSTREAM = "echo, NATS", "NATS", "NATS JetStream"
JS_RAW, JS_WINDOW, JS_FETCH = "JetStream, raw bytes", "JetStream, nats-py publishes", "JetStream, nats-py fetches"
TO_JS, FROM_JS = "log→nats", "nats→log"
MQUEUE, DATAGRAMS = "kernel, POSIX queue 256 B", "kernel, datagrams 256 B"
TICK_1, TICK_100 = "1 route, 1 message/s", "100 routes, 1 message/s"

_CORE = (
    Subject(C_ECHO, "core", _counted(flows.echo_by_c_bridge, 10_000)),
    Subject(ECHO, "core", _counted(flows.echo, 10_000)),
    Subject(KERNEL, "core", _counted(flows.kernel_one_way, 400_000, 256)),
    _flow("log→queue alo", "core", Flow("log", "queue", 150_000, delivery=ALO)),
    _flow("log→queue", "core", Flow("log", "queue", 60_000)),
    _flow("queue→log", "core", Flow("queue", "log", 80_000)),
    _flow("queue→queue", "core", Flow("queue", "queue", 60_000)),
    Subject(FILES, "core", _counted(flows.spool_limit, 40_000, 256)),
    _flow("spool→queue", "core", Flow("spool", "queue", 20_000)),
    _flow("queue→spool", "core", Flow("queue", "spool", 20_000)),
    Subject(TICK_1, "core", partial(_tick, 1)),
    Subject(TICK_100, "core", partial(_tick, 100)),
)
_BY_SIZE = tuple(
    subject
    for size in SIZES
    for subject in (
        Subject(f"kernel {size} B", "sizes", _counted(flows.kernel_one_way, 200_000, size)),
        *(_flow(f"{a}→{b} {size} B", "sizes", Flow(a, b, 30_000, size)) for a, b in _SIZED),
    )
    if subject.name != KERNEL
)
_BY_ROUTES = tuple(
    _flow(f"{a}→{b}, {routes} routes", "routes", Flow(a, b, 40_000 // routes, routes=routes))
    for routes in ROUTES
    for a, b in (("log", "queue"), ("queue", "queue"))
)
_OTHERS = (
    Subject(C_TWO, "others", _counted(flows.echo_by_c_bridge, 10_000, "two_processes")),
    Subject(SHARED_ECHO, "others", _counted(alternatives.shared_echo, 10_000)),
    Subject(SHARED_LOG, "others", _counted(_shared("log"), 400_000, 256)),
    Subject(SHARED_SPOOL, "others", _counted(_shared("spool"), 40_000, 256)),
    Subject(STATUS, "others", lambda lab, _scale: flows.status(lab, 5)),
    Subject(SUPERVISORCTL, "others", lambda lab, _scale: alternatives.supervisorctl_status(lab, 5)),
    Subject(NATS_ECHO, "others", _counted(alternatives.nats_echo, 2_000)),
    Subject(NATS, "others", _counted(_nats(""), 30_000, 256)),
    Subject(JETSTREAM, "others", _counted(_nats("js-"), 10_000, 256)),
)
_JETSTREAM = (
    Subject(JS_RAW, "jetstream", _counted(jetstream.raw, 100_000, 256)),
    Subject(JS_WINDOW, "jetstream", _counted(partial(_alone, "js-window"), 60_000, 256)),
    Subject(TO_JS, "jetstream", _counted(jetstream.from_log, 60_000, 256)),
    Subject(JS_FETCH, "jetstream", _counted(partial(_alone, "js-fetch"), 60_000, 256)),
    Subject(FROM_JS, "jetstream", _counted(jetstream.to_log, 60_000, 256)),
)
_KINDS = (
    Subject(MQUEUE, "kinds", _counted(flows.mqueue_limit, 400_000, 256)),
    *(
        _flow(f"{a}→{b}", "kinds", Flow(a, b, 60_000))
        for a, b in (("log", "mqueue"), ("mqueue", "log"), ("mqueue",) * 2)
    ),
    Subject(DATAGRAMS, "kinds", _counted(flows.datagram_limit, 400_000, 256)),
    *(
        _flow(f"{a}→{b}", "kinds", Flow(a, b, 60_000))
        for a, b in (("log", "socket"), ("socket", "log"), ("socket",) * 2)
    ),
)
_BY_EVIDENCE = tuple(
    subject
    for evidence in EVIDENCE
    for subject in (
        Subject(f"echo, {evidence}", "evidence", _counted(flows.echo, 10_000, evidence)),
        *(
            _flow(f"{a}→{b}, {evidence}", "evidence", Flow(a, b, 60_000, evidence=evidence))
            for a, b in (("log", "queue"), ("queue", "log"), ("queue", "queue"))
        ),
    )
)
SUBJECTS: Sequence[Subject] = (*_CORE, *_BY_SIZE, *_BY_ROUTES, *_OTHERS, *_JETSTREAM, *_KINDS, *_BY_EVIDENCE)
CORE = tuple(subject.name for subject in _CORE)

MEMORY = 2_000_000  # bytes of an agent's own memory
GOALS: Sequence[Goal] = (
    Goal("echo file↔queue 64 B, exactly-once: p50", "p50", ECHO, C_ECHO, 3.3),
    Goal("echo: p90", "p90", ECHO, C_ECHO, 3.3),
    Goal("echo: p99", "p99", ECHO, C_ECHO, 3.0),
    Goal("log→queue 256 B, at-least-once", "rate", "log→queue alo", KERNEL, 0.45, at_least=True),
    Goal("log→queue 256 B, exactly-once", "rate", "log→queue", KERNEL, 0.20, at_least=True),
    Goal("queue→log 256 B, exactly-once", "rate", "queue→log", KERNEL, 0.19, at_least=True),
    Goal("queue→queue 256 B, exactly-once", "rate", "queue→queue", KERNEL, 0.14, at_least=True),
    Goal("spool→queue 256 B, exactly-once", "rate", "spool→queue", FILES, 0.5, at_least=True),
    Goal("queue→spool 256 B, exactly-once", "rate", "queue→spool", FILES, 0.63, at_least=True),
    Goal("log→nats 256 B against nats-py with a window", "rate", TO_JS, JS_WINDOW, 0.7, at_least=True),
    Goal("nats→log 256 B against nats-py's fetch", "rate", FROM_JS, JS_FETCH, 0.7, at_least=True),
    Goal("nats-py with a window against raw bytes", "rate", JS_WINDOW, JS_RAW, None, at_least=True),
    *(
        Goal(f"{name} 256 B, exactly-once", "rate", name, peer, None, at_least=True)
        for peer, names in (
            (MQUEUE, ("log→mqueue", "mqueue→log", "mqueue→mqueue")),
            (DATAGRAMS, ("log→socket", "socket→log", "socket→socket")),
        )
        for name in names
    ),
    Goal("CPU a message, 100 routes against 1", "cpu", TICK_100, TICK_1, 1.0),
    Goal("own memory, log's agent (source)", "uss_source", "log→queue", None, MEMORY),
    Goal("own memory, queue's agent (sink)", "uss_sink", "log→queue", None, MEMORY),
    Goal("own memory, queue's agent (source)", "uss_source", "queue→log", None, MEMORY),
    Goal("own memory, spool's agent (source)", "uss_source", "spool→queue", None, MEMORY),
    Goal("status of two, as a process", "status", STATUS, SUPERVISORCTL, 0.5),
    Goal("echo: p50 against two processes in C, without journal", "p50", ECHO, C_TWO, None),
    Goal("two processes in C against one: p50", "p50", C_TWO, C_ECHO, None),
    Goal("echo: p50, senders against the counter", "p50", "echo, senders", "echo, counter", None),
    Goal(
        "log→queue, senders against the counter",
        "rate",
        "log→queue, senders",
        "log→queue, counter",
        None,
        at_least=True,
    ),
    Goal(
        "queue→log, senders against the counter",
        "rate",
        "queue→log, senders",
        "queue→log, counter",
        None,
        at_least=True,
    ),
    Goal("echo: p50 against two programs at a shared mount", "p50", ECHO, SHARED_ECHO, None),
    Goal("echo: p50 against NATS", "p50", ECHO, NATS_ECHO, None),
    Goal("log→queue, at-least-once, against NATS (at most once)", "rate", "log→queue alo", NATS, None, at_least=True),
    Goal("log→queue, exactly-once, against NATS JetStream", "rate", "log→queue", JETSTREAM, None, at_least=True),
    Goal("spool→queue against a spool at a shared mount", "rate", "spool→queue", SHARED_SPOOL, None, at_least=True),
)


def chosen(words: Sequence[str]) -> list[Subject]:
    """Return the subjects whose name or group is among the words (all without any), and the goals about them."""
    names = {subject.name for subject in SUBJECTS if not words or subject.group in words or subject.name in words}
    names |= {goal.against for goal in GOALS if goal.against and goal.limit is not None and goal.subject in names}
    unknown = set(words) - names - {subject.group for subject in SUBJECTS}
    if unknown:
        known = ", ".join([*dict.fromkeys(s.group for s in SUBJECTS), *(s.name for s in SUBJECTS)])
        raise SystemExit(f"no such thing to measure: {', '.join(sorted(unknown))}; there are {known}")
    return [subject for subject in SUBJECTS if subject.name in names]
