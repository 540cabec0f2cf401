"""The control socket: JSON lines over AF_UNIX, answered in the supervisor's loop.

A request is `{"id": 1, "method": "status", "params": {}}`. It is answered by `{"id": 1, "result": ...}` or
`{"id": 1, "error": {"code": 5, "message": "..."}}`; before that, a stream sends `{"id": 1, "item": ...}` any number of
times. `code` is the exit code of config/errors.py. An error of the connection itself has id null and ends it. One
connection's requests are served one after the other (connection.py).

A user with many requests does not delay other users: users take turns, one request each, and after SLICE the loop
serves agents and timers first. A child answers requests that are long or may hang (errands.py).

Some facts about AF_UNIX and what they mean here:
* A caller may shut down only its writing side (nc, socat) and still read: end of file is not the end of the
  connection; EPOLLHUP is. It is reported whether asked for or not.
* Under EMFILE a waiting connection stays readable indefinitely: accepting is paused, or the loop would spin.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from nsbridge.agents import limits
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control import listener
from nsbridge.supervisor.control.access import Access, Caller, Right
from nsbridge.supervisor.control.answer import ControlApi
from nsbridge.supervisor.control.connection import Connection
from nsbridge.supervisor.control.errands import Errands
from nsbridge.supervisor.control.request import refusal
from nsbridge.supervisor.control.turns import Turns

MAX_CLIENTS = 256
MAX_FOLLOWERS = 64  # endless streams of all connections: each costs a write for every line of the log
MAX_STREAMS = 8  # endless answers that children write (taps): each is a process
KEPT_FOR_ROOT = 16  # of both, so that other users cannot keep root out
KEPT_FOR_CONTROL = 16  # of both: so that callers who may only look cannot block callers who may control
SLICE = 0.005  # seconds of requests, then the rest of the supervisor has its turn
ACCEPT_PAUSE = 1.0  # seconds without accepting after EMFILE and its like
REFUSAL_PAUSE = 10.0  # seconds between two lines in the log about callers who were refused
_BATCH = 16  # connections taken at one event

Notice = Callable[[str], None]


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
        self._connections: set[Connection] = set()
        self.errands = Errands(loop)
        self.streams = Errands(loop, MAX_STREAMS, MAX_STREAMS)
        self._turns: Turns[Connection] = Turns()
        self._turn_is_due = False
        self._quiet_until = 0.0  # loop time; refused callers must not fill the log

    @property
    def access(self) -> Access:
        """Return the access rules; call it only when the socket is open."""
        assert self._access is not None  # noqa: S101  (connections exist only after open)
        return self._access

    def open(self) -> None:
        """Make the socket and serve it. ConfigError, NsbridgeError if there is no way, or another daemon has it."""
        self._access = Access.of(self.config)
        self._listener, self._inode = listener.listen(self.config, self._access, self.notice)
        self._watch_listener()

    def restore(self) -> bool:
        """Make the socket again if it was removed or replaced; return True then.

        Callers stay connected. Raises NsbridgeError if it cannot be made, or another daemon listens there now.
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

    def forget(self, connection: Connection) -> None:
        """Remove a connection that has closed; only the connection itself calls this."""
        self._connections.discard(connection)

    def enlist(self, connection: Connection) -> None:
        """Note that a connection has a request that waits for its turn; only the connection itself calls this."""
        self._turns.add(connection.caller.uid, connection)
        self._call_turns()

    def may_follow(self, caller: Caller) -> bool:
        """True if one more stream without end can be served to that caller."""
        followed = sum(connection.followed for connection in self._connections)
        return followed < MAX_FOLLOWERS - _kept_from(caller)

    def _call_turns(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self.loop.call_later(0, self._take_turns)

    def _take_turns(self) -> None:
        """Serve requests for at most SLICE; then agents and timers have their turn."""
        self._turn_is_due = False
        end = self.loop.now() + SLICE
        while (connection := self._turns.next()) is not None:
            connection.serve_one()
            if self.loop.now() >= end:
                break
        if self._turns:
            self._call_turns()

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
        connection = Connection(self, peer, caller)
        self._connections.add(connection)
        if caller.right is Right.NOTHING:
            self.note_refusal(f"refused uid {caller.uid} on the control socket: it is in neither of its groups")
            connection.end_with(NotPermittedError(refusal(self.config, caller, "use this socket")))
        elif len(self._connections) > MAX_CLIENTS - _kept_from(caller):
            serving = len(self._connections) - 1
            connection.end_with(NsbridgeError(f"nsbridged already serves {serving} callers; try again later"))

    def note_refusal(self, line: str) -> None:
        """Give the log a line about a caller who was refused, not more often than every REFUSAL_PAUSE."""
        now = self.loop.now()
        if now >= self._quiet_until:
            self._quiet_until = now + REFUSAL_PAUSE
            self.notice(line)


def _kept_from(caller: Caller) -> int:
    """Return the number of places kept for callers with more rights."""
    return (KEPT_FOR_ROOT if caller.uid else 0) + (0 if caller.right is Right.CONTROL else KEPT_FOR_CONTROL)
