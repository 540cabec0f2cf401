"""`python -m benchmarks.tap`: what a tap costs a route at full load.

One daemon, one route, fed and drained by C programs without pause. A tap runs in every second window of time; so both
halves see the same machine. Figures are medians of the windows: the messages a second that the sink hands over, the CPU
time of both agents for a message, and the CPU time of the tap's own processes (nsbridgectl and the daemon's child).

On a machine that does other things, the rates scatter far more than a tap costs; the CPU times do not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.flows import Flow, feeding
from benchmarks.lab import Lab, cpu_seconds, tree
from tests.system.nsbridged import Nsbridged

_ENDLESS = 10**9  # messages
FLOWS = {kind: Flow(kind, sink, _ENDLESS) for kind, sink in (("queue", "queue"), ("log", "log"), ("spool", "queue"))}
_SETTLES = 0.5  # seconds after a tap began or ended, which are not measured


class Window(NamedTuple):
    """The figures of one window."""

    rate: float  # messages a second
    agents: float  # µs of CPU time of both agents, for a message
    tap: float  # share of one core that the tap's own processes used


@contextmanager
def tapping(daemon: Nsbridged) -> Iterator[list[int]]:
    """Run nsbridgectl tap, as a person does, with its output thrown away; yield the processes that this takes."""
    command = [str(Path(sys.executable).with_name("nsbridgectl")), "-s", str(daemon.socket), "tap", "r0"]
    before = set(tree(daemon.pid))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(_SETTLES)
            yield [process.pid, *(set(tree(daemon.pid)) - before)]
        finally:
            process.terminate()


def measured(daemon: Nsbridged, seconds: float, tap: Sequence[int] = ()) -> Window:
    """Return the figures of the next so many seconds."""
    agents = [int(agent["pid"]) for agent in daemon.agents().values()]
    begun, before = time.monotonic(), int(daemon.flow("r0:a")["delivered"])
    cpu, own = cpu_seconds(agents), cpu_seconds(tap)
    time.sleep(seconds)
    count = int(daemon.flow("r0:a")["delivered"]) - before
    took = time.monotonic() - begun
    return Window(count / took, (cpu_seconds(agents) - cpu) / max(count, 1) * 1e6, (cpu_seconds(tap) - own) / took)


def compared(flow: Flow, windows: int, seconds: float) -> tuple[Window, Window]:
    """Return the medians without and with a tap."""
    without, tapped = [], []
    with Lab() as lab, feeding(lab, flow) as daemon:
        measured(daemon, seconds)  # warms up
        for _ in range(windows):
            time.sleep(_SETTLES)
            without.append(measured(daemon, seconds))
            with tapping(daemon) as pids:
                tapped.append(measured(daemon, seconds, pids))
    first, second = (Window(*map(median, zip(*found, strict=True))) for found in (without, tapped))
    return first, second


def main() -> None:
    """Print a line for each flow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flows", nargs="*", default=list(FLOWS), help=f"of {', '.join(FLOWS)}")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    for name in options.flows:
        without, tapped = compared(FLOWS[name], options.windows, options.seconds)
        print(
            f"{name}: {without.rate:,.0f} messages/s, "
            f"with a tap {tapped.rate:,.0f} ({tapped.rate / without.rate:.1%}); "
            f"agents' CPU for a message {without.agents:.2f} µs, with a tap {tapped.agents:.2f} µs "
            f"({tapped.agents / without.agents:.1%}); the tap's own processes {tapped.tap:.1%} of a core",
            flush=True,
        )


if __name__ == "__main__":
    main()
