"""Throughput, latency, CPU time and memory of nsbridge: real daemon, real namespaces, C programs at both ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.lab import Lab, Load, background, cpu_seconds, inside, own_memory, tree
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, run, wait_until

Figures = dict[
    str, float
]  # by metric: rate (messages/s), cpu (µs of CPU time a message), p50 … (µs), uss (bytes), status (ms)

ECHO_SIZE = 64
_ECHO = """
[route.echo.agent.client]
container = "{client}"
file      = {{ out = "/srv/to_server", in = "/srv/to_client" }}
[route.echo.agent.server]
container = "{server}"
queue     = {{ in = {{ key = 0x4d2, type = 1 }}, out = {{ key = 0x4d2, type = 2 }} }}
"""
_ROUTE = """
[route.r{n}]
delivery = "{delivery}"
[route.r{n}.agent.a]
container = "{a}"
{source}
[route.r{n}.agent.b]
container = "{b}"
{sink}
"""


@dataclass(frozen=True, slots=True)
class Flow:
    """Load of a benchmark: from which kind of endpoint into which, how many messages a route, of how many bytes."""

    source: str
    sink: str
    count: int
    size: int = 256
    delivery: str = "exactly-once"
    routes: int = 1
    evidence: str = "auto"  # see [daemon]


def carry(lab: Lab, flow: Flow) -> Figures:
    """Feed and drain a flow at full speed, from the start of the first feed to the last message's arrival."""
    with lab.containers() as (a, b), _routes(lab, flow, a, b) as daemon:
        drains = [_load(lab, b, "drain", flow.sink, n, flow) for n in range(flow.routes)]
        wait_until(
            lambda: all(a["blocked_s"] is None for a in daemon.agents().values()), "each drain's socket is found"
        )
        pids = tree(daemon.pid)
        before = cpu_seconds(pids)
        feeds = [_load(lab, a, "feed", flow.source, n, flow) for n in range(flow.routes)]
        ended = max(drain.span().ended for drain in drains)
        cpu = cpu_seconds(pids) - before
        begun = min(feed.span().begun for feed in feeds)
        count = flow.count * flow.routes
        return {"rate": count / (ended - begun), "cpu": cpu / count * 1e6} | _memory(daemon)


@contextmanager
def feeding(lab: Lab, flow: Flow) -> Iterator[Nsbridged]:
    """Yield a daemon whose flow is fed and drained at full speed meanwhile."""
    with lab.containers() as (a, b), _routes(lab, flow, a, b) as daemon:
        loads = [_load(lab, b, "drain", flow.sink, 0, flow), _load(lab, a, "feed", flow.source, 0, flow)]
        try:
            yield daemon
        finally:
            for load in loads:
                load.kill()


def tick(lab: Lab, routes: int, seconds: int) -> Figures:
    """Measure log → queue on so many routes, one message a second each."""
    flow = Flow("log", "queue", 0, 64, routes=routes)
    with lab.containers() as (a, b), _routes(lab, flow, a, b) as daemon:
        pids = tree(daemon.pid)
        before = cpu_seconds(pids)
        lab.load(a, "tick", "/srv/out-", routes, seconds, flow.size).span()
        cpu = cpu_seconds(pids) - before
        _wait_delivered(daemon, routes * seconds)
        return {"cpu": cpu / (routes * seconds) * 1e6}


def echo(lab: Lab, count: int, evidence: str = "auto") -> Figures:
    """Measure round trips of the classic echo programs through nsbridge, one at a time."""
    with lab.containers() as (client, server):
        text = _ECHO.format(client=client.spec, server=server.spec)
        with _echo_server(lab, server), lab.daemon(text, evidence) as daemon:
            return echo_times(_echo_client(lab, client, count), count, tree(daemon.pid))


def echo_by_c_bridge(lab: Lab, count: int, program: str = "bridge") -> Figures:
    """Run the same programs, files and keys through a bridge in C: of one process, or `two_processes`."""
    with lab.containers() as (client, server), _echo_server(lab, server):
        words = [lab.program(program), f"/proc/{server.pid}/ns/ipc", f"/proc/{client.pid}/ns/mnt", "/srv"]
        with background([str(word) for word in words]) as bridge:
            wait_until_it_watches(bridge)
            return echo_times(_echo_client(lab, client, count), count, tree(bridge.pid))


def _echo_server(lab: Lab, server: EngineContainer) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return background(inside(server, lab.program("ipc_echo_server")))


def _echo_client(lab: Lab, client: EngineContainer, count: int) -> list[str]:
    return inside(client, lab.program("mnt_echo_client"), "/srv", count, ECHO_SIZE)


def echo_times(client: list[str], count: int, pids: list[int]) -> Figures:
    """Run an echo client to its end: what it says of its round trips; and the CPU time of `pids` for each, if any."""
    before = cpu_seconds(pids)
    said = run(client).stdout.decode("ascii")
    cpu = cpu_seconds(pids) - before
    times = {name: float(value) for name, value in re.findall(r"(p50|p90|p99|max) ([0-9.]+)", said)}
    return times | {"cpu": cpu / count * 1e6} if pids else times


