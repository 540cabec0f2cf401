"""Measures the cost of a scrape with many routes: its time, and the CPU time that it takes of the daemon.

    python -m benchmarks.scrape [--routes 200] [--rounds 20] [--report docs/web.md]

The routes are those of `make scale`, beside a real `nsbridge web`. Each scrape waits until the answer before it is too
old to be used again, so each one asks the daemon. CPU time is the kernel's own count of the supervisor's process, from
before the scrape until 20 ms after it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.lab import cpu_seconds
from benchmarks.scale import make_routes
from nsbridge.supervisor.cli.web import feed
from tests import report_file
from tests.system.nsbridged import Nsbridged
from tests.web_process import Web

AFTER = 0.02  # seconds in which the daemon's work for a scrape ends


class Cost(NamedTuple):
    """Medians of a path: seconds of the request, CPU seconds of the daemon, bytes of the answer."""

    path: str
    seconds: float
    cpu: float
    size: int


def measure(routes: int, rounds: int, paths: Sequence[str] = ("/metrics", "/", "/api/status")) -> list[Cost]:
    """Run a daemon with so many routes and a web process, from their start to their end."""
    with tempfile.TemporaryDirectory(prefix="nsb-scrape-", dir="/run") as base, ExitStack() as cleanup:
        Path(base).chmod(0o711)
        text = "".join(make_routes(routes, "exactly-once", Path(base), cleanup))
        daemon = Nsbridged(Path(base), text)
        daemon.config.write_text(daemon.config.read_text().replace('"debug"', '"info"'))
        with daemon, Web(daemon.socket) as web:
            daemon.call("start", names=["all"], wait=True)
            daemon.wait_for("RUNNING")  # an agent forks its senders a little after it runs
            return [_cost(daemon, web, path, rounds) for path in paths]


def _cost(daemon: Nsbridged, web: Web, path: str, rounds: int) -> Cost:
    seconds, cpu, sizes = [], [], []
    for _ in range(rounds):
        time.sleep(feed.MAX_AGE + 0.1)
        before, began = cpu_seconds([daemon.pid]), time.monotonic()
        answer = web.get(path)
        seconds.append(time.monotonic() - began)
        time.sleep(AFTER)
        cpu.append(cpu_seconds([daemon.pid]) - before)
        sizes.append(len(answer.body))
        assert answer.status == 200, answer.text
    return Cost(path, statistics.median(seconds), statistics.median(cpu), max(sizes))


def report(routes: int, costs: Sequence[Cost]) -> str:
    """Return the report in Markdown."""
    where = f"{os.cpu_count()} cores, Linux {os.uname().release}, Python {sys.version.split()[0]}"
    lines = [
        f"{routes} routes, {time.strftime('%Y-%m-%d')}, {where}; load average {os.getloadavg()[0]:.1f}. Medians.",
        "",
        "| path | takes | CPU of the daemon | answer |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{c.path}` | {c.seconds * 1000:.0f} ms | {c.cpu * 1000:.1f} ms | {c.size / 1e6:.2f} MB |" for c in costs
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrape", description=__doc__)
    parser.add_argument("--routes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--report", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    text = report(options.routes, measure(options.routes, options.rounds))
    print(text)
    if options.report:
        report_file.put(options.report, "scrape", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
