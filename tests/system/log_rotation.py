"""The real logrotate against a log that nsbridge reads: late writers, stalled consumers, killed agents.

    python -m tests.system.log_rotation --lines 100000 [--scheme NAME…] [--seed N]

Each scheme is one configuration of logrotate. Nothing that has a readable name may be lost or repeated, whatever is
killed; without kills all that is lost must be counted exactly. (With bursts few files are kept: a thousand renames in
each rotation make the kernel lose events, and then nothing can be counted.)
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
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nsbridge.agents import linux
from tests.system.nsbridged import Nsbridged

_WINDOW = 64  # messages
_BATCH = 60  # lines at most that are written at once
_QUIET = 3.0  # seconds after which nothing more comes
_BURST = 40  # rotations during one stall, more than generations are held


@dataclass(frozen=True, slots=True)
class Scheme:
    """A configuration of logrotate, and what is done while it is used."""

    options: str
    kills: bool = False  # the source's agent is killed now and then
    bursts: bool = False  # so many rotations in one stall that not all generations can be held
    pauses: bool = False  # the program does not write while logrotate runs: what copytruncate loses has no name


SCHEMES = {
    "create": Scheme("create\nrotate 1000", kills=True),
    "nocreate": Scheme("nocreate\nrotate 1000", kills=True),
    "dateext": Scheme("create\nrotate 1000\ndateext\ndateformat -%Y%m%d-%s", kills=True),
    "dateext-inside": Scheme("create\nrotate 1000\ndateext\ndateformat -%Y%m%d-%s\nextension .log", kills=True),
    "sharedscripts": Scheme(
        "nocreate\nrotate 1000\nsharedscripts\npostrotate\ntouch {directory}/reopened\nendscript", kills=True
    ),
    "copytruncate": Scheme("copytruncate\nrotate 1000", pauses=True),
    "compress": Scheme("create\nrotate 60\ncompress", bursts=True),
    "delaycompress": Scheme("create\nrotate 60\ncompress\ndelaycompress", bursts=True),
    "rotate-2": Scheme("create\nrotate 2", bursts=True),
    "maxage": Scheme("create\nrotate 60\nmaxage 1\ncompress", bursts=True),
    "rotate-0": Scheme("create\nrotate 0"),
}


@dataclass(slots=True)
class Outcome:
    """The result of one scheme."""

    written: int = 0
    delivered: int = 0
    rotations: int = 0
    kills: int = 0
    lost: int = 0  # lines
    lost_files: int = 0
    missed: int = 0  # as status counts it
    faults: list[str] = field(default_factory=list)


Generation = tuple[int, tuple[int, int]]  # its number, and the file's inode and time of birth


class Program:
    """Writes numbered lines, and continues in the old file for a while after a rotation, as late writers do."""

    def __init__(self, log: Path, chance: random.Random) -> None:
        self.log = log
        self.lines: dict[Generation, list[bytes]] = defaultdict(list)  # by generation
        self.count = 0
        self._chance = chance
        self._generation = 0
        self._files: list[tuple[int, tuple[int, int], int]] = []  # number, file, descriptor; the last is current
        self._open()

    def _open(self) -> None:
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._generation += 1
        self._files.append((self._generation, linux.birth(fd, b""), fd))

    def write(self, count: int) -> None:
        """Write some lines at once, into the current file or into one that was rotated."""
        number, file, fd = self._files[-1] if self._chance.random() < 0.8 else self._chance.choice(self._files)
        lines = [b"%d" % (self.count + at) for at in range(count)]
        self.count += count
        self.lines[number, file] += lines
        os.write(fd, b"".join(line + b"\n" for line in lines))

    def reopen(self) -> None:
        """Switch to the new file after a rotation, if there was one, and close each old file some time later."""
        inode = self._files[-1][1][0]
        if not self.log.exists() or self.log.stat().st_ino != inode:
            self._open()
            self.write(1)  # so that no generation is empty
        while len(self._files) > 1 and self._chance.random() < 0.7:
            os.close(self._files.pop(0)[2])

    def close(self) -> None:
        """Write no more."""
        for _, _, fd in self._files:
            os.close(fd)


class Rotation:
    """One run of one scheme."""

    def __init__(self, scheme: Scheme, lines: int, directory: Path, seed: int) -> None:
        self._scheme = scheme
        self._wanted = lines
        self._chance = random.Random(seed)
        self._logs = directory / "logs"
        self._logs.mkdir()
        self._directory = directory
        self._got = directory / "got"
        self._outcome = Outcome()
        options = scheme.options.format(directory=directory)
        self._config = directory / "logrotate.conf"
        self._config.write_text(f"{self._logs}/app.log {{\nnotifempty\nmissingok\n{options}\n}}\n", encoding="ascii")
        self._daemon = Nsbridged(
            directory,
            f"[route.r]\nwindow = {{ messages = {_WINDOW} }}\n"
            f'[route.r.agent.a]\ncontainer = "host"\nlog = {{ out = "{self._logs}/app.log" }}\n'
            f'[route.r.agent.b]\ncontainer = "host"\nlog = {{ in = "{self._got}" }}\n',
        )

    def run(self) -> Outcome:
        """Write, rotate, stall, kill; then compare."""
        with self._daemon as daemon:
            daemon.wait_for("RUNNING")
            program = Program(self._logs / "app.log", self._chance)
            while program.count < self._wanted:
                self._turn(program)
            program.close()
            self._outcome.written = program.count
            self._settle(program)
            self._outcome.missed = daemon.flow("r:a")["missed"]
        self._compare(program)
        return self._outcome

    def _turn(self, program: Program) -> None:
        what = self._chance.random()
        if what < 0.02:
            self._stall(program)
        elif what < 0.03 and self._scheme.kills:
            self._kill()
        elif what < 0.08:
            self._rotate()
            for _ in range(self._chance.randrange(3)):
                program.write(1)  # before it hears of the rotation
            program.reopen()
        else:
            program.write(self._chance.randrange(1, _BATCH))

    def _stall(self, program: Program) -> None:
        """Stop the consumer for a while; the program and its rotations continue."""
        pid = self._daemon.agents()["r:b"]["pid"]
        if not pid:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            program.write(4 * _WINDOW)
            for _ in range(_BURST if self._scheme.bursts else self._chance.randrange(1, 6)):
                self._rotate()
                program.write(1)
                program.reopen()
                if self._scheme.kills and self._chance.random() < 0.1:
                    self._kill()
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _rotate(self) -> None:
        state = self._directory / "logrotate.state"
        if "dateext" in self._scheme.options:
            self._await_next_second()
        done = subprocess.run(
            ["logrotate", "--force", "--state", state, self._config], stderr=subprocess.PIPE, check=False
        )
        if done.returncode and b"already exists" not in done.stderr:
            self._outcome.faults.append(f"logrotate: {done.stderr!r}")
        self._outcome.rotations += 1

    def _await_next_second(self) -> None:
        """Wait: the names of this scheme have seconds in them; logrotate skips a name that is taken."""
        taken = f"{int(time.time())}"
        if any(taken in path.name for path in self._logs.iterdir()):
            time.sleep(1 - time.time() % 1)  # until the next second begins

    def _kill(self) -> None:
        pid = self._daemon.agents()["r:a"]["pid"]
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._outcome.kills += 1

    def _settle(self, program: Program) -> None:
        """Wait until all is delivered, or nothing more comes."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < _QUIET:
            flow = self._daemon.flow("r:a")
            if flow["delivered"] != last or flow["pending"]:
                last, since = flow["delivered"], time.monotonic()
            if flow["delivered"] == program.count and not flow["pending"]:
                return
            time.sleep(0.05)  # polls

    def _compare(self, program: Program) -> None:
        out = self._outcome
        got = self._got.read_bytes().splitlines()
        out.delivered = len(got)
        places = {line: at for at, line in enumerate(got)}
        if len(places) != len(got):
            out.faults.append(f"{len(got) - len(places)} lines are repeated")
        named = {file_of(path) for path in self._logs.iterdir() if path.suffix != ".gz"}
        generations = self._contents(program)
        for (number, file), lines in generations.items():
            lost = [line for line in lines if line not in places]
            came = [places[line] for line in lines if line in places]
            if came != sorted(came):
                out.faults.append(f"generation {number} is out of order")
            if lost:
                out.lost += len(lost)
                out.lost_files += 1
            if lost and file in named:
                out.faults.append(f"generation {number}: {len(lost)} lines are lost, and it has a readable name")
        if not self._scheme.kills and out.lost_files != out.missed:
            out.faults.append(f"{out.lost_files} files are missing, and {out.missed} were counted")

    def _contents(self, program: Program) -> dict[Generation, list[bytes]]:
        if not self._scheme.pauses:
            return program.lines
        return {(0, file_of(self._logs / "app.log")): [line for lines in program.lines.values() for line in lines]}


def file_of(path: Path) -> tuple[int, int]:
    """Return inode and time of birth: a deleted file's inode is used again."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return linux.birth(fd, b"")
    finally:
        os.close(fd)


def run(name: str, lines: int, seed: int) -> Outcome:
    """Run one scheme in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        return Rotation(SCHEMES[name], lines, Path(directory), seed).run()


def main() -> int:
    """Run what the command line asks for; 1 if anything was lost, repeated or counted wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000, help="of each scheme (default: %(default)s)")
    parser.add_argument("--scheme", action="append", choices=sorted(SCHEMES), help="default: all")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    failed = False
    print(f"seed {args.seed}")
    for name in args.scheme or SCHEMES:
        begun = time.monotonic()
        outcome = run(name, args.lines, args.seed)
        failed = failed or bool(outcome.faults)
        print(f"{name}: {outcome}, {time.monotonic() - begun:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
