"""Kill storms: two containers' programs at full load in both directions, while everything between them is SIGKILLed.

    python -m tests.system.storm --kills 2000 --messages 1000000 [--engine unshare|runc] [--seed N] [--report FILE]

Prints a report in Markdown, and puts it below the text of FILE (docs/storm.md); the exit code is 1 if anything was
lost, repeated without need, out of order, damaged or counted wrongly. The programs are storm_program.py; they are never
killed.

A strike is one moment at which one or more processes get SIGKILL: an agent, a sender process, both agents, everything,
or the supervisor, whose agents die with it. One strike in four comes at once after the one before, so that it hits
what is just recovering; the others wait until messages have arrived again in both directions, so that none hits a
standstill, and a route that does not recover is found out.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests import report_file
from tests.system import storm_program
from tests.system.engines import EngineContainer, Program, RuncContainer, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import Room, wait_until
from tests.system.storm_kinds import KINDS, TYPES
from tests.system.storm_outcome import AT_LEAST_ONCE, DELIVERIES, Direction, Outcome, Plan, report
from tests.system.storm_program import Counters

PAIRS = (("spool", "queue"), ("queue", "queue"), ("spool", "spool"), ("log", "queue"))
_ROOT = Path(__file__).parents[2]
_WEIGHTS = {"agent": 40, "sender": 25, "both agents": 15, "supervisor": 12, "everything": 8}
_RECOVERED_WITHIN = 60.0  # seconds
_PF_EXITING = 4  # linux/sched.h; also of a zombie
_CLEANUPS = 60.0  # seconds for all that is under way to arrive
_QUEUE_LIMIT, _FILE_LIMIT = 8000, 200_000  # bytes of the longest message: msgmax is 8192; several packets


class Victim(NamedTuple):
    """A process of nsbridge, by the name that ps shows."""

    pid: int
    name: str

    @property
    def is_sender(self) -> bool:
        """True if it is one of the two senders of a queue agent."""
        return "/" in self.name


class Storm:
    """One daemon, as `run_daemon` makes it, with one route `r` of agents `r:a` and `r:b`, and the four programs."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        containers: Sequence[EngineContainer],
        run_daemon: Callable[[Path, str], Nsbridged] = Nsbridged,
    ) -> None:
        self.plan = plan
        self.journals_stay = True  # False if strikes remove them: then agents count from 0 again
        self._directory = directory
        self._containers = containers
        self._chance = random.Random(plan.seed)
        self._deaths = Counter[str]()  # of the processes that hand over, by agent
        self._strikes = Counter[str]()
        self._signals = 0
        self._longest = _QUEUE_LIMIT if {"queue", "mqueue"} & {*plan.pair} else _FILE_LIMIT
        agents = "".join(
            f'[route.r.agent.{name}]\ncontainer = "{container.spec}"\n{KINDS[kind].toml}\n'
            for name, kind, container in zip("ab", plan.pair, containers, strict=True)
        )
        self.daemon = run_daemon(directory, f'[route.r]\ndelivery = "{plan.delivery}"\n{agents}')
        self.programs: dict[str, subprocess.Popen[bytes]] = {}  # produce-0, consume-0, produce-1, consume-1
        self._sent: list[Counters] = []
        self._received: list[Counters] = []  # by the agent that the message came from

    def run(self, strikes: Callable[[], None] | None = None) -> Outcome:
        """Strike (at random, if nothing else is given), then let everything arrive, then compare."""
        begun = time.monotonic()
        with ExitStack() as cleanup:
            self._start_programs(cleanup)
            cleanup.enter_context(self.daemon)
            (strikes or self._strike_at_random)()
            wait_until(lambda: sum(c["count"] for c in self._sent) >= self.plan.messages, "enough was sent", 600)
            self._end("produce")
            self.daemon.wait_for("RUNNING")
            flows = self._wait_for_the_rest()
            assert self.daemon.stop() == 0
            self._end("consume")
            directions = [self._direction(number, flow) for number, flow in enumerate(flows)]
        errors = [line for line in self.daemon.said().splitlines() if "internal error" in line or "damaged" in line]
        return Outcome(self.plan, time.monotonic() - begun, self._strikes, self._signals, directions, errors)

    def _start_programs(self, cleanup: ExitStack) -> None:
        for number, (kind, container) in enumerate(zip(self.plan.pair, self._containers, strict=True)):
            sent, received = (self._counters(cleanup, f"{what}-{number}") for what in ("sent", "received"))
            self._sent.append(sent)
            self._received.insert(0, received)
            seed = str(self.plan.seed + number)
            out, in_ = (_place(container, where) for where in (KINDS[kind].out, KINDS[kind].in_))
            files = [str(self._directory / name) for name in (f"sent-{number}", f"received-{1 - number}")]
            words = [kind, out, *files, seed, str(self._longest), str(self.plan.pause)]
            self.programs[f"produce-{number}"] = cleanup.enter_context(_program(container, "produce", *words))
            words = [kind, in_, str(self._directory / f"received-{number}"), str(self._streams(1 - number))]
            self.programs[f"consume-{number}"] = cleanup.enter_context(_program(container, "consume", *words))

    def _streams(self, source: int) -> int:
        """Return in how many streams the order of that agent's messages is kept."""
        has_types = self.plan.pair[source] in ("queue", "mqueue")
        return TYPES if has_types and "mqueue" in self.plan.pair else 1

    def _end(self, role: str) -> None:
        for number in (0, 1):
            self.programs[f"{role}-{number}"].terminate()
        for number in (0, 1):
            program = self.programs[f"{role}-{number}"]
            assert program.wait(_RECOVERED_WITHIN) == 0, f"{program.args!r} ended with {program.returncode}"

    def _counters(self, cleanup: ExitStack, name: str) -> Counters:
        counters = Counters(self._directory / name)
        cleanup.callback(counters.close)
        return counters

    def _strike_at_random(self) -> None:
        while self._strikes.total() < self.plan.strikes:
            if self._strikes and self._chance.random() < 0.25:
                time.sleep(self._chance.uniform(0, 0.04))  # until a strike, by chance
            else:
                self.wait_for_arrivals()
                time.sleep(self._chance.uniform(0, 0.05))  # until a strike, by chance
            self._strike()

    def wait_for_arrivals(self) -> None:
        """Wait until further messages have arrived in both directions."""
        before = [counters["count"] for counters in self._received]
        wait_until(
            lambda: all(c["count"] > n for c, n in zip(self._received, before, strict=True)),
            f"messages arrive again, both ways, after {self._strikes}; {self._counts()}\n{self.daemon.said()[-3000:]}",
            _RECOVERED_WITHIN,
        )

    def _counts(self) -> str:
        return f"sent {[c['count'] for c in self._sent]}, received {[c['count'] for c in self._received]}"

    def _strike(self) -> None:
        what = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        processes = self.processes()
        agents = [process for process in processes if not process.is_sender]
        senders = [process for process in processes if process.is_sender]
        if what == "sender" and not senders:
            what = "agent"
        if what in ("agent", "both agents") and not agents:
            return
        victims: list[Victim] = []
        match what:
            case "agent" | "sender":
                victims = [self._chance.choice(agents if what == "agent" else senders)]
            case "both agents":
                victims = agents
            case "everything":
                victims = self._chance.sample(processes, len(processes))
        self._strikes[what] += 1
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                self.killed(victim)
        if what in ("supervisor", "everything"):
            self._signals += 1
            self._deaths.update("ab")
            self.daemon.kill()
            self.daemon.start()

    def killed(self, victim: Victim) -> None:
        """Count it."""
        self._signals += 1
        agent = victim.name.removeprefix("r:").partition("/")[0]
        self._deaths.update([agent] if agent in ("a", "b") else "ab")  # it may not have its name yet

    def process(self, name: str) -> Victim:
        """Return the first process whose name begins so, as soon as it is there."""
        found: list[Victim] = []

        def there() -> bool:
            found[:] = [process for process in self.processes() if process.name.startswith(name)]
            return bool(found)

        wait_until(there, f"{name} is there")
        return found[0]

    def processes(self) -> list[Victim]:
        """Return the agents and senders that live."""
        agents = _children(self.daemon.pid)
        return agents + [sender for agent in agents for sender in _children(agent.pid, "/")]

    def _wait_for_the_rest(self) -> list[dict[str, Any]]:
        flows: list[dict[str, Any]] = []

        def arrived() -> bool:
            """True if all is there, and agents have shown their counts, which they do a little later."""
            flows[:] = [self.daemon.flow("r:a"), self.daemon.flow("r:b")]
            counts = zip(flows, self._sent, self._received, strict=True)
            return all(
                s["count"] == r["count"]
                and not flow["pending"]
                and (flow["delivered"] == s["count"] or not self.journals_stay)
                for flow, s, r in counts
            )

        with suppress(AssertionError):  # it is a finding, which `problems` words
            wait_until(arrived, "all arrives", _CLEANUPS)
        return flows

    def _direction(self, number: int, flow: dict[str, Any]) -> Direction:
        source, sink = self.plan.pair[number], self.plan.pair[1 - number]
        sent, received = self._sent[number], self._received[number]
        audit = {name: received[name] for name in storm_program.CELLS}
        repeats = self.plan.delivery == AT_LEAST_ONCE and sink == "queue"
        allowed = self._deaths["ab"[1 - number]] if repeats else 0
        return Direction(f"{source} → {sink}", sent["count"], sent["bytes"], audit, flow, allowed)


