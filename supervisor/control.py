"""The control socket: JSON lines over AF_UNIX, answered in the supervisor's loop.

A request is `{"id": 1, "method": "status", "params": {}}`. It is answered by `{"id": 1, "result": ...}` or
`{"id": 1, "error": {"code": 5, "message": "..."}}`; before that, a stream sends `{"id": 1, "item": ...}` any number of
times. `code` is the exit code of config/errors.py. What is wrong with a connection itself is an error with id null, and
the end of it.

Nobody who is connected can make the supervisor wait or grow: nothing blocks, a request, what is under way and what is
queued are bounded (the constants below), and what goes beyond costs the caller its connection, never the daemon more.

Some facts about AF_UNIX and what they mean here:
* A caller may shut down only its writing side (nc, socat) and still read: end of file is not the end of the
  connection; EPOLLHUP is. It is reported whether asked for or not.
* Under EMFILE a waiting connection stays readable for ever: accepting is paused, or the loop would spin.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nsbridge.agents import limits
from nsbridge.agents.loop import HUNG_UP, READABLE, WRITABLE, Loop
from nsbridge.config.errors import EXIT_FAILED, NotPermittedError, NsbridgeError, UsageError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor import listener
from nsbridge.supervisor.access import Access, Caller, Right

READING_METHODS = frozenset({"status", "tail", "events", "inspect", "top", "version", "dead_list"})

MAX_REQUEST = 64 << 10  # bytes of a request's line
MAX_QUEUED = 4 << 20  # bytes that wait for a caller to read them
MAX_QUEUED_STREAM = 1 << 20  # the same, when an item of a stream would come on top
MAX_UNDER_WAY = 64  # requests of one connection that are not answered yet
MAX_CLIENTS = 256
KEPT_FOR_ROOT = 16  # of them: so that nobody else can keep root out
ACCEPT_PAUSE = 1.0  # seconds without accepting after EMFILE and its like
REFUSAL_PAUSE = 10.0  # seconds between two lines in the log about callers who were refused
_TOLD = 200  # characters of a request in the log
_BATCH = 16  # connections taken at one event

Notice = Callable[[str], None]


class ControlApi(Protocol):
    """What the supervisor does for callers. The server has checked that the caller may call `method`."""

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        """Do `method` and give `answer` its result or error, now or later. A raised NsbridgeError is the error."""


class Answer:
    """Where the answer to one request goes. Harmless when the caller has gone or all has been said."""

    def __init__(self, connection: _Connection, request_id: object) -> None:
        self._connection = connection
        self._id = request_id
        self._callbacks: list[Callable[[], None]] = []
        self._open = True
        self._abandoned = False

    @property
    def is_open(self) -> bool:
        """False once it is answered or the caller is gone: what is worked out now, nobody will read."""
        return self._open

    def item(self, value: object) -> None:
        """Send one more item of a stream; `value` is anything that JSON can say."""
        if self._open:
            self._connection.send({"id": self._id, "item": value}, MAX_QUEUED_STREAM)

    def result(self, value: object) -> None:
        """Answer, and end it."""
        self._finish({"id": self._id, "result": value})

    def error(self, error: NsbridgeError) -> None:
        """Answer that it cannot be done, and end it."""
        self._finish(_error(self._id, error))

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if the caller goes away before it is answered (at once if it already has)."""
        if self._open:
            self._callbacks.append(callback)
        elif self._abandoned:
            callback()

    def abandon(self) -> None:
        """The caller has gone; only its connection calls this."""
        callbacks, self._callbacks = self._callbacks, []
        self._open, self._abandoned = False, True
        for callback in callbacks:
            callback()

    def _finish(self, message: dict[str, object]) -> None:
        if self._open:
            self._open = False
            self._callbacks.clear()
            self._connection.finish(self, message)


