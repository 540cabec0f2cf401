"""The caller's side of the control socket: one connection, JSON lines, a limit to every wait.

nsbridgectl and the demo share it. It is loaded for every command a person types, so it imports nothing that costs
time to load.

Some facts about AF_UNIX and what they mean here:
* A connect that would have to wait for a full backlog says EAGAIN, not EINPROGRESS, and nothing reports when there is
  room: it is tried again until the time is up, because a full backlog is a daemon that does not answer.
* A server that refuses may close before it has read the request, so sending fails although its answer is there to be
  read: the answer is looked for first.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import struct
import time

from nsbridge.config.errors import (
    EXIT_NO_SUCH_NAME,
    EXIT_NOT_PERMITTED,
    EXIT_USAGE,
    NoSuchNameError,
    NotPermittedError,
    NsbridgeError,
    UnreachableError,
    UsageError,
)

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DEFAULT_PATH = "/run/nsbridge/control.sock"
DEFAULT_TIMEOUT = 5.0  # seconds

_CONNECT_PAUSE = 0.05  # seconds between attempts to connect while the daemon's backlog is full
_ERRORS: dict[int, type[NsbridgeError]] = {
    EXIT_USAGE: UsageError,
    EXIT_NO_SUCH_NAME: NoSuchNameError,
    EXIT_NOT_PERMITTED: NotPermittedError,
}


class LateError(UnreachableError):
    """The daemon took the request, and has not answered in time."""


class EndedError(UnreachableError):
    """The daemon has closed the connection."""


class ControlClient:
    """A connection to the daemon that listens at `path`; a context manager.

    `timeout` is how many seconds connecting may take, and then each call. Raises UnreachableError (no daemon there, no
    answer in time, not our protocol), NotPermittedError, and whatever error the daemon answers with.
    """

    def __init__(self, path: str = DEFAULT_PATH, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self.timeout = timeout
        self._last_id = 0
        self._received = bytearray()
        self._socket = _connect(path, timeout)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up; the daemon forgets what it has not answered yet, but finishes what it began."""
        self._socket.close()

    def call(self, method: str, params: dict[str, object] | None = None) -> Any:
        """Return the result of `method`, whatever JSON value that is."""
        deadline = time.monotonic() + self.timeout
        self._request(method, params, deadline)
        while True:
            answer = self._answer(method, deadline)
            if "result" in answer:
                return answer["result"]

    def stream(self, method: str, params: dict[str, object], *, follow: bool = False) -> Iterator[Any]:
        """Yield the items of `method`, as they come. With `follow`, two of them may be any time apart."""
        if follow:
            self.call("version")  # an idle stream and a stuck daemon look alike, so it is asked for a sign of life
        deadline = time.monotonic() + self.timeout
        self._request(method, params, deadline)
        while True:
            answer = self._answer(method, None if follow else deadline)
            if "result" in answer:
                return
            yield answer.get("item")

    def shutdown(self, *, wait: bool = False) -> Any:
        """Return the result of `shutdown`. With `wait`, wait until the daemon's process is gone; LateError if it is
        late.
        """
        if not wait:
            return self.call("shutdown")
        deadline, process = time.monotonic() + self.timeout, self._process()
        try:
            try:
                result = self.call("shutdown")
            except EndedError:
                result = None  # another caller was faster
            self._until_gone(process, deadline)
        except TimeoutError:
            raise LateError(
                f"shutdown: not done within {self.timeout:g} s; it continues: nsbridgectl status shows its progress"
            ) from None
        finally:
            if process is not None:
                os.close(process)
        return result

    @property
    def daemon_pid(self) -> int:
        """Return the pid of the daemon, see peer_pid."""
        return peer_pid(self._socket)

    def _process(self) -> int | None:
        """Return a pidfd of the listening process; None if it cannot be seen from here (another pid namespace)."""
        try:
            return os.pidfd_open(self.daemon_pid)
        except OSError:
            return None

    def _until_gone(self, process: int | None, deadline: float) -> None:
        """Wait until that process is gone; if it cannot be seen, until the connection is closed. Raise TimeoutError."""
        gone = select.poll()
        gone.register(self._socket if process is None else process, select.POLLIN)
        if not gone.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            raise TimeoutError

    def _request(self, method: str, params: dict[str, object] | None, deadline: float) -> None:
        self._last_id += 1
        request = {"id": self._last_id, "method": method, "params": params or {}}
        try:
            self._limit(deadline)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise self._no_answer(method) from None
        except OSError:
            pass  # it has hung up on us; why, is what we read next

    def _answer(self, method: str, deadline: float | None) -> dict[str, Any]:
        """Return the next result or item of the last request."""
        while True:
            try:
                answer = json.loads(self._line(deadline))
                ours = answer["id"] in (self._last_id, None)
                error = answer.get("error")
                if error is not None:
                    raise error_of(int(error["code"]), str(error["message"]))
            except TimeoutError:
                raise self._no_answer(method) from None
            except OSError as broken:
                raise UnreachableError(f"{self.path}: the connection broke: {broken.strerror}") from None
            except (ValueError, TypeError, LookupError, AttributeError):
                raise UnreachableError(
                    f"{self.path}: the listener there does not speak nsbridge's protocol; name its socket with -s"
                ) from None
            if ours:
                return dict(answer)

    def _line(self, deadline: float | None) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            self._limit(deadline)
            chunk = self._socket.recv(65536)
            if not chunk:
                if deadline is None:
                    raise EndedError(f"{self.path}: nsbridged has ended")
                raise EndedError(f"{self.path}: nsbridged closed the connection before it had answered in full")
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _limit(self, deadline: float | None) -> None:
        if deadline is None:
            self._socket.settimeout(None)
        elif (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
        else:
            raise TimeoutError

    def _no_answer(self, method: str) -> LateError:
        return LateError(
            f"{self.path}: nsbridged did not answer {method} within {self.timeout:g} s; "
            "it is busy or stuck (its log says more), or give it longer with --timeout"
        )


def peer_pid(connection: socket.socket) -> int:
    """Return the pid of the listening process as this process sees it; 0 if it is of an unrelated pid namespace."""
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def _connect(path: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        while not _connected(connection, path):
            if time.monotonic() + _CONNECT_PAUSE > deadline:
                raise TimeoutError
            time.sleep(_CONNECT_PAUSE)
    except OSError as failure:
        connection.close()
        raise cannot_connect(path, timeout, failure) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _connected(connection: socket.socket, path: str) -> bool:
    try:
        connection.connect(os.fsencode(path))
    except BlockingIOError:
        return False
    return True


def cannot_connect(path: str, timeout: float, failure: OSError) -> NsbridgeError:
    """Return the error for a connection that failed; a TimeoutError if the daemon has not taken it."""
    where = f"cannot reach nsbridged at {path}"
    if isinstance(failure, TimeoutError):
        return UnreachableError(f"{where}: it has not taken the connection within {timeout:g} s; it is busy or stuck")
    if isinstance(failure, PermissionError):
        return NotPermittedError(
            f"{where}: not permitted; be root or in the group that daemon.control.group or read_group names"
        )
    if isinstance(failure, FileNotFoundError):
        return UnreachableError(f"{where}: there is no such socket; start nsbridged, or name its socket with -s")
    if isinstance(failure, ConnectionRefusedError):
        if not _is_socket(path):
            return UnreachableError(f"{where}: that is no socket; name nsbridged's socket with -s")
        return UnreachableError(f"{where}: nobody listens there any more; start nsbridged")
    return UnreachableError(f"{where}: {failure.strerror or failure}")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116  (pathlib is slow to load)
    except OSError:
        return True  # so it was, just now


def error_of(code: int, message: str) -> NsbridgeError:
    """Return the error that the daemon has answered with."""
    error = _ERRORS.get(code, NsbridgeError)(message)
    error.exit_code = code
    return error
