"""Routes to and from NATS JetStream in files, beside nats-py alone, and beside bytes that no client had to make.

All peers publish to one stream of one server and have each message confirmed.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.flows import Figures
from benchmarks.lab import Lab, Load, cpu_seconds, tree
from tests.system.nats_servers import NatsClient, NatsServer, running
from tests.system.room import LIMIT, wait_until

SUBJECT, STREAM = "bench", "BENCH"
_PROGRAM = Path(__file__).parent / "peers" / "nats_program.py"
_WINDOW = 1024  # messages in flight, of all peers
_CHUNK = 256  # messages that are written at once
_FAR = """
[route.r0.agent.far]
container = "host"
[route.r0.agent.far.nats]
servers = ["{url}"]
{end}
[route.r0.agent.box]
container = "{container}"
log = {{ {side} = "/srv/log" }}
"""


@contextmanager
def _stream(lab: Lab) -> Iterator[tuple[NatsServer, NatsClient]]:
    with running(lab.run_directory()) as server, NatsClient(server.url) as client:
        client.add_stream(STREAM, [SUBJECT])
        yield server, client


def alone(lab: Lab, role: str, count: int, size: int) -> Figures:
    """Measure nats-py alone: `js-window` publishes with a window, `js-fetch` takes what is there and acknowledges."""
    with _stream(lab) as (server, _):
        if role == "js-fetch":
            _write(server.port, count, size)
        words = [sys.executable, str(_PROGRAM), role, str(server.port), str(count), str(size)]
        span = Load(words).span()
        return {"rate": count / (span.ended - span.begun)}


def raw(lab: Lab, count: int, size: int) -> Figures:
    """Measure the server: bytes that are ready are written to its socket, with the same window."""
    with _stream(lab) as (server, _):
        begun = time.monotonic()
        _write(server.port, count, size)
        return {"rate": count / (time.monotonic() - begun)}


def from_log(lab: Lab, count: int, size: int) -> Figures:
    """Measure a route from a container's log to a subject."""
    with _stream(lab) as (server, _), lab.containers() as (box, _):
        (box.rootfs / "srv/log").touch()
        routes = _FAR.format(url=server.url, container=box.spec, side="out", end=f'in = {{ subject = "{SUBJECT}" }}')
        with lab.daemon(routes) as daemon:
            pids = tree(daemon.pid)
            before = cpu_seconds(pids)
            feed = lab.load(box, "feed", "log", "/srv/log", count, size)
            wait_until(lambda: daemon.flow("r0:box")["delivered"] == count, f"{count} messages are published", LIMIT)
            ended = time.monotonic()
            cpu = cpu_seconds(pids) - before
            return {"rate": count / (ended - feed.span().begun), "cpu": cpu / count * 1e6}


def to_log(lab: Lab, count: int, size: int) -> Figures:
    """Measure a route from a consumer to a container's log."""
    with _stream(lab) as (server, _), lab.containers() as (box, _):
        end = f'out = {{ stream = "{STREAM}", subject = "{SUBJECT}", durable = "d" }}'
        with lab.daemon(_FAR.format(url=server.url, container=box.spec, side="in", end=end)) as daemon:
            pids = tree(daemon.pid)
            before = cpu_seconds(pids)
            begun = time.monotonic()
            _write(server.port, count, size)
            log = box.rootfs / "srv/log"
            wait_until(lambda: log.stat().st_size == count * (size + 1), f"{count} messages are in the log", LIMIT)
            ended = time.monotonic()
            return {"rate": count / (ended - begun), "cpu": (cpu_seconds(pids) - before) / count * 1e6}


def _write(port: int, count: int, size: int) -> None:
    """Publish messages over a socket, and count the server's answers."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as connection:
        connection.sendall(b'CONNECT {"verbose":false}\r\nSUB in 1\r\nPING\r\n')
        answers = b""
        while b"PONG" not in answers:
            answers += connection.recv(1 << 16)
        one = b"PUB %s in %d\r\n%s\r\n" % (SUBJECT.encode(), size, b"a" * size)
        sent = confirmed = 0
        rest = b""
        while confirmed < count:
            while sent < count and sent - confirmed <= _WINDOW - _CHUNK:
                number = min(_CHUNK, count - sent)
                connection.sendall(one * number)
                sent += number
            data = rest + connection.recv(1 << 16)
            whole, newline, rest = data.rpartition(b"\n")
            confirmed += (whole + newline).count(b'"seq":')