class ControlServer:
    """Serves the control socket of `config` in `loop`.

    The daemon's log is given `notice` of what is wrong, and as `audit` who has asked to change something.
    """

    def __init__(
        self,
        loop: Loop,
        config: ControlConfig,
        api: ControlApi,
        notice: Notice = lambda _line: None,
        audit: Notice = lambda _line: None,
    ) -> None:
        self.audit = audit
        self.loop = loop
        self.config = config
        self.api = api
        self.notice = notice
        self._access: Access | None = None
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[_Connection] = set()
        self._quiet_until = 0.0  # loop time; whoever is refused must not fill the log

    @property
    def access(self) -> Access:
        """Who may do what; once it is open."""
        assert self._access is not None  # noqa: S101  (connections exist only after open)
        return self._access

    def open(self) -> None:
        """Make the socket and serve it. ConfigError, NsbridgeError if there is no way, or another daemon has it."""
        self._access = Access.of(self.config)
        self._listener, self._inode = listener.listen(self.config, self._access, self.notice)
        self._watch_listener()

    def restore(self) -> bool:
        """Make the socket again if somebody has removed it, or put something in its place; True if that was so.

        Who is connected stays. NsbridgeError if there is no way, or another daemon listens there by now.
        """
        if self._listener is None or listener.is_at(self.config.path, self._inode):
            return False
        fresh, inode = listener.listen(self.config, self.access, self.notice)
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._listener, self._inode = fresh, inode
        self._watch_listener()
        return True

    def close(self) -> None:
        """End all connections and take the socket away, if its name is still ours. Harmless when not open."""
        if self._listener is None:
            return
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._listener = None
        for connection in tuple(self._connections):
            connection.close()
        with contextlib.suppress(OSError):
            if listener.is_at(self.config.path, self._inode):
                Path(self.config.path).unlink()

    def forget(self, connection: _Connection) -> None:
        """It has closed; only the connection itself calls this."""
        self._connections.discard(connection)

    def _watch_listener(self) -> None:
        if self._listener is not None:
            self.loop.watch(self._listener.fileno(), READABLE, self._accept)

    def _accept(self, _events: int) -> None:
        for _ in range(_BATCH):
            if self._listener is None:
                return
            try:
                peer, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM: it passes when something is closed
                self.notice(f"{self.config.path}: no connections for {ACCEPT_PAUSE:g} s: {limits.explained(error)}")
                self.loop.unwatch(self._listener.fileno())
                self.loop.call_later(ACCEPT_PAUSE, self._watch_listener)
                return
            self._admit(peer)

    def _admit(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        try:
            caller = self.access.caller(peer)
        except OSError:  # without knowing who it is there is nothing to say to it
            peer.close()
            return
        connection = _Connection(self, peer, caller)
        self._connections.add(connection)
        if caller.right is Right.NOTHING:
            self.note_refusal(f"refused uid {caller.uid} on the control socket: it is in neither of its groups")
            connection.end_with(NotPermittedError(_refusal(self.config, caller, "use this socket")))
        elif len(self._connections) > MAX_CLIENTS - (KEPT_FOR_ROOT if caller.uid else 0):
            serving = len(self._connections) - 1
            connection.end_with(NsbridgeError(f"nsbridged already serves {serving} callers; try again later"))

    def note_refusal(self, line: str) -> None:
        """Give the log a line about a caller who was refused, not more often than every REFUSAL_PAUSE."""
        now = self.loop.now()
        if now >= self._quiet_until:
            self._quiet_until = now + REFUSAL_PAUSE
            self.notice(line)


class _Connection:
    """One caller: what it has sent and not ended, what it has not read, what it waits for."""

    def __init__(self, server: ControlServer, peer: socket.socket, caller: Caller) -> None:
        self.closed = False
        self._server = server
        self._peer = peer
        self._caller = caller
        self._received = bytearray()
        self._queued = bytearray()
        self._under_way: set[Answer] = set()
        self._reading = True  # false: end of file, or we want no more of it
        self._mask = -1
        self._watch()

    def send(self, message: dict[str, object], limit: int = MAX_QUEUED) -> None:
        """Queue `message`; with more than `limit` bytes waiting the caller is given up."""
        if self.closed:
            return
        self._queued += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._write()
        if len(self._queued) > limit:
            self.close()

    def finish(self, answer: Answer, message: dict[str, object]) -> None:
        """Send what ends `answer`."""
        self._under_way.discard(answer)
        self.send(message)
        self._close_if_done()

    def end_with(self, error: NsbridgeError) -> None:
        """Say `error` about the connection itself, read no more, and close when that has been read."""
        self._reading = False
        self._received.clear()
        self._abandon()
        self._watch()
        self.send(_error(None, error))
        self._close_if_done()

    def close(self) -> None:
        """End it now, whatever is unsaid."""
        if self.closed:
            return
        self.closed = True
        self._server.loop.unwatch(self._peer.fileno())
        self._peer.close()
        self._server.forget(self)
        self._abandon()

    def _abandon(self) -> None:
        while self._under_way:
            self._under_way.pop().abandon()

    def _watch(self) -> None:
        mask = (READABLE if self._reading else 0) | (WRITABLE if self._queued else 0)
        if mask != self._mask:
            self._mask = mask
            self._server.loop.watch(self._peer.fileno(), mask, self._serve)

    def _close_if_done(self) -> None:
        if not (self.closed or self._reading or self._queued or self._under_way):
            self.close()

    def _serve(self, events: int) -> None:
        if events & WRITABLE:
            self._write()
        if not self.closed and self._reading and events & (READABLE | HUNG_UP):
            self._read()
        elif events & HUNG_UP:
            self.close()
        self._close_if_done()

    def _write(self) -> None:
        try:
            sent = self._peer.send(self._queued) if self._queued else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # it has gone
            self.close()
            return
        del self._queued[:sent]
        self._watch()

    def _read(self) -> None:
        try:
            chunk = self._peer.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not chunk:
            self._reading = False
            self._watch()
            return
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        for line in lines:
            if self._reading and not self.closed:
                self._request(bytes(line))
        if self._reading and len(self._received) > MAX_REQUEST:
            self.end_with(UsageError(f"a request is one line of at most {MAX_REQUEST} bytes"))

    def _request(self, line: bytes) -> None:
        try:
            request_id, method, params = _parse(line)
        except UsageError as error:
            self.end_with(error)
            return
        if len(self._under_way) >= MAX_UNDER_WAY:
            self.end_with(NsbridgeError(f"more than {MAX_UNDER_WAY} requests of one connection are not answered yet"))
            return
        answer = Answer(self, request_id)
        self._under_way.add(answer)
        try:
            if self._caller.right < Right.CONTROL and method not in READING_METHODS:
                refusal = _refusal(self._server.config, self._caller, method.replace("_", " "))
                self._server.note_refusal(refusal[:_TOLD])
                raise NotPermittedError(refusal)
            if method not in READING_METHODS:
                self._server.audit(f"uid {self._caller.uid} asks to {_told(method, params)}")
            self._server.api.call(method, params, answer)
        except NsbridgeError as error:
            answer.error(error)
        except Exception as bug:  # noqa: BLE001  (a request must never end the daemon, and the next one may do better)
            self._server.notice(f"bug: {method} failed: {_place(bug)}")
            answer.error(NsbridgeError(f"nsbridged failed in {method}: a bug, of which its log says more"))


def _parse(line: bytes) -> tuple[object, str, dict[str, object]]:
    if len(line) > MAX_REQUEST:
        raise UsageError(f"a request is one line of at most {MAX_REQUEST} bytes")
    try:
        request = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise UsageError("a request is one line of JSON in UTF-8") from None
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object with id, method and params")
    request_id, method, params = request.get("id"), request.get("method"), request.get("params", {})
    if not isinstance(request_id, int | str) or not isinstance(method, str) or not isinstance(params, dict):
        raise UsageError("a request has an id (number or string), a method (string) and params (object)")
    return request_id, method, params


def _error(request_id: object, error: NsbridgeError) -> dict[str, object]:
    return {"id": request_id, "error": {"code": error.exit_code or EXIT_FAILED, "message": str(error)}}


def _refusal(config: ControlConfig, caller: Caller, what: str) -> str:
    return (
        f"uid {caller.uid} is not permitted to {what}: only root and members of group {config.group} may control, "
        f"members of group {config.read_group} may look"
    )


def _told(method: str, params: dict[str, object]) -> str:
    """A request for the log, its words cut."""
    words = [str(value) for key in ("names", "ids", "id") if (value := params.get(key))]
    return " ".join([method.replace("_", " "), *words, *(["(dry run)"] if params.get("dry_run") else [])])[:_TOLD]


def _place(bug: Exception) -> str:
    """The exception and where it was raised, in one line."""
    trace = bug.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(bug).__name__}: {bug}{where}"
