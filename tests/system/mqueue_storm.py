"""Kill storms over POSIX queues: with a SysV queue, a spool and another POSIX queue across, in both directions.

    python -m tests.system.mqueue_storm --kills 500 --messages 500000 [--seed N]

The storm is storm.py's. It needs the kernel's counter: nothing else shows what was sent into a POSIX queue.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.system import storm
from tests.system.nsbridged import Nsbridged
from tests.system.storm_outcome import EXACTLY_ONCE, Outcome, Plan, report

PAIRS = (("mqueue", "queue"), ("mqueue", "spool"), ("mqueue", "mqueue"))


def plans(kills: int, messages: int, seed: int) -> list[Plan]:
    """Return each pair: so many strikes and messages in all, at least."""
    share = len(PAIRS)
    return [
        Plan(pair, EXACTLY_ONCE, -(-kills // share), -(-messages // share), seed + number)
        for number, pair in enumerate(PAIRS)
    ]


def run(plan: Plan) -> Outcome:
    """Run one storm."""
    return storm.run(plan, run_daemon=_counting)


def _counting(directory: Path, routes: str) -> Nsbridged:
    return Nsbridged(directory, routes, 'evidence = "counter"')


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="SIGKILL everything that carries messages of POSIX queues.")
    parser.add_argument("--kills", type=int, default=500, help="strikes, in all")
    parser.add_argument("--messages", type=int, default=500_000, help="messages at least, in all")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    outcomes = []
    for plan in plans(options.kills, options.messages, options.seed):
        outcomes.append(run(plan))
        print(f"{plan}: {outcomes[-1].seconds:.0f} s", outcomes[-1].problems() or "kept", file=sys.stderr)
    print(report(outcomes, "unshare", options.seed))
    return any(outcome.problems() for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
