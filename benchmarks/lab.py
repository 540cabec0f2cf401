"""The place of a benchmark: the C programs, two containers (namespaces alone), a daemon between them, CPU and memory.

Everything is below one directory of a tmpfs, so no disk is measured, and gone at the end.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.system.engines import EngineContainer, Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, run, tool

_HERE = Path(__file__).parent
_SOURCES = sorted([*(_HERE / "peers").glob("*.c"), *(_HERE / "loads").glob("*.c")])
_LOAD_LIMIT = 300.0  # seconds for one measurement; longer is a standstill


class Span(NamedTuple):
    """When a load began and ended, in seconds of the monotonic clock."""

    begun: float
    ended: float


class Lab:
    """The C programs, and a directory for what runs. A context manager."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        base = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nsb-", dir="/dev/shm"))  # a tmpfs
        self.directory = Path(base)
        self.directory.chmod(0o711)
        self._runs = 0
        for source in _SOURCES:
            run([tool("cc"), "-O2", "-Wall", "-static", source, "-o", self.program(source.stem)])

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._cleanup.close()

    def program(self, name: str) -> Path:
        """Return the path of a C program."""
        return self.directory / name

    def run_directory(self) -> Path:
        """Make a new directory for one run, and return it."""
        self._runs += 1
        made = self.directory / f"run-{self._runs}"
        made.mkdir()
        return made

    @contextmanager
    def containers(self) -> Iterator[tuple[EngineContainer, EngineContainer]]:
        """Yield two containers, each with mnt and ipc namespaces of its own and a tmpfs at /srv."""
        where = self.run_directory()
        with ExitStack() as cleanup:
            made = []
            for _ in range(2):
                container = UnshareContainer(Program(), where)
                cleanup.callback(container.delete)
                container.start()
                made.append(container)
            yield made[0], made[1]

    @contextmanager
    def daemon(self, routes: str, evidence: str = "auto") -> Iterator[Nsbridged]:
        """Run nsbridged with these routes, and all of its agents at work."""
        with Nsbridged(self.run_directory(), routes, f'evidence = "{evidence}"') as daemon:
            daemon.wait_for("RUNNING")
            yield daemon

    def load(self, container: EngineContainer, *words: object) -> Load:
        """Start loads/load.c in a container; return when it is ready."""
        return Load(inside(container, self.program("load"), *words))


class Load:
    """A running load."""

    def __init__(self, argv: list[str]) -> None:
        # Unbuffered: what is read ahead of the first line would be lost to communicate().
        self._process = subprocess.Popen(argv, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.span()

    def kill(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.communicate()

    def span(self) -> Span:
        """Wait for its end; raise RuntimeError with its output if a message was missing, repeated or damaged."""
        try:
            out, err = self._process.communicate(timeout=_LOAD_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, err = self._process.communicate()
            err += b"not everything has arrived"
        if self._process.returncode:
            raise RuntimeError(f"{self._process.args!r}: {err.decode('utf-8', 'replace')}")
        begun, ended = map(float, out.split())
        return Span(begun, ended)


def inside(container: EngineContainer, *words: object) -> list[str]:
    """Return the command that runs in a container's mnt and ipc namespaces."""
    return ["nsenter", f"--target={container.pid}", "--mount", "--ipc", "--", *map(str, words)]


@contextmanager
def background(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and kill it at the end."""
    with subprocess.Popen(argv) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(LIMIT)


def tree(pid: int) -> list[int]:
    """Return the process and all below it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the user and system time used so far, in s, by the processes' CPU clocks (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # 2: CPUCLOCK_SCHED, to the nanosecond


def own_memory(pid: int) -> float:
    """Return the bytes that would be free if the process ended (USS)."""
    memory: int = psutil.Process(pid).memory_full_info().uss
    return float(memory)
