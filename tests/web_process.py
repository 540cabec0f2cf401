"""A real `nsbridge web` for tests: a process of its own, asked over HTTP by the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.control_fake import DEADLINE

COMMAND = (sys.executable, "-P", "-m", "nsbridge.supervisor.cli.nsbridge", "web")


class Answer(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Web:
    """The process, on a free port of 127.0.0.1; a context manager. `through` is a command that starts it."""

    command: tuple[str, ...] = COMMAND

    def __init__(self, control: str | Path, *options: str, through: tuple[str, ...] = (), port: int = 0) -> None:
        listen = () if "--listen" in options else ("--listen", f"127.0.0.1:{port}")
        self._command = [*through, *self.command, *listen, "-s", str(control), *options]
        self._tls = "--tls-cert" in options
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "://" in line, f"{line}{self.process.stderr.read()}"
        self.port = int(line.split("://")[1].partition("/")[0].rpartition(":")[2])
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        self.process.kill()
        self.process.wait(DEADLINE)
        self.process.stderr.close()

    def again(self) -> Web:
        """Return another one on the same port, not yet started."""
        port = f"127.0.0.1:{self.port}"
        made = Web("")
        made._command = [port if word.startswith("127.0.0.1:") else word for word in self._command]
        return made

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and what it wrote to stderr after its first line."""
        assert self.process is not None
        assert self.process.stderr is not None
        self.process.terminate()
        err = self.process.stderr.read()  # not communicate(): the first readline may have read more than a line
        return self.process.wait(DEADLINE), err

    @contextmanager
    def connection(self, timeout: float = DEADLINE) -> Iterator[http.client.HTTPConnection]:
        if self._tls:
            context = ssl._create_unverified_context()
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=timeout, context=context
            )
        else:
            made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            yield made
        finally:
            made.close()

    def get(self, path: str, headers: Mapping[str, str] = {}, method: str = "GET", **more: Any) -> Answer:
        with self.connection() as connection:
            connection.request(method, path, headers=dict(headers), **more)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    @contextmanager
    def events(self, path: str = "/api/events") -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield the server-sent events of a live stream: (kind, data)."""
        with self.connection() as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield _messages(answer)


def _messages(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    kind = ""
    for line in answer:
        word, _, value = line.decode().rstrip("\n").partition(": ")
        if word == "event":
            kind = value
        elif word == "data":
            yield kind, json.loads(value)
