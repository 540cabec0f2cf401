"""Supervision keeps its promise under full load: wedged agents, a killed supervisor, and no false alarm.

    python -m tests.system.health_storm --stops 50 --supervisor-kills 50 --calm 600 [--deadline 3]

Storms as of storm.py, between a spool and a queue, both ways, exactly once:
* stops: SIGSTOP to an agent or a sender process, again and again. How long until it is dead, and until messages arrive
  again both ways.
* supervisor kills: SIGKILL to the supervisor under an outer runner. How long until the last of its processes is dead,
  and until the next one's agents are both running; nothing of the one before may live then.
* calm: nothing is done but to keep all cores busy with other things. Nothing may be killed.
After each, every message has to have arrived once, in order.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system import storm
from tests.system.nsbridged import Nsbridged
from tests.system.outer_runner import UnderRunner
from tests.system.room import wait_dead, wait_until
from tests.system.storm import Storm
from tests.system.storm_outcome import Outcome, Plan

_PAIR = ("spool", "queue")
_KEEPS_ONE_CORE_BUSY = "while True: pass"


class Timed:
    """A storm in which times are measured, in seconds, one of each kind a strike."""

    def __init__(self, deadline: float, seed: int) -> None:
        self.deadline = deadline
        self.noticed: list[float] = []
        self.recovered: list[float] = []
        self.silent: list[float] = []
        self._chance = random.Random(seed)
        self._seed = seed

    def run(self, strikes: Callable[[Storm], None], make: Callable[[Path, str, str], Nsbridged] = Nsbridged) -> Outcome:
        """Run one storm in two new containers."""
        health = f'health = {{ deadline = "{int(self.deadline * 1000)}ms" }}'
        plan = Plan(_PAIR, "exactly-once", 0, seed=self._seed)
        with tempfile.TemporaryDirectory(prefix="nsb-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            directory.chmod(0o711)
            with storm.containers("unshare", directory) as pair:
                made = Storm(plan, directory, pair, lambda where, routes: make(where, routes, health))
                return made.run(lambda: strikes(made))

    def stop_agents(self, count: int) -> Callable[[Storm], None]:
        """Return a storm that stops one of all processes that carry messages, `count` times."""

        def strikes(made: Storm) -> None:
            for _ in range(count):
                made.wait_for_arrivals()
                victim = self._chance.choice(made.processes())
                os.kill(victim.pid, signal.SIGSTOP)
                since = time.monotonic()
                wait_dead(victim.pid, 4 * self.deadline)
                self.noticed.append(time.monotonic() - since)
                made.killed(victim)
                made.wait_for_arrivals()
                self.recovered.append(time.monotonic() - since)
            restarts = sum(agent["restarts"] for agent in made.daemon.agents().values())
            assert restarts == count, f"{restarts} restarts for {count} SIGSTOPs"

        return strikes

    def kill_supervisor(self, count: int) -> Callable[[Storm], None]:
        """Return a storm that kills the supervisor, `count` times; the outer runner starts the next."""

        def strikes(made: Storm) -> None:
            for _ in range(count):
                made.wait_for_arrivals()
                time.sleep(self._chance.uniform(0, 0.05))  # until a strike, by chance
                since = time.monotonic()
                processes = made.daemon.kill()
                for pid in processes:
                    wait_dead(pid, 1.0)
                self.noticed.append(time.monotonic() - since)
                made.daemon.start()
                made.daemon.wait_for("RUNNING")
                self.recovered.append(time.monotonic() - since)
                assert not [pid for pid in processes if _is_alive(pid)], "processes of the one before"
                wait_until(lambda: len(made.daemon.processes()) == len(processes), "as many as before, none twice")  # noqa: B023

        return strikes

    def keep_calm(self, seconds: float) -> Callable[[Storm], None]:
        """Return a storm that does nothing, for so long, with all cores busy."""

        def strikes(made: Storm) -> None:
            made.wait_for_arrivals()
            before = {name: agent["pid"] for name, agent in made.daemon.agents().items()}
            end = time.monotonic() + seconds
            with busy_cores():
                while time.monotonic() < end:
                    agents = made.daemon.agents()
                    assert {name: agent["pid"] for name, agent in agents.items()} == before, made.daemon.said()[-3000:]
                    self.silent += [agent["health"]["silent_s"] for agent in agents.values()]
                    time.sleep(0.2)  # the pace of looks at what must stay
            assert "wedged" not in made.daemon.said()

        return strikes


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def busy_cores() -> Iterator[None]:
    """Run one process for each core that does nothing else than to use it."""
    hogs = [subprocess.Popen([sys.executable, "-c", _KEEPS_ONE_CORE_BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def summary(what: str, times: Sequence[float]) -> str:
    """Return one line."""
    median, longest = statistics.median(times) * 1e3, max(times) * 1e3
    return f"{what}: median {median:,.0f} ms, longest {longest:,.0f} ms, {len(times)} times"


def _print(what: str, outcome: Outcome, lines: Sequence[str]) -> bool:
    count = sum(direction.sent for direction in outcome.directions)
    print(
        f"{what}: {outcome.seconds:.0f} s, {count:,} messages; {outcome.problems() or 'none lost, repeated or moved'}"
    )
    for line in lines:
        print(f"    {line}")
    sys.stdout.flush()
    return not outcome.problems()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="SIGSTOP agents, SIGKILL the supervisor, or do nothing for long.")
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--supervisor-kills", type=int, default=0)
    parser.add_argument("--calm", type=float, default=0, help="seconds")
    parser.add_argument("--deadline", type=float, default=3.0, help="seconds, for the stops")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    well = True
    if options.stops:
        timed = Timed(options.deadline, options.seed)
        outcome = timed.run(timed.stop_agents(options.stops))
        within = sum(1 for seconds in timed.noticed if seconds <= options.deadline)
        well &= within == options.stops
        lines = [summary("dead after SIGSTOP", timed.noticed), summary("messages both ways again", timed.recovered)]
        recovered = sum(1 for seconds in timed.recovered if seconds <= options.deadline)
        lines.append(
            f"within the deadline of {options.deadline:g} s: {within} dead, {recovered} recovered, of {options.stops}"
        )
        well &= _print(f"{options.stops} SIGSTOPs", outcome, lines)
    if options.supervisor_kills:
        timed = Timed(15.0, options.seed)
        outcome = timed.run(timed.kill_supervisor(options.supervisor_kills), UnderRunner)
        lines = [
            summary("its last process dead", timed.noticed),
            summary("the next one's agents running", timed.recovered),
        ]
        well &= _print(f"{options.supervisor_kills} SIGKILLs of the supervisor", outcome, lines)
    if options.calm:
        timed = Timed(15.0, options.seed)
        outcome = timed.run(timed.keep_calm(options.calm))
        lines = [f"longest silence of an agent {max(timed.silent):.2f} s of 10 s that it may be silent, no false alarm"]
        well &= _print(f"{options.calm:.0f} s of full load on busy cores", outcome, lines)
    return not well


if __name__ == "__main__":
    sys.exit(main())
