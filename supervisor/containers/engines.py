"""Containers of Docker and Podman, asked from the engine: over its API socket, or with the podman command.

Some facts about the engines, and what they mean here:
* Podman's API has Docker's requests too, so one client does for both. Podman needs no service: where there is no API
  socket, `podman inspect` tells the same (`locate` on Debian 12: dockerd 1 ms, podman's socket 4 ms, command 75 ms).
* Both take the beginning of an id for a name. "db" and "cafe" are hexadecimal: while the container of that name is
  away, they would find some *other* container whose id begins so. So the answer is held against the question.
* They tell a pid and no start time, which is read from /proc. Asked again afterwards, the same answer proves that the
  container was still there, so that what was read is about its init.
* An engine may be stuck and accept without answering, or answer one byte a second: the deadline is for the whole call.
  What it answers contains what containers' makers wrote (labels, variables): it is bounded, and escaped when shown.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote

from nsbridge.config.schema import ContainerKind
from nsbridge.supervisor.containers.identity import (
    NAME_SHOWN,
    ContainerRefused,
    Found,
    NotPermitted,
    NotRunning,
    found_by_pid,
    not_known,
    quoted,
)

TIME_LIMIT = 2.0  # seconds, for everything that one call here asks
ANSWER_LIMIT = 8 << 20  # bytes of one answer
DOCKER_SOCKET = "/var/run/docker.sock"
PODMAN_SOCKET = "/run/podman/podman.sock"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")  # allowed by both engines (moby: names.RestrictedNamePattern)
_ID_PREFIX_AT_LEAST = 12  # characters: the short id that the engines show
_ALIVE = ("running", "paused")  # dockerd calls a paused container Running, the podman command does not
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an engine says about one container."""

    name: str
    id: str
    status: str  # created, running, paused, restarting, removing, exited, dead
    pid: int  # of init, 0 if it does not run
    started_at: str  # as the engine writes it; another start, another text


class NoAnswer(NotRunning):
    """The engine itself is not there or does not answer."""


class EngineClient(Protocol):
    """A way to ask an engine, for one call: it has one deadline."""

    source: str  # what is asked, for messages

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def inspect(self, name: str) -> Inspected | None:
        """The container of that name or id, None if the engine knows none."""
        ...

    def ids(self) -> list[str]:
        """The ids of all containers, running or not."""
        ...


def locate(kind: ContainerKind, name: str) -> Found:
    """The running container of that name or id; raises NotRunning, Refused, after TIME_LIMIT at the latest."""
    if not _NAME.fullmatch(name):
        raise ContainerRefused(
            f"{kind} cannot have a container {quoted(name)}: letters, digits, '_', '.' and '-' make a name"
        )
    with client_of(kind) as client:
        first = client.inspect(name)
        if first is None or not _is_meant(name, first):
            raise not_known(name, kind, client.source)
        if first.status not in _ALIVE or not first.pid:
            raise NotRunning(f"container {quoted(name)} of {kind} is {quoted(first.status)[1:-1]}, not running")
        found = found_by_pid(first.pid)
        if client.inspect(name) != first:
            raise NotRunning(f"container {quoted(name)} of {kind} is just stopping or starting")
        return replace(found, engine_id=first.id, engine_name=first.name)


def list_all(kind: ContainerKind) -> list[Inspected]:
    """Every container that the engine knows; raises as `locate`. Empty if the engine is not installed."""
    if not _is_installed(kind):
        return []
    with client_of(kind) as client:
        return [about for about in map(client.inspect, client.ids()) if about is not None]


def docker_socket() -> str:
    """The path of dockerd's socket: DOCKER_HOST=unix://… or the usual one. Refused if it is on another machine."""
    return _socket_path("DOCKER_HOST", DOCKER_SOCKET)


def podman_socket() -> str:
    """The path of Podman's API socket: CONTAINER_HOST=unix://… or the usual one. Refused if on another machine."""
    return _socket_path("CONTAINER_HOST", PODMAN_SOCKET)


