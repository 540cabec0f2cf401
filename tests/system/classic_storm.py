"""The classic program, one queue and two types, under kills: questions from a log, answers into a log.

A stranger sends into the same queue and receives from it, so nothing in the queue says who sent last.
`python -m tests.system.classic_storm --kills 1000 --questions 100000` is the long form (`make classic-storm`).
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.engines import IDLE, Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

# Answers each message of type 1 with one of type 2. Prints what it received.
_PROGRAM = """
import sys, sysv_ipc
queue = sysv_ipc.MessageQueue(0x51, sysv_ipc.IPC_CREAT, 0o666, 1 << 16)
with open(sys.argv[1], "ab", buffering=0) as printed:
    while True:
        body, _ = queue.receive(True, 1)
        printed.write(body + b"\\n")
        queue.send(body, True, 2)
"""
_STRANGER = """
import sysv_ipc, time
queue = sysv_ipc.MessageQueue(0x51, sysv_ipc.IPC_CREAT, 0o666, 1 << 16)
while True:
    queue.send(b"mine", True, 9)
    queue.receive(True, 9)
    time.sleep(0.0005)  # a pace
"""
_ROUTE = """
[route.r]
[route.r.agent.files]
container = "{web}"
log = {{ out = "/srv/questions", in = "/srv/answers" }}
[route.r.agent.queue]
container = "{legacy}"
queue = {{ in = {{ key = 0x51, type = 1 }}, out = {{ key = 0x51, type = 2 }}, create = true }}
"""
_VICTIMS = ("queue", "files", "both agents", "supervisor", "everything")
_WITHIN = 60.0  # seconds for what follows a kill
_LONGEST = 300  # bytes of a question's filling


@dataclass(slots=True)
class Outcome:
    """The fate of the questions."""

    questions: int
    received: list[bytes]
    answers: list[bytes]
    in_doubt: int
    evidence: str
    strikes: Counter[str] = field(default_factory=Counter)
    log: str = ""

    def problems(self) -> list[str]:
        """Return one line for each kind of fault."""
        found = []
        for what, lines in (("questions", self.received), ("answers", self.answers)):
            numbers = [int(line.split(b" ", 1)[0]) for line in lines]
            lost = self.questions - len(set(numbers))
            repeated = len(numbers) - len(set(numbers))
            if lost or repeated or numbers != sorted(numbers):
                found.append(f"{what}: {lost} lost, {repeated} repeated, in order: {numbers == sorted(numbers)}")
        if self.in_doubt:
            found.append(f"{self.in_doubt} in doubt")
        return found


class Storm:
    """One daemon, two containers, the program and the stranger."""

    def __init__(self, directory: Path, web: Any, legacy: Any, seed: int, more: str = "") -> None:
        self._chance = random.Random(seed)
        self._web, self._legacy = web, legacy
        self._questions, self._answers = (web.rootfs / "srv" / name for name in ("questions", "answers"))
        self._printed = directory / "printed"
        self.daemon = Nsbridged(directory, _ROUTE.format(web=web.spec, legacy=legacy.spec), more)

    def run(self, questions: int, strikes: int, rate: int, kinds: tuple[str, ...] = _VICTIMS) -> Outcome:
        """Ask so many questions, about `rate` a second (0: at full speed), and strike so often meanwhile."""
        struck: Counter[str] = Counter()
        self._printed.touch()
        with ExitStack() as cleanup:
            cleanup.enter_context(self._program(_PROGRAM, str(self._printed)))
            cleanup.enter_context(self._program(_STRANGER))
            cleanup.enter_context(self.daemon)
            self.daemon.wait_for("RUNNING")
            evidence = self.daemon.agents()["r:queue"]["evidence"]
            asked = 0
            with self._questions.open("ab", buffering=0) as log:
                while asked < questions:
                    portion = min(questions - asked, max(1, questions // max(1, strikes)))
                    log.write(b"".join(self._question(asked + number) for number in range(1, portion + 1)))
                    asked += portion
                    if rate:
                        time.sleep(portion / rate * self._chance.random())  # a pace
                    if struck.total() < strikes:
                        self._wait_for_some()
                        struck[self._strike(kinds)] += 1
            self._wait_for_all(questions)
            flows = [self.daemon.flow(agent) for agent in ("r:files", "r:queue")]
        return Outcome(
            questions,
            self._printed.read_bytes().splitlines(),
            self._answers.read_bytes().splitlines(),
            sum(flow["in_doubt"] for flow in flows),
            evidence,
            struck,
            self.daemon.said(),
        )

    def _question(self, number: int) -> bytes:
        return b"%d %s\n" % (number, b"x" * self._chance.randrange(_LONGEST))

    @contextmanager
    def _program(self, text: str, *words: str) -> Iterator[None]:
        command = ["nsenter", f"--target={self._legacy.pid}", "--ipc", "--", sys.executable, "-c", text, *words]
        with subprocess.Popen(command) as program:
            try:
                yield
            finally:
                program.kill()

    def _answered(self) -> int:
        return self._answers.stat().st_size if self._answers.exists() else 0

    def _wait_for_some(self) -> None:
        """Wait until messages flow or all are answered, and a moment longer: the strike falls anywhere."""
        before, asked = self._answered(), self._questions.stat().st_size
        wait_until(
            lambda: before < self._answered() or self._answered() == asked, self._shown("answers arrive"), _WITHIN
        )
        time.sleep(self._chance.uniform(0, 0.02))  # the time of the strike

    def _wait_for_all(self, questions: int) -> None:
        def have_come() -> bool:
            return bool(self._answers.exists() and self._answers.read_bytes().count(b"\n") >= questions)

        wait_until(have_come, self._shown("all answers arrive"), _WITHIN)
        wait_until(lambda: self.daemon.flow("r:files")["pending"] == 0, "nothing is pending", _WITHIN)

    def _shown(self, what: str) -> str:
        return f"{what}; log:\n{self.daemon.said()[-2000:]}"

    def _strike(self, kinds: tuple[str, ...]) -> str:
        what = self._chance.choice(kinds)
        pids = {name: agent["pid"] for name, agent in self.daemon.agents().items()}
        victims: dict[str, Callable[[], list[int | None]]] = {
            "queue": lambda: [pids["r:queue"]],
            "files": lambda: [pids["r:files"]],
            "both agents": lambda: list(pids.values()),
            "supervisor": list,
            "everything": lambda: [self.daemon.pid, *pids.values()],
        }
        for pid in victims[what]():
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if what in ("supervisor", "everything"):
            self.daemon.kill()
            self.daemon.start()
        return what


def main() -> int:
    """Run the long form; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--everything", action="store_true", help="only kill everything at once")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as cleanup:
        directory = Path(name)
        web, legacy = (UnshareContainer(Program(IDLE), directory) for _ in range(2))
        for container in (web, legacy):
            cleanup.callback(container.delete)
            container.start()
        storm = Storm(directory, web, legacy, options.seed)
        kinds = ("everything",) if options.everything else _VICTIMS
        outcome = storm.run(options.questions, options.kills, options.rate, kinds)
    print(f"{outcome.questions} questions, {dict(outcome.strikes)}, evidence: {outcome.evidence}")
    print("\n".join(outcome.problems()) or "none lost, none repeated, none out of order, none in doubt")
    return bool(outcome.problems())


if __name__ == "__main__":
    sys.exit(main())
