"""Alternatives that one could set up today: a directory that both containers mount, or NATS. They make other promises.

Also PyPI's supervisor, whose `status` is compared with ours.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.flows import ECHO_SIZE, Figures, echo_times, status_time, wait_until_it_watches
from benchmarks.lab import Lab, Load, background, cpu_seconds, inside
from tests.system.engines import EngineContainer
from tests.system.room import LIMIT, run, tool, wait_until

_BIN = Path(sys.executable).parent
_SHARED = "/srv/shared"
_SUPERVISORD = """
[unix_http_server]
file={where}/socket
[supervisord]
nodaemon=true
silent=true
user=root
logfile={where}/log
pidfile={where}/pid
[supervisorctl]
serverurl=unix://{where}/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:web]
command=sleep 1000
[program:legacy]
command=sleep 1000
"""
_NATS_PROGRAM = Path(__file__).parent / "peers" / "nats_program.py"


def shared_echo(lab: Lab, count: int) -> Figures:
    """Run the echo through two files of the shared directory; both programs speak files."""
    with _sharing(lab) as (client, server):
        words = inside(server, lab.program("file_echo_server"), _SHARED)
        with background(words) as program:
            wait_until_it_watches(program)
            return echo_times(inside(client, lab.program("mnt_echo_client"), _SHARED, count, ECHO_SIZE), count, [])


def shared_one_way(lab: Lab, kind: str, count: int, size: int) -> Figures:
    """Run one program that writes (`log` or `spool`) and one that reads, in the shared directory."""
    with _sharing(lab) as (a, b):
        if kind == "spool":
            for name in ("flow", "flow.tmp"):
                (a.rootfs / _SHARED.lstrip("/") / name).mkdir()
        words = (kind, f"{_SHARED}/flow", count, size)
        drain = lab.load(b, "drain", *words)
        return _rate(lab.load(a, "feed", *words), drain, count)


@contextmanager
def _sharing(lab: Lab) -> Iterator[tuple[EngineContainer, EngineContainer]]:
    shared = lab.run_directory()
    with lab.containers() as containers:
        for container in containers:
            (container.rootfs / _SHARED.lstrip("/")).mkdir()
            container.exec(["mount", "--bind", str(shared), _SHARED])
        yield containers


def supervisorctl_status(lab: Lab, count: int) -> Figures:
    """Measure `supervisorctl status` of two programs, as a process."""
    where = lab.run_directory()
    config = where / "supervisord.conf"
    config.write_text(_SUPERVISORD.format(where=where), encoding="utf-8")
    command: list[str | Path] = [_BIN / "supervisorctl", "-c", config, "status"]
    with background([str(_BIN / "supervisord"), "-c", str(config)]) as daemon:
        try:
            wait_until(lambda: run(command, check=False).stdout.count(b"RUNNING") == 2, "supervisord's programs run")
            return {"status": status_time(command, count)}
        finally:
            daemon.terminate()  # and it its programs
            daemon.wait(LIMIT)


def nats_echo(lab: Lab, count: int) -> Figures:
    """Send the same messages as a request and its reply; both programs are Python."""
    with _nats(lab) as (server, port):
        words = [str(port), str(count), str(ECHO_SIZE)]
        with _nats_program("echo-server", *words, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            client = [sys.executable, str(_NATS_PROGRAM), "echo-client", *words]
            return echo_times(client, count, [server])


def nats_one_way(lab: Lab, prefix: str, count: int, size: int) -> Figures:
    """Measure publisher to subscriber; `prefix` is empty (at most once) or `js-` (JetStream, acknowledged)."""
    with _nats(lab) as (server, port):
        words = [str(port), str(count), str(size)]
        drain = Load([sys.executable, str(_NATS_PROGRAM), f"{prefix}subscribe", *words])
        before = cpu_seconds([server])
        figures = _rate(Load([sys.executable, str(_NATS_PROGRAM), f"{prefix}publish", *words]), drain, count)
        return figures | {"cpu": (cpu_seconds([server]) - before) / count * 1e6}


@contextmanager
def _nats(lab: Lab) -> Iterator[tuple[int, int]]:
    """Yield (pid, port) of a server that only this machine can reach."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = lab.run_directory()
    flags = ["--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(where)]
    with background([tool("nats-server"), *flags, "--log", str(where / "log")]) as server:
        wait_until(lambda: _answers(port), f"nats-server answers; see {where}/log")
        yield server.pid, port


def _answers(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextmanager
def _nats_program(role: str, *words: str, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, str(_NATS_PROGRAM), role, *words], bufsize=0, stdout=stdout) as program:
        try:
            yield program
        finally:
            program.kill()


def _rate(feed: Load, drain: Load, count: int) -> Figures:
    ended = drain.span().ended
    return {"rate": count / (ended - feed.span().begun)}