def status(lab: Lab, count: int) -> Figures:
    """Measure `nsbridgectl status` of one route's two agents, as a process."""
    with lab.containers() as (a, b), _routes(lab, Flow("log", "queue", 0), a, b) as daemon:
        return {
            "status": status_time([Path(sys.executable).with_name("nsbridgectl"), "-s", daemon.socket, "status"], count)
        }


def status_time(command: Sequence[str | Path], count: int) -> float:
    """Return the median time, in ms, of a status command that shows two RUNNING processes."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        done = run(command)
        times.append((time.perf_counter() - begun) * 1000)
        assert done.stdout.count(b"RUNNING") == 2, done.stdout
    return median(times)


def kernel_one_way(lab: Lab, count: int, size: int) -> Figures:
    """Measure the kernel's own limit: one queue, two processes, no bridge."""
    said = run([lab.program("queue_limit"), str(count), str(size)]).stdout.decode("ascii")
    rate, trip = re.findall(r"[0-9.]+", said.replace("one-way", ""))
    return {"rate": float(rate), "round_trip": float(trip)}


def spool_limit(lab: Lab, count: int, size: int) -> Figures:
    """Measure the file system's own limit: the same file operations, no bridge."""
    where = lab.run_directory()
    said = run([lab.program("spool_limit"), where, str(count), str(size)]).stdout
    return {"rate": float(said.split()[0])}


def mqueue_limit(lab: Lab, count: int, size: int) -> Figures:
    """Measure the kernel's own limit for POSIX queues: one queue, two processes, no bridge."""
    return {"rate": float(run([lab.program("mqueue_limit"), str(count), str(size)]).stdout.split()[0])}


def datagram_limit(lab: Lab, count: int, size: int) -> Figures:
    """Measure the kernel's own limit for datagrams: a pair of Unix sockets, two processes, no bridge."""
    return {"rate": float(run([lab.program("datagram_limit"), str(count), str(size)]).stdout.split()[0])}


@contextmanager
def _routes(lab: Lab, flow: Flow, a: EngineContainer, b: EngineContainer) -> Iterator[Nsbridged]:
    for n in range(flow.routes):
        for container, kind, side in ((a, flow.source, "out"), (b, flow.sink, "in")):
            _prepare(container, kind, _place(kind, side, n))
    routes = (
        _ROUTE.format(
            n=n,
            delivery=flow.delivery,
            a=a.spec,
            b=b.spec,
            source=_endpoint(flow.source, "out", n),
            sink=_endpoint(flow.sink, "in", n),
        )
        for n in range(flow.routes)
    )
    with lab.daemon("".join(routes), flow.evidence) as daemon:
        yield daemon


def _place(kind: str, side: str, n: int) -> str:
    places = {"queue": str(0x5000 + n), "mqueue": f"/{side}-{n}"}
    return places.get(kind, f"/srv/{side}-{n}")


def _endpoint(kind: str, side: str, n: int) -> str:
    place = _place(kind, side, n)
    if kind == "queue":
        return f"queue = {{ {side} = {{ key = {place} }}, create = true }}"
    if kind == "mqueue":
        return f'mqueue = {{ {side} = {{ name = "{place}" }}, create = true }}'
    return f'{kind} = {{ {side} = "{place}" }}'


def _prepare(container: EngineContainer, kind: str, place: str) -> None:
    if kind == "spool":
        for name in (place, f"{place}.tmp"):
            (container.rootfs / name.lstrip("/")).mkdir()


def _load(lab: Lab, container: EngineContainer, role: str, kind: str, n: int, flow: Flow) -> Load:
    place = _place(kind, "out" if role == "feed" else "in", n)
    return lab.load(container, role, kind, place, flow.count, flow.size)


def _memory(daemon: Nsbridged) -> Figures:
    agents = daemon.agents()
    source, sink = (int(agents[name]["pid"]) for name in ("r0:a", "r0:b"))
    figures = {"uss_source": own_memory(source), "uss_sink": own_memory(sink)}
    if senders := tree(sink)[1:]:
        figures["uss_sender"] = max(map(own_memory, senders))
    return figures


def _wait_delivered(daemon: Nsbridged, count: int) -> None:
    def delivered() -> int:
        return sum(flow["delivered"] for route in daemon.call("status")["routes"] for flow in route["flows"])

    wait_until(lambda: delivered() == count, f"{count} messages are delivered", LIMIT)


def wait_until_it_watches(program: subprocess.Popen[bytes]) -> None:
    """Wait until the program has an inotify watch."""
    infos = f"/proc/{program.pid}/fdinfo"

    def watches() -> bool:
        assert program.poll() is None, f"{program.args!r} ended with {program.returncode}"
        return any("inotify wd" in Path(infos, name).read_text(encoding="ascii") for name in os.listdir(infos))

    wait_until(watches, f"{program.args!r} watches its file")
