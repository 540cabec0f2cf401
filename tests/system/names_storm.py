"""Files that keep their names, under kills: two routes share `out`, and one directory is the `in` of both.

Names come again and again, so messages wait for names that their reader, or a stranger, still has. Some files are too
large, and go to `error`. An agent that starts finds files by a scan, in the order of their names; so the order of
messages is not compared here (storm.py does). `python -m tests.system.names_storm --kills 600` is the long form
(`make names-storm`).
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inotify_simple import INotify, flags

from tests.system.engines import IDLE, Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

ROUTES = """
[route.xml.agent.from]
container = "{one}"
spool = {{ out = "/srv/out", match = ["*.xml"], error = "/srv/error", max_message = 2000 }}
[route.xml.agent.to]
container = "{two}"
spool = {{ in = "/srv/in", name = "original" }}
[route.rest.agent.from]
container = "{one}"
spool = {{ out = "/srv/out", ignore = ["*.xml"], error = "/srv/error", max_message = 2000 }}
[route.rest.agent.to]
container = "{two}"
spool = {{ in = "/srv/in", name = "original", suffix = ".hl7" }}
"""
AGENTS = ("xml:from", "xml:to", "rest:from", "rest:to")
VICTIMS = (*AGENTS, "all agents", "supervisor", "everything")
_STEMS = (b"a", b"b c", b"-rf", b"\xff\xfe", "ä".encode(), b"new\nline", b"$(id)", b"<b>", b"x" * 247)
NAMES = {"xml": [stem + b".xml" for stem in _STEMS], "rest": [*_STEMS, b"done.hl7"]}
_WITHIN = 60.0  # seconds for what follows a kill
_STRANGER = b"a stranger's"
_LARGE = 2001  # bytes


def kept(route: str, name: bytes) -> bytes:
    """Return the name that a file must have in `in`."""
    return name if route == "xml" or name.endswith(b".hl7") else name + b".hl7"


class Feeder(threading.Thread):
    """The program of one route's files: puts each whole under a free name, and remembers how many."""

    def __init__(self, out: bytes, route: str, seed: int) -> None:
        super().__init__(name=f"feeder of {route}")
        self._out, self._route = out, route
        self._chance = random.Random(seed)
        self.sent = self.large = 0
        self.stops = threading.Event()

    def run(self) -> None:
        """Put files until `stops`."""
        while not self.stops.is_set():
            name = self._chance.choice(NAMES[self._route])
            if os.path.lexists(self._out + b"/" + name):
                self.stops.wait(0.0005)  # a pace: most names are still there
            elif self._chance.random() < 0.02:
                self.large += 1
                ending = b".xml" if self._route == "xml" else b".bin"
                self._put(b"large %d" % self.large + ending, bytes(_LARGE))
            else:
                self._put(name, b"%d %s %s" % (self.sent + 1, name, b"x" * self._chance.randrange(500)))
                self.sent += 1

    def _put(self, name: bytes, body: bytes) -> None:
        part = self._out + b"/." + self._route.encode()
        with open(part, "wb") as file:
            file.write(body)
        os.rename(part, self._out + b"/" + name)


