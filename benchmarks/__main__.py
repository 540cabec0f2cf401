"""`make bench`: nsbridge and its peers in turn, several times; medians and ratios. See docs/benchmarks.md.

    ./run bench [--rounds N] [--quick] [--only NAME…] [--check | --record]

NAME is a subject or a group: core, sizes, routes, others, jetstream, kinds, evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import outcome, plot, readme
from benchmarks.flows import Figures
from benchmarks.lab import Lab
from benchmarks.subjects import Subject, chosen
from tests import report_file

_ROOT = Path(__file__).parents[1]
_JSON = _ROOT / "docs" / "bench.json"
_PICTURE = _ROOT / "docs" / "bench.svg"
_REPORT = _ROOT / "docs" / "benchmarks.md"
_RECORDED = Path(__file__).with_name("recorded.json")
_TOLERANCE = 0.35  # a ratio of one run differs from the next by as much on a machine that is shared


def measure(subjects: Sequence[Subject], rounds: int, scale: float) -> dict[str, list[Figures]]:
    """Measure all subjects in turn, several times: a temporary disturbance of the machine then affects all of them."""
    found: dict[str, list[Figures]] = {subject.name: [] for subject in subjects}
    with Lab() as lab:
        for number in range(rounds):
            for subject in subjects:
                begun = time.monotonic()
                figures = subject.run(lab, scale)
                found[subject.name].append(figures)
                told = " ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
                print(
                    f"{number + 1}/{rounds} {subject.name}: {told} ({time.monotonic() - begun:.1f} s)", file=sys.stderr
                )
    return found


def _publish(found: dict[str, list[Figures]], load: float) -> None:
    """Write the figures, their picture and the tables below their text into docs/; a few figures into README."""
    document = outcome.document(found, load)
    _JSON.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot.draw(document, _PICTURE)
    heading = outcome.heading(document)
    report_file.put(_REPORT, "bench", f"{heading}\n\n{outcome.tables(found)}\n")
    readme.put()


def main() -> int:
    """Run the command; return 0, or 1 if `--check` finds something slower than recorded."""
    parser = argparse.ArgumentParser(prog="./run bench", description="nsbridge against its peers, in one run.")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, one round: to see that it works")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these subjects or groups")
    parser.add_argument("--check", action="store_true", help="compare the core's ratios with benchmarks/recorded.json")
    parser.add_argument("--record", action="store_true", help="write the ratios to benchmarks/recorded.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    only = options.only or (["core"] if options.check else [])
    rounds, scale = (1, 0.1) if options.quick else (options.rounds, 1.0)
    load = os.getloadavg()[0]
    found = measure(chosen(only), rounds, scale)
    print(outcome.tables(found))
    if not only and not options.quick:
        _publish(found, load)
    if options.record:
        outcome.record(_RECORDED, outcome.medians(found))
    if not options.check:
        return 0
    worse = outcome.regressions(outcome.medians(found), outcome.read_recorded(_RECORDED), _TOLERANCE)
    print("\n".join(["", "slower than recorded:", *worse] if worse else ["", "nothing is slower than recorded"]))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
