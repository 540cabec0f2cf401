"""`python -m benchmarks.tap`: what a tap costs a route at full load, and what it costs when no tap runs.

One daemon, one route, fed and drained by C programs without pause. A tap runs in every second window of time; so both
halves see the same machine. A window's rate is the number of messages that the sink has handed over in it. The figure
is the median of the windows with a tap over that of the windows without one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.flows import Flow, feeding
from benchmarks.lab import Lab
from tests.system.nsbridged import Nsbridged

_ENDLESS = 10**9  # messages
FLOWS = {kind: Flow(kind, sink, _ENDLESS) for kind, sink in (("queue", "queue"), ("log", "log"), ("spool", "queue"))}
_SETTLES = 0.3  # seconds after a tap began or ended, which are not measured


@contextmanager
def tapping(daemon: Nsbridged) -> Iterator[None]:
    """Run nsbridgectl tap, as a person does, with its output thrown away."""
    command = [str(Path(sys.executable).with_name("nsbridgectl")), "-s", str(daemon.socket), "tap", "r0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def rate(daemon: Nsbridged, seconds: float) -> float:
    """Return the messages a second in the next so many seconds."""
    time.sleep(_SETTLES)
    begun, before = time.monotonic(), daemon.flow("r0:a")["delivered"]
    time.sleep(seconds)
    after = daemon.flow("r0:a")["delivered"]
    return float((after - before) / (time.monotonic() - begun))


def measure(flow: Flow, windows: int, seconds: float) -> tuple[float, float]:
    """Return the median rates without and with a tap."""
    without, tapped = [], []
    with Lab() as lab, feeding(lab, flow) as daemon:
        rate(daemon, seconds)  # warms up
        for _ in range(windows):
            without.append(rate(daemon, seconds))
            with tapping(daemon):
                tapped.append(rate(daemon, seconds))
    return median(without), median(tapped)


def main() -> None:
    """Print a line for each flow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flows", nargs="*", default=list(FLOWS), help=f"of {', '.join(FLOWS)}")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    for name in options.flows:
        without, tapped = measure(FLOWS[name], options.windows, options.seconds)
        print(f"{name}: {without:,.0f} messages/s without a tap, {tapped:,.0f} with one ({tapped / without:.1%})")


if __name__ == "__main__":
    main()
