"""Many routes on one machine: how long they take to start, what they cost while they are idle, what `status` costs.

    python -m benchmarks.scale [--routes 200] [--idle SECONDS] [--report docs/scale.md]

Every route is a spool in one container and a queue in another, both ways; 25 routes share two containers (namespaces
of util-linux' unshare), each route with directories and keys of its own. Measured with both kinds of delivery, because
the sink of a queue with exactly-once has two further processes. CPU time is the kernel's own count in nanoseconds
(clock_getcpuclockid(3)) of the supervisor and all its descendants; own memory is what the kernel would get back if
that process ended (the USS of /proc/PID/smaps_rollup).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks import readme
from benchmarks.lab import cpu_seconds, own_memory, tree
from tests import report_file
from tests.system.engines import Program, UnshareContainer
from tests.system.nsbridged import Nsbridged

ROUTES_IN_ONE = 25  # that share two containers, and a user: inotify's instances are counted for each user
FIRST_UID = 3000  # of the agents; one for each pair of containers
_STATUS_ROUNDS = 15
_MIB = 1 << 20


class Memory(NamedTuple):
    """Own memory in bytes: the median and the most of a kind of process."""

    median: float
    most: float


class Outcome(NamedTuple):
    """Measured values; times in seconds."""

    delivery: str
    routes: int
    processes: int
    start: float  # from exec to every agent in state RUNNING
    status: float  # median of `nsbridgectl status`, as a process
    idle: float  # share of one core
    idle_for: float
    memory: dict[str, Memory]  # by kind of process
    stop: float
    load: float  # load average of one minute when it began


def measure(routes: int, delivery: str, idle_for: float) -> Outcome:
    """Run one daemon with so many routes, from its start to its end."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="nsb-scale-", dir="/run") as base, ExitStack() as cleanup:
        Path(base).chmod(0o711)
        text = "".join(make_routes(routes, delivery, Path(base), cleanup))
        daemon = Nsbridged(Path(base), text)
        daemon.config.write_text(daemon.config.read_text().replace('"debug"', '"info"'))
        began = time.monotonic()
        with daemon:
            settled = daemon.call("start", names=["all"], wait=True)
            start = time.monotonic() - began
            states = {agent["state"] for agent in settled["agents"]}
            assert states == {"RUNNING"}, f"{states}; {daemon.said()[-2000:]}"
            daemon.wait_for("RUNNING")  # an agent forks its senders a little after it runs
            pids = tree(daemon.pid)
            status = statistics.median(_timed(lambda: _status(daemon, routes)) for _ in range(_STATUS_ROUNDS))
            idle = _idle(pids, idle_for)
            memory = dict(_memory(daemon.pid, pids))
            stop = _timed(daemon.stop)
    return Outcome(delivery, routes, len(pids), start, status, idle, idle_for, memory, stop, load)


def make_routes(count: int, delivery: str, base: Path, cleanup: ExitStack) -> Iterator[str]:
    """Yield the configuration of `count` routes, and make their containers on the way."""
    containers: list[UnshareContainer] = []
    for number in range(count):
        group = number // ROUTES_IN_ONE
        if number % ROUTES_IN_ONE == 0:
            containers = [_container(base, cleanup) for _ in range(2)]
        files, queue = containers
        place = files.rootfs / f"srv/{number}"
        place.mkdir()
        os.chown(place, FIRST_UID + group, FIRST_UID + group)
        user = f'user = "{FIRST_UID + group}:{FIRST_UID + group}"'
        yield (
            f'[route.r{number}]\ndelivery = "{delivery}"\n'
            f'[route.r{number}.agent.files]\ncontainer = "{files.spec}"\n{user}\n'
            f'spool = {{ out = "/srv/{number}/out", in = "/srv/{number}/in" }}\n'
            f'[route.r{number}.agent.queue]\ncontainer = "{queue.spec}"\n'
            f"queue = {{ in = {{ key = {2 * number + 1}, type = 1 }}, out = {{ key = {2 * number + 2} }}, "
            "create = true }\n"
        )


def _container(base: Path, cleanup: ExitStack) -> UnshareContainer:
    container = UnshareContainer(Program(), base)
    cleanup.callback(container.delete)
    container.start()
    return container


def _timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _status(daemon: Nsbridged, routes: int) -> None:
    command = Path(sys.executable).with_name("nsbridgectl")
    done = subprocess.run([command, "-s", daemon.socket, "status"], capture_output=True, check=True)
    assert done.stdout.count(b"RUNNING") == 2 * routes


def _idle(pids: Sequence[int], seconds: float) -> float:
    """Return the share of one core that all of them take while nothing happens."""
    time.sleep(min(12.0, seconds / 4))  # what status and the start have left behind is done, and the first heartbeats
    before = cpu_seconds(pids)
    began = time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pids) - before) / (time.monotonic() - began)


def _memory(supervisor: int, pids: Sequence[int]) -> Iterator[tuple[str, Memory]]:
    own: dict[str, list[float]] = {}
    for pid in pids:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        kind = "sender" if "/" in name else f"{name.partition(':')[2]} agent"
        own.setdefault("supervisor" if pid == supervisor else kind, []).append(own_memory(pid))
    for kind, sizes in own.items():
        yield kind, Memory(statistics.median(sizes), max(sizes))


def report(outcomes: Sequence[Outcome]) -> str:
    """Return the report in Markdown."""
    load = ", ".join(f"{outcome.load:.1f}" for outcome in outcomes)
    where = f"{os.cpu_count()} cores, Linux {os.uname().release}, Python {sys.version.split()[0]}"
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {where}; load average before each: {load}.",
        "",
        "| delivery | routes | processes | start | `status` | idle CPU | stop |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.delivery} | {o.routes} | {o.processes} | {o.start:.2f} s | {o.status * 1000:.0f} ms | "
        f"{o.idle:.2%} of one core over {o.idle_for:.0f} s | {o.stop:.2f} s |"
        for o in outcomes
    ]
    lines += ["", "| delivery | own memory | median | most |", "|---|---|---|---|"]
    lines += [
        f"| {o.delivery} | {kind} | {memory.median / _MIB:.2f} MiB | {memory.most / _MIB:.2f} MiB |"
        for o in outcomes
        for kind, memory in o.memory.items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--routes", type=int, default=200)
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS", help="how long idle CPU is measured")
    parser.add_argument("--delivery", action="append", choices=("at-least-once", "exactly-once"))
    parser.add_argument("--report", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    deliveries = options.delivery or ["at-least-once", "exactly-once"]
    text = report([measure(options.routes, delivery, options.idle) for delivery in deliveries])
    print(text)
    if options.report:
        report_file.put(options.report, "scale", text)
        readme.put()
    return 0


if __name__ == "__main__":
    sys.exit(main())
