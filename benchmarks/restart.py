"""From SIGKILL to work again: nsbridge's agents beside runit's and supervisord's children, in one run.

    python -m benchmarks.restart [--kills 100] [--report docs/restart.md]

Of an agent it is measured until a message that was sent right after the kill has arrived on the other side: the death
is noticed, the agent forked, inside its namespace, its journal settled with the other side, the message taken and
handed over. Of runit and supervisord it is measured until the replacement's first command has run, which is less. All
are interleaved, and runit's and supervisord's children live longer than the second below which both wait. backlog.py
measures the same while very many files wait in a spool.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import sysv_ipc

from benchmarks import backlog
from nsbridge.agents import linux
from tests import report_file
from tests.system.engines import Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, tool, wait_readable

FILES = ("spool", "log", "file")
_LIVES = 1.1  # seconds: a child that lived for less than one is not started at once by runit and supervisord
_LOOK = 0.0002  # seconds between looks for a file


class Line(NamedTuple):
    """A message's way: `send` puts it in, `arrives` says whether it is out."""

    send: Callable[[bytes], None]
    arrives: Callable[[bytes], bool]


class Times(NamedTuple):
    """Seconds, of every kill."""

    who: str
    until: str
    taken: Sequence[float]


def measure(kills: int) -> list[Times]:
    """Kill each so many times."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="nsb-restart-", dir="/run") as name, ExitStack() as stack:
        base = Path(name)
        web, legacy = (stack.enter_context(_container(base)) for _ in range(2))
        daemon = stack.enter_context(Nsbridged(base, "".join(_route(kind, web, legacy) for kind in FILES)))
        daemon.wait_for("RUNNING")
        _join_ipc(legacy.pid)
        lines = {kind: _lines(kind, web.rootfs / "srv") for kind in FILES}
        children = {
            "runit": stack.enter_context(_runit(base)),
            "supervisord": stack.enter_context(_supervisord(base)),
        }
        for number in range(kills):
            for agent, seconds in _agents(daemon, lines, number):
                taken.setdefault(agent, []).append(seconds)
            for who, child in children.items():
                taken.setdefault(who, []).append(child())
            time.sleep(_LIVES)
    return [Times(who, "a message" if who not in children else "a command", times) for who, times in taken.items()]


@contextmanager
def _container(base: Path) -> Iterator[UnshareContainer]:
    container = UnshareContainer(Program(), base)
    try:
        container.start()
        yield container
    finally:
        container.delete()


def _route(kind: str, web: UnshareContainer, legacy: UnshareContainer) -> str:
    key = 16 * (FILES.index(kind) + 1)
    return (
        f'[route.{kind}.agent.{kind}]\ncontainer = "{web.spec}"\n'
        f'{kind} = {{ out = "/srv/{kind}-out", in = "/srv/{kind}-in" }}\n'
        f'[route.{kind}.agent.queue]\ncontainer = "{legacy.spec}"\n'
        f"queue = {{ in = {{ key = {key}, type = 1 }}, out = {{ key = {key + 1} }}, create = true }}\n"
    )


def _join_ipc(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY)
    linux.setns(fd, linux.CLONE_NEWIPC)
    os.close(fd)


def _lines(kind: str, srv: Path) -> tuple[Line, Line]:
    """Return the lines from the files to the queue, and back."""
    key = 16 * (FILES.index(kind) + 1)
    to_queue, from_queue = (sysv_ipc.MessageQueue(key + which, max_message_size=8192) for which in (0, 1))
    out, into = srv / f"{kind}-out", srv / f"{kind}-in"
    writers: dict[str, Callable[[bytes], None]] = {
        "spool": lambda body: _put(out, body),
        "log": lambda body: _append(out, body + b"\n"),
        "file": lambda body: _rewrite(out, body),
    }
    readers: dict[str, Callable[[bytes], bool]] = {
        "spool": lambda body: _is_in_spool(into, body),
        "log": lambda body: into.read_bytes().endswith(body + b"\n"),
        "file": lambda body: into.read_bytes() == body,
    }
    return (
        Line(writers[kind], lambda body: to_queue.receive()[0] == body),
        Line(from_queue.send, lambda body: _look_until(lambda: readers[kind](body))),
    )


def _put(directory: Path, body: bytes) -> None:
    (directory / ".new").write_bytes(body)
    (directory / ".new").rename(directory / body.decode())


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _rewrite(path: Path, body: bytes) -> None:
    path.write_bytes(body)


def _is_in_spool(directory: Path, body: bytes) -> bool:
    found = [path for path in directory.iterdir() if not path.name.startswith(".")]
    for path in found:
        if path.read_bytes() == body:
            path.unlink()
            return True
    return False


def _look_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "the message does not arrive"
        time.sleep(_LOOK)
    return True


def _agents(daemon: Nsbridged, lines: Mapping[str, tuple[Line, Line]], number: int) -> Iterator[tuple[str, float]]:
    """Kill one agent after the other, and send a message through it; one direction in even rounds, the other in odd."""
    for victim in ("spool:spool", "log:log", "file:file", "spool:queue"):
        daemon.wait_for("RUNNING")
        pid = daemon.agents()[victim]["pid"]
        line = lines[victim.partition(":")[0]][number % 2]
        body = f"{victim.replace(':', '-')}-{number}".encode()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        line.send(body)
        assert line.arrives(body), f"another message than {body!r} came"
        yield f"nsbridge, {victim.partition(':')[2]}", time.monotonic() - began


class Child:
    """Child of the other supervisor: a shell that reports its pid through a pipe when it has started."""

    def __init__(self, directory: Path) -> None:
        self._pipe = directory / "pipe"
        os.mkfifo(self._pipe)
        self._fd = os.open(self._pipe, os.O_RDWR)
        self.script = directory / "run"
        self.script.write_text(f"#!/bin/sh\necho $$ >{self._pipe}\nexec sleep 100000\n", encoding="ascii")
        self.script.chmod(0o755)
        self._pid = 0

    def started(self) -> None:
        """Wait until it runs (again)."""
        wait_readable(self._fd, "a child is started", LIMIT)
        self._pid = int(os.read(self._fd, 100).split()[-1])

    def __call__(self) -> float:
        """Kill it; seconds until the next one runs."""
        began = time.monotonic()
        os.kill(self._pid, signal.SIGKILL)
        self.started()
        return time.monotonic() - began


@contextmanager
def _served(command: Sequence[str | Path], child: Child) -> Iterator[Child]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as supervisor:
        try:
            child.started()
            yield child
        finally:
            supervisor.terminate()


@contextmanager
def _runit(base: Path) -> Iterator[Child]:
    service = base / "runit"
    service.mkdir()
    with _served([tool("runsv"), service], Child(service)) as child:
        yield child


@contextmanager
def _supervisord(base: Path) -> Iterator[Child]:
    directory = base / "supervisord"
    directory.mkdir()
    child = Child(directory)
    config = directory / "conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nuser=root\nlogfile={directory}/log\npidfile={directory}/pid\n"
        f"[program:child]\ncommand={child.script}\n",
        encoding="ascii",
    )
    with _served([Path(sys.executable).with_name("supervisord"), "-c", config], child):
        yield child


def with_backlog(kills: int) -> tuple[list[Times], str]:
    """Measure a spool in which very many files wait; return the lines of the table, and what follows it."""
    outcome = backlog.measure(kills)
    who, until = f"nsbridge, spool, {backlog.WAITING:,} files waiting", "a message that the killed agent had not taken"
    lines = [Times(who, until, outcome.flowing), Times(f"{who}, window full", until, outcome.resting)]
    return lines, backlog.report(outcome)


def report(times: Sequence[Times], load: float) -> str:
    """Return the report in Markdown."""
    runit = statistics.median(next(t.taken for t in times if t.who == "runit"))
    where = f"{os.cpu_count()} cores, Linux {os.uname().release}, Python {sys.version.split()[0]}"
    is_first = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
    how = " All of it ran before other work of the machine (`chrt -r 10`)." if is_first else ""
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {where}; load average before: {load:.1f}.{how}",
        "",
        "| killed | measured until | kills | median | 95 % | most | median / runit's |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, until, taken in times:
        median, ordered = statistics.median(taken), sorted(taken)
        shown = " | ".join(
            f"{value * 1e3:.1f} ms" for value in (median, ordered[int(0.95 * (len(taken) - 1))], ordered[-1])
        )
        lines.append(f"| {who} | {until} | {len(taken)} | {shown} | {median / runit:.2f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--backlog-kills", type=int, default=20)
    parser.add_argument("--report", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    load = os.getloadavg()[0]
    times = measure(options.kills)
    more, storm = with_backlog(options.backlog_kills)
    text = f"{report([*times, *more], load)}\n{storm}"
    print(text)
    if options.report:
        report_file.put(options.report, "restart", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