def parse_inspected(body: bytes) -> Inspected:
    """Read the answer to GET /containers/NAME/json; ValueError if it is none."""
    try:
        about: Any = json.loads(body)
        state = about["State"]
        inspected = Inspected(
            about["Name"].removeprefix("/"), about["Id"], state["Status"], state["Pid"], state["StartedAt"]
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError("not a container's description") from None
    kinds = [type(getattr(inspected, field)) for field in Inspected.__slots__]
    if kinds != [str, str, str, int, str] or inspected.pid < 0:
        raise ValueError("not a container's description")
    return inspected


class ApiClient:
    """Asks over the engine's socket: Docker's Engine API, which Podman speaks as well."""

    def __init__(self, kind: ContainerKind, path: str, deadline: float) -> None:
        self.source = f"engine socket {path}"
        self._kind = kind
        self._connection = _Connection(path, deadline)

    def __enter__(self) -> Self:
        try:
            self._connection.connect()
        except FileNotFoundError:
            raise NoAnswer(f"{self.source} is not there: is the {self._kind} service running?") from None
        except PermissionError:
            raise NotPermitted(f"{self.source} may not be used: run nsbridge as root") from None
        except OSError as error:
            raise NoAnswer(f"{self.source} does not answer ({_why(error)})") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def inspect(self, name: str) -> Inspected | None:
        """See EngineClient."""
        status, body = self._get(f"/containers/{quote(name, safe='')}/json")
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        try:
            return parse_inspected(self._ok(status, body))
        except ValueError:
            raise ContainerRefused(f"{self.source}: what answers there is not a {self._kind} engine") from None

    def ids(self) -> list[str]:
        """See EngineClient."""
        try:
            return [str(row["Id"]) for row in json.loads(self._ok(*self._get("/containers/json?all=1")))]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise ContainerRefused(f"{self.source}: what answers there is not a {self._kind} engine") from None

    def stream(self, target: str) -> http.client.HTTPResponse:
        """An answer without end, of which only the beginning has a deadline. Raises NoAnswer."""
        response = self._request(target)
        if response.status != http.HTTPStatus.OK:
            self._ok(response.status, response.read1(NAME_SHOWN))
        self._connection.be_patient()
        return response

    def _get(self, target: str) -> tuple[int, bytes]:
        response = self._request(target)
        body = self._call(lambda: response.read(ANSWER_LIMIT + 1))
        if len(body) > ANSWER_LIMIT:
            raise ContainerRefused(f"{self.source}: an answer is longer than {ANSWER_LIMIT} bytes")
        return response.status, body

    def _request(self, target: str) -> http.client.HTTPResponse:
        self._call(lambda: self._connection.request("GET", target))
        return self._call(self._connection.getresponse)

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except TimeoutError:
            raise NoAnswer(f"{self.source} does not answer (waited {TIME_LIMIT:g} s)") from None
        except OSError as error:
            raise NoAnswer(f"{self.source} does not answer ({_why(error)})") from None
        except http.client.HTTPException as error:
            raise NoAnswer(f"{self.source} answers with something other than HTTP ({type(error).__name__})") from None

    def _ok(self, status: int, body: bytes) -> bytes:
        if status != http.HTTPStatus.OK:
            said = quoted(body.decode("utf-8", "backslashreplace").strip())
            raise NoAnswer(f"{self.source} answers with HTTP status {status}: {said}")
        return body


class PodmanCommand:
    """Asks with the podman command; CONTAINERS_CONF and the like reach it through the environment."""

    _FORMAT = (
        '{"Name":{{json .Name}},"Id":{{json .ID}},"State":{"Status":{{json .State.Status}},'
        '"Pid":{{.State.Pid}},"StartedAt":{{json .State.StartedAt}}}}'
    )

    def __init__(self, program: str, deadline: float) -> None:
        self.source = f"asked with {program}"
        self.program = program
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def inspect(self, name: str) -> Inspected | None:
        """See EngineClient."""
        arguments = ["container", "inspect", "--format", self._FORMAT, "--", name]
        status, output, said = run_bounded([self.program, *arguments], self._deadline)
        if status and "no such container" in said.lower():
            return None
        try:
            return parse_inspected(self._ok(status, output, said))
        except ValueError:
            shown = quoted(output.decode("utf-8", "backslashreplace"))
            raise ContainerRefused(f"{self.program}: its answer is not understood: {shown}") from None

    def ids(self) -> list[str]:
        """See EngineClient."""
        result = run_bounded([self.program, "ps", "--all", "--quiet", "--no-trunc"], self._deadline)
        return self._ok(*result).decode("ascii", "replace").split()

    def _ok(self, status: int, output: bytes, said: str) -> bytes:
        if status:
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise NoAnswer(f"{self.program} failed with status {status}: {quoted(last)}")
        return output


def run_bounded(command: list[str], deadline: float) -> tuple[int, bytes, str]:
    """Run a program of the host; (exit status, output, what it said on stderr), both at most ANSWER_LIMIT bytes.

    Raises NoAnswer if it cannot be run, has not ended at the deadline (monotonic clock) or says more.
    """
    try:
        process = subprocess.Popen(  # noqa: S603  (no shell; a container's name comes checked, and after "--")
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise NoAnswer(f"{command[0]} cannot be run: {error.strerror}") from None
    with process:
        try:
            output, said = _read_both(process, deadline)
            return process.wait(max(0.0, deadline - time.monotonic())), output, said.decode("utf-8", "backslashreplace")
        except (TimeoutError, subprocess.TimeoutExpired):
            raise NoAnswer(f"{command[0]} does not answer (waited {TIME_LIMIT:g} s)") from None
        finally:
            process.kill()  # harmless when it has ended


def _read_both(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Both outputs to their ends; TimeoutError at the deadline, NoAnswer if there is too much."""
    assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  (both are pipes)
    said = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for fd in said:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_left(deadline))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                said[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                if len(said[key.fd]) > ANSWER_LIMIT:
                    raise NoAnswer(f"{process.args!r} says more than {ANSWER_LIMIT} bytes")
    return said[process.stdout.fileno()], said[process.stderr.fileno()]


class _DeadlineSocket(socket.socket):
    """A socket whose every wait ends at one deadline, so that bytes that come drop by drop do not extend it."""

    def __init__(self, deadline: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._deadline: float | None = deadline

    def be_patient(self) -> None:
        """No deadline any more."""
        self._deadline = None

    def connect(self, address: Any) -> None:
        self.settimeout(_left(self._deadline))
        super().connect(address)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(_left(self._deadline))
        super().sendall(data, flags)

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        self.settimeout(_left(self._deadline))
        return super().recv_into(*args, **keywords)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._deadline = deadline

    def be_patient(self) -> None:
        """From now on its deadline binds no more; to be called once it is connected.

        Where the answer goes on to the end of the connection, the answer has the socket and `sock` is None.
        """
        self._connected.be_patient()

    def connect(self) -> None:
        with ExitStack() as on_failure:
            self.sock = self._connected = _DeadlineSocket(self._deadline)
            on_failure.callback(self.close)
            self.sock.connect(self._path)
            on_failure.pop_all()


def client_of(kind: ContainerKind) -> EngineClient:
    """How that engine is asked on this host, for TIME_LIMIT from now. Raises ContainerRefused."""
    deadline = time.monotonic() + TIME_LIMIT
    if kind is ContainerKind.DOCKER:
        return ApiClient(kind, docker_socket(), deadline)
    path = podman_socket()
    if _accepts(path, deadline):
        return ApiClient(kind, path, deadline)
    program = shutil.which("podman")
    # Another user's podman command would see that user's containers only, and leave a process behind.
    if program is None or "CONTAINER_HOST" in os.environ or os.geteuid() != 0:
        return ApiClient(kind, path, deadline)  # whose failure names the socket
    return PodmanCommand(program, deadline)


def _accepts(path: str, deadline: float) -> bool:
    """Whether somebody listens; a socket file outlives its listener. One who does not take the call listens too."""
    with _DeadlineSocket(deadline) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        return True


def _is_installed(kind: ContainerKind) -> bool:
    if kind is ContainerKind.DOCKER:
        return "DOCKER_HOST" in os.environ or os.path.exists(docker_socket())  # noqa: PTH110
    return "CONTAINER_HOST" in os.environ or os.path.exists(podman_socket()) or shutil.which("podman") is not None  # noqa: PTH110


def _is_meant(name: str, found: Inspected) -> bool:
    return found.name == name or (len(name) >= _ID_PREFIX_AT_LEAST and found.id.startswith(name))


def _socket_path(variable: str, usual: str) -> str:
    host = os.environ.get(variable)
    if not host:
        return usual
    path = host.removeprefix("unix://")
    if path == host or not path.startswith("/"):
        raise ContainerRefused(f"{variable} is {quoted(host)}: only unix:///PATH leads to containers of this host")
    return path


def _why(error: OSError) -> str:
    return error.strerror or str(error) or f"waited {TIME_LIMIT:g} s"


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline, TimeoutError when there are none (0 would mean non-blocking to a socket)."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