@dataclass
class Audit:
    """The fate of one route's messages."""

    seen: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Return how many different messages have come."""
        return len(self.seen)

    def see(self, route: str, name: bytes, body: bytes) -> None:
        """Note a file that appeared, and what is wrong with it."""
        number, _, rest = body.partition(b" ")
        if not number.isdigit() or int(number) in self.seen:
            self.problems.append(f"{route}: {number!r} is repeated or damaged, as {name!r}")
        elif not any(kept(route, sent) == name and rest.startswith(sent + b" ") for sent in NAMES[route]):
            self.problems.append(f"{route}: message {number!r} has the name {name!r}: {body[:80]!r}")
        else:
            self.seen.add(int(number))


class Reader(threading.Thread):
    """The program that reads `in` in the order in which files appear, and keeps each for a while.

    Sometimes a stranger has the name next, with a file that must stay as it is.
    """

    def __init__(self, directory: bytes, seed: int) -> None:
        super().__init__(name="reader")
        self._directory = directory
        self._chance = random.Random(seed)
        self._inotify = INotify()
        self._inotify.add_watch(directory, flags.MOVED_TO)
        self._due: list[tuple[float, bytes, bool]] = []
        self.audits = {route: Audit() for route in NAMES}
        self.strangers = 0
        self.stops = threading.Event()

    def run(self) -> None:
        """Read until `stops`, and everything that is there then."""
        while not self.stops.is_set() or self._due:
            self._read(0.001 if self._due else 0.05)
            while self._due and self._due[0][0] <= time.monotonic():
                _, name, is_stranger = heapq.heappop(self._due)
                self._take(name, is_stranger)
        self._inotify.close()

    def received(self) -> int:
        """Return how many messages have come, of both routes."""
        return sum(audit.received for audit in self.audits.values())

    def _read(self, timeout: float) -> None:
        for name in self._appeared(timeout):
            if name.startswith(b"."):
                continue
            with open(self._directory + b"/" + name, "rb") as file:
                body = file.read()
            route = "rest" if name.endswith(b".hl7") else "xml"
            self.audits[route].see(route, name, body)
            self._later(name, False)

    def _appeared(self, timeout: float) -> list[bytes]:
        events = self._inotify.read(timeout=int(1000 * timeout))
        return [os.fsencode(event.name) for event in events]

    def _later(self, name: bytes, is_stranger: bool) -> None:
        heapq.heappush(self._due, (time.monotonic() + self._chance.uniform(0, 0.01), name, is_stranger))

    def _take(self, name: bytes, is_stranger: bool) -> None:
        path = self._directory + b"/" + name
        if is_stranger:
            with open(path, "rb") as file:
                if file.read() != _STRANGER:
                    self.audits["xml"].problems.append(f"the stranger's file {name!r} was overwritten")
        os.unlink(path)
        if not is_stranger and self._chance.random() < 0.1:
            with suppress(FileExistsError):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, _STRANGER)
                os.close(fd)
                self.strangers += 1
                self._later(name, True)


@dataclass
class Outcome:
    """Results of one storm."""

    sent: int
    strangers: int
    large: int
    strikes: Counter[str]
    signals: int
    waits: int  # messages that waited for their name, as the log shows
    seconds: float
    problems: list[str]

    def __str__(self) -> str:
        found = "; ".join(self.problems) or "0 lost, 0 repeated, every name right"
        return (
            f"{self.strikes.total()} strikes ({dict(self.strikes)}) with {self.signals} SIGKILLs in "
            f"{self.seconds:.0f} s: {self.sent} messages, {self.large} refused files, {self.strangers} files of "
            f"strangers, seen waiting {self.waits} times: {found}"
        )


class Storm:
    """One daemon, two containers, two feeders and the reader."""

    def __init__(self, directory: Path, containers: Sequence[Any], seed: int) -> None:
        self._chance = random.Random(seed)
        one, two = containers
        self._srv = Path(one.rootfs) / "srv"
        for path in (self._srv / "out", self._srv / "error", Path(two.rootfs) / "srv" / "in"):
            path.mkdir(parents=True)
        self._feeders = {
            route: Feeder(os.fsencode(self._srv / "out"), route, seed + number) for number, route in enumerate(NAMES)
        }
        self._reader = Reader(os.fsencode(Path(two.rootfs) / "srv" / "in"), seed)
        self._daemon = Nsbridged(directory, ROUTES.format(one=one.spec, two=two.spec))
        self._strikes: Counter[str] = Counter()
        self._signals = self._waits = 0

    def run(self, strikes: int) -> Outcome:
        """Strike so often, then let everything arrive, then compare."""
        begun = time.monotonic()
        with ExitStack() as cleanup:
            cleanup.enter_context(self._daemon)
            self._daemon.wait_for("RUNNING")
            threads: list[Feeder | Reader] = [self._reader, *self._feeders.values()]
            for thread in threads:
                thread.start()
                cleanup.callback(thread.stops.set)
            while self._strikes.total() < strikes:
                self._wait_for_arrivals()
                time.sleep(self._chance.uniform(0, 0.03))  # until a strike, by chance
                self._strike()
            self._wait_for_arrivals()
            for feeder in self._feeders.values():
                feeder.stops.set()
                feeder.join()
            problems = self._settle()
        self._reader.join()
        for route, audit in self._reader.audits.items():
            problems += audit.problems[:5]
            if lost := set(range(1, self._feeders[route].sent + 1)) - audit.seen:
                problems.append(f"{route}: {len(lost)} lost, such as {sorted(lost)[:5]}")
        problems += self._faults_of_error()
        return Outcome(
            sum(feeder.sent for feeder in self._feeders.values()),
            self._reader.strangers,
            sum(feeder.large for feeder in self._feeders.values()),
            self._strikes,
            self._signals,
            self._waits,
            time.monotonic() - begun,
            problems,
        )

    def _wait_for_arrivals(self) -> None:
        """Wait until messages of both routes have arrived again."""
        audits = self._reader.audits.values()
        before = [audit.received for audit in audits]
        wait_until(
            lambda: all(audit.received > n for audit, n in zip(audits, before, strict=True)) or self._has_failed(),
            f"messages arrive again after {self._strikes}; {self._daemon.said()[-2000:]}",
            _WITHIN,
        )

    def _has_failed(self) -> bool:
        return any(audit.problems for audit in self._reader.audits.values())

    def _settle(self) -> list[str]:
        """Wait until everything has arrived; return what the status then says that is wrong."""
        sent = sum(feeder.sent for feeder in self._feeders.values())

        def arrived() -> bool:
            left = [name for name in os.listdir(self._srv / "out") if not name.startswith(".")]
            return self._reader.received() >= sent and not left

        with suppress(AssertionError):  # it is a finding
            wait_until(arrived, "all arrives", _WITHIN)
        problems = []
        for route, feeder in self._feeders.items():

            def is_right(route: str = route, feeder: Feeder = feeder) -> bool:
                flow = self._daemon.flow(f"{route}:from")
                facts = [flow[key] for key in ("delivered", "pending", "refused", "refused_now", "dead", "in_doubt")]
                return facts == [feeder.sent, 0, feeder.large, 0, 0, 0]

            try:
                wait_until(is_right, "agents show their counts", 2.0)
            except AssertionError:
                flow = self._daemon.flow(f"{route}:from")
                problems.append(f"{route}: {feeder.sent} sent, {feeder.large} too large, and status has {flow}")
        wrong = [line for line in self._daemon.said().splitlines() if "internal error" in line or "damaged" in line]
        return problems + wrong[:5]

    def _faults_of_error(self) -> list[str]:
        """Compare the error directory with the files that were too large: each once, with its reason."""
        found = {name for name in os.listdir(self._srv / "error") if not name.startswith(".")}
        expected = {
            f"large {number}{'.xml' if route == 'xml' else '.bin'}"
            for route, feeder in self._feeders.items()
            for number in range(1, feeder.large + 1)
        }
        expected |= {f"{name}.reason" for name in expected}
        return [f"error has {sorted(found ^ expected)[:5]} too many or too few"] if found != expected else []

    def _strike(self) -> None:
        what = self._chance.choice(VICTIMS)
        agents = self._daemon.agents()
        self._waits += sum("already exists" in agent["detail"] for agent in agents.values())
        names = AGENTS if what in ("all agents", "everything") else (what,)
        for pid in [agents[name]["pid"] for name in names if name in agents]:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self._signals += 1
        if what in ("supervisor", "everything"):
            self._daemon.kill()
            self._signals += 1
            self._daemon.start()
        self._strikes[what] += 1


@contextmanager
def in_containers(directory: Path) -> Iterator[list[UnshareContainer]]:
    """Yield two containers that only idle."""
    with ExitStack() as cleanup:
        made = [UnshareContainer(Program(IDLE), directory) for _ in range(2)]
        for container in made:
            cleanup.callback(container.delete)
            container.start()
        yield made


def run(strikes: int, seed: int) -> Outcome:
    """Run one storm in two new containers."""
    with tempfile.TemporaryDirectory(prefix="nsb-names-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        with in_containers(Path(name)) as made:
            return Storm(Path(name), made, seed).run(strikes)


def main() -> int:
    """Run the long form; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=600, help="strikes, in all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    outcome = run(options.kills, options.seed)
    print(outcome)
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
