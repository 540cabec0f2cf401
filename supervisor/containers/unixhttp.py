"""HTTP over an engine's Unix socket: each call has one deadline, each answer a limit, each fault a readable line.

An engine may be stuck and accept without answering, or answer one byte a second: the deadline is for the whole call.
"""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

from nsbridge.supervisor.containers import websocket
from nsbridge.supervisor.containers.deadline import ANSWER_LIMIT, TIME_LIMIT, seconds_left
from nsbridge.supervisor.containers.identity import NAME_SHOWN, ContainerRefused, NoAnswer, NotPermitted, quoted

_T = TypeVar("_T")
_CREDENTIALS = struct.Struct("@iII")  # pid, uid, gid


class UnixHttp:
    """A connection to one socket. A context manager: it connects and closes."""

    def __init__(self, service: str, path: str, deadline: float) -> None:
        self.source = f"engine socket {path}"
        self._service = service
        self._connection = _Connection(path, deadline)

    def __enter__(self) -> Self:
        try:
            self._connection.connect()
        except FileNotFoundError:
            raise NoAnswer(f"{self.source} is not there: is the {self._service} service running?") from None
        except PermissionError:
            raise NotPermitted(f"{self.source} may not be used: run nsbridge as root") from None
        except OSError as error:
            raise NoAnswer(f"{self.source} does not answer ({_why(error)})") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def peer_uid(self) -> int:
        """Return the user who listens on the socket. unix(7), SO_PEERCRED"""
        credentials = self._connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[1])

    def get(self, target: str) -> bytes | None:
        """Return the body; None if the service does not know the target (404). Raises NoAnswer, ContainerRefused."""
        response = self._request(target)
        body = self._call(lambda: response.read(ANSWER_LIMIT + 1))
        if len(body) > ANSWER_LIMIT:
            raise ContainerRefused(f"{self.source}: an answer is longer than {ANSWER_LIMIT} bytes")
        if response.status == http.HTTPStatus.NOT_FOUND:
            return None
        self._check(response.status, body)
        return body

    def stream(self, target: str) -> http.client.HTTPResponse:
        """Return an answer without end, of which only the beginning has a deadline. Raises NoAnswer."""
        response = self._request(target)
        if response.status != http.HTTPStatus.OK:
            self._check(response.status, response.read1(NAME_SHOWN))
        self._connection.be_patient()
        return response

    def websocket(self, target: str) -> Iterator[bytes]:
        """Return the messages of a websocket, of which only the beginning has a deadline. Raises NoAnswer.

        The messages raise OSError; ValueError if they are none.
        """
        key = websocket.new_key()
        response = self._request(target, websocket.headers(key))
        if response.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self._check(response.status, response.read1(NAME_SHOWN))
        if response.getheader("Sec-WebSocket-Accept") != websocket.accepted(key):
            raise NoAnswer(f"{self.source} has no websocket for events")
        self._connection.be_patient()
        return websocket.messages(response.fp, self._connection.sock.sendall)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Raise NoAnswer at the end of a stream of events that is read in this context, with the reason."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{self.source} ended its events ({type(error).__name__})") from None
        except ValueError as error:
            raise NoAnswer(f"{self.source} reports {error}") from None
        raise NoAnswer(f"{self.source} ended its events")

    def _request(self, target: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        self._call(lambda: self._connection.request("GET", target, headers=headers or {}))
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

    def _check(self, status: int, body: bytes) -> None:
        if status != http.HTTPStatus.OK:
            said = quoted(body.decode("utf-8", "backslashreplace").strip())
            raise NoAnswer(f"{self.source} answers with HTTP status {status}: {said}")


def local_socket_path(variable: str, usual: str) -> str:
    """Return the path that an environment variable (unix://PATH) gives, else `usual`.

    Raises ContainerRefused if the variable leads to another machine.
    """
    host = os.environ.get(variable)
    if not host:
        return usual
    path = host.removeprefix("unix://")
    if path == host or not path.startswith("/"):
        raise ContainerRefused(f"{variable} is {quoted(host)}: only unix:///PATH leads to containers of this host")
    return path


def accepts(path: str, deadline: float) -> bool:
    """True if a process listens; a socket file outlives its listener. One that does not take the call listens too."""
    with _DeadlineSocket(deadline) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        return True


class _DeadlineSocket(socket.socket):
    """A socket whose every wait ends at one deadline, so that bytes that come drop by drop do not extend it."""

    def __init__(self, deadline: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._deadline: float | None = deadline

    def be_patient(self) -> None:
        """Remove the deadline."""
        self._deadline = None

    def connect(self, address: Any) -> None:
        self._limit()
        super().connect(address)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._limit()
        super().sendall(data, flags)

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        self._limit()
        return super().recv_into(*args, **keywords)

    def _limit(self) -> None:
        self.settimeout(None if self._deadline is None else seconds_left(self._deadline))


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._deadline = deadline

    def be_patient(self) -> None:
        """Remove the deadline; to be called once it is connected.

        Where the answer lasts to the end of the connection, the answer has the socket and `sock` is None.
        """
        self._connected.be_patient()

    def connect(self) -> None:
        with ExitStack() as on_failure:
            self.sock = self._connected = _DeadlineSocket(self._deadline)
            on_failure.callback(self.close)
            self.sock.connect(self._path)
            on_failure.pop_all()


def _why(error: OSError) -> str:
    return error.strerror or str(error) or f"waited {TIME_LIMIT:g} s"