def _place(container: EngineContainer, where: str) -> str:
    """Return a queue's key or name; or a path, by the container's root."""
    return where if where.startswith(("0x", "/")) else str(container.rootfs / where)


@contextmanager
def _program(container: EngineContainer, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run storm_program.py in the container's ipc namespace; kill it at the end, if it has not ended."""
    command = [sys.executable, "-m", storm_program.__name__, *words]
    with subprocess.Popen(["nsenter", f"--target={container.pid}", "--ipc", "--", *command], cwd=_ROOT) as program:
        try:
            yield program
        finally:
            program.kill()


def _children(pid: int, suffix: str = "") -> list[Victim]:
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            with suppress(OSError):
                head, _, tail = Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")
                name, flags = head.partition("(")[2], int(tail.split()[6])
                if not flags & _PF_EXITING:  # its successor may be there before it is gone
                    found.append(Victim(int(child), name + (suffix if suffix not in name else "")))
    return found


@contextmanager
def containers(engine: str, directory: Path) -> Iterator[list[EngineContainer]]:
    """Yield two containers: `unshare` (namespaces alone) or `runc`."""
    with ExitStack() as cleanup:
        room = Room(directory) if engine == "runc" else None
        if room is not None:
            cleanup.callback(room.close)
        made: list[EngineContainer] = []
        for _ in range(2):
            container = RuncContainer(Program(), room, directory) if room else UnshareContainer(Program(), directory)
            cleanup.callback(container.delete)
            container.start()
            made.append(container)
        yield made


def plans(kills: int, messages: int, seed: int, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[Plan]:
    """Return every pair with each delivery: so many strikes and messages in all, at least."""
    combinations = [(pair, delivery) for delivery in DELIVERIES for pair in pairs]
    share = len(combinations)
    return [
        Plan(pair, delivery, -(-kills // share), -(-messages // share), seed + number)
        for number, (pair, delivery) in enumerate(combinations)
    ]


def run(plan: Plan, engine: str = "unshare", run_daemon: Callable[[Path, str], Nsbridged] = Nsbridged) -> Outcome:
    """Run one storm in two new containers."""
    with tempfile.TemporaryDirectory(prefix="nsb-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with containers(engine, Path(directory)) as pair:
            return Storm(plan, Path(directory), pair, run_daemon).run()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="SIGKILL everything that carries messages, and count the messages.")
    parser.add_argument("--kills", type=int, default=2000, help="strikes, in all")
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages at least, in all")
    parser.add_argument("--engine", choices=("unshare", "runc"), default="unshare")
    parser.add_argument("--pair", type=lambda text: tuple(text.split("-")), action="append", help="such as spool-queue")
    parser.add_argument("--report", type=Path, help="a Markdown file whose part after the mark is replaced")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    outcomes = []
    for plan in plans(options.kills, options.messages, options.seed, options.pair or PAIRS):
        outcomes.append(run(plan, options.engine))
        print(f"{plan}: {outcomes[-1].seconds:.0f} s", outcomes[-1].problems() or "kept", file=sys.stderr)
    text = report(outcomes, options.engine, options.seed)
    print(text)
    if options.report:
        report_file.put(options.report, "storm", f"{text}\n")
    return any(outcome.problems() for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
