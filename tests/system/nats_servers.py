"""Real nats-servers for tests, with JetStream in files; and a client that looks at what they have."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import nats.errors
from nats.aio.client import Client

from tests.system.room import LIMIT, wait_until

T = TypeVar("T")
PROGRAM = "NSB_NATS_SERVER"  # in the environment: the server to test with, in place of the installed one


def program() -> str:
    """Return the server's path."""
    found = os.environ.get(PROGRAM) or shutil.which("nats-server", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
    assert found is not None, "no nats-server: apt-get install nats-server"
    return found


def version() -> str:
    """Return the server's version, like 2.10.27."""
    answer = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=LIMIT, check=True)
    return answer.stdout.rpartition("v")[2].strip()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class NatsServer:
    """One server; `more` is its configuration beside ports and storage, `store` more of its storage's."""

    def __init__(self, directory: Path, name: str, port: int, more: str = "", store: str = "") -> None:
        self.name, self.port, self.directory = name, port, directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self._config = self.directory / "server.conf"
        self._config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{port}"\nlog_file: "{self.directory}/log"\n'
            f'jetstream {{ store_dir: "{self.directory}/store" {store} }}\n{more}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return its pid."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it need not be ready."""
        self._process = subprocess.Popen(
            [program(), "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Wait until it takes connections."""
        wait_until(self.answers, f"nats-server {self.name} answers; see {self.directory}/log")

    def answers(self) -> bool:
        """True if it takes connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT)
            self._process = None

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)


@contextmanager
def running(directory: Path, more: str = "", name: str = "one") -> Iterator[NatsServer]:
    """Run one server."""
    server = NatsServer(directory, name, free_ports(1)[0], more)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@contextmanager
def cluster(directory: Path, size: int = 3, store: str = "") -> Iterator[Sequence[NatsServer]]:
    """Run several servers as a cluster; `store` is more of their storage's configuration."""
    ports = free_ports(2 * size)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[size:])
    servers = [
        NatsServer(
            directory,
            f"n{number}",
            ports[number],
            f'cluster {{ name: storm, listen: "127.0.0.1:{ports[size + number]}", routes: [{routes}] }}',
            store,
        )
        for number in range(size)
    ]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


class NatsClient:
    """A client, for tests that do not speak asyncio."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self._urls, self._options = list(urls), options
        self._loop = asyncio.new_event_loop()
        self.client = Client()

    def __enter__(self) -> Self:
        self.run(self.client.connect(self._urls, error_cb=_ignored, max_reconnect_attempts=-1, **self._options))
        self.js = self.client.jetstream(timeout=10)
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(Exception):
            self.run(asyncio.wait_for(self.client.close(), 5))
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine of nats-py returns."""
        return self._loop.run_until_complete(work)

    def add_stream(self, name: str, subjects: Sequence[str], **config: Any) -> None:
        """Make a stream; a cluster may need a while until it can."""
        impatient = self.client.jetstream(timeout=2)  # a request before there is a leader is lost

        def made() -> bool:
            try:
                self.run(impatient.add_stream(name=name, subjects=list(subjects), **config))
            except nats.errors.Error:
                return False
            return True

        wait_until(made, f"stream {name} is made")

    def bodies(self, stream: str) -> list[bytes]:
        """Return all messages of a stream."""

        async def read() -> list[bytes]:
            state = (await self.js.stream_info(stream)).state
            found: list[bytes] = []
            if state.messages:
                subscription = await self.js.subscribe(">", stream=stream, ordered_consumer=True)
                while len(found) < state.messages:
                    found.append((await subscription.next_msg(timeout=10)).data)
                await subscription.unsubscribe()
            return found

        return self.run(read())

    def publish(self, subject: str, bodies: Sequence[bytes], **options: Any) -> None:
        """Publish messages, each of which the server confirms."""

        async def all_of_them() -> None:
            for first in range(0, len(bodies), 200):
                part = bodies[first : first + 200]
                await asyncio.gather(*(self.js.publish(subject, body, **options) for body in part))

        self.run(all_of_them())


async def _ignored(_error: Exception) -> None:
    pass
