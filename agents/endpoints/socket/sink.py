"""The `in` side of the `socket` endpoint: sends to a program's socket, and connects again when the program restarts.

The kernel counts the last system call for each message. That call sends all or nothing: a datagram, a packet, or the
last bytes of a stream's message. So after a kill the count shows which messages were sent. An empty message is the
exception.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Sink, Waiter
from nsbridge.agents.endpoints.doubt import OF_ANOTHER_LIFE
from nsbridge.agents.endpoints.evidence import SendEvidence
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.socket.binding import connect
from nsbridge.agents.endpoints.socket.calls import PreparedSend
from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType, StreamFraming
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.loop import HUNG_UP, READABLE, WRITABLE
from nsbridge.agents.wire import Run
from nsbridge.config.descriptors import closing

_AT_ONCE = 16 << 10  # bytes of a stream that the kernel takes all or not at all: they are one buffer
_LENGTH = struct.Struct(">I")
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ENOENT)
_WAITS = (errno.EAGAIN, errno.ENOBUFS)


class SocketSink(Sink):
    """Sends each message to the socket that a program has at the path."""

    def __init__(self, host: AgentApi, tree: Tree, config: SocketEndpoint, evidence: SendEvidence) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._tree = tree
        self._config = config
        self._is_stream = config.type is SocketType.STREAM
        path = os.fsencode(config.in_)
        self._directory, self._name = os.path.split(path)
        self._what = shown(path)
        self._journal = evidence.journal
        self._evidence = evidence
        self._sock: socket.socket | None = None
        self._sender: PreparedSend
        self._begun = (0, 0)  # of a stream: the seq of a message whose first bytes were sent, and how many
        self._is_full = False
        self._waiter = Waiter(host, "in", self._again)

    def start(self) -> None:
        """Connect, if the program is there."""
        self._again()

    def put(self, run: Run) -> int:
        """Send messages while there is room; then wait until the loop reports some."""
        count = 0
        while count < len(run.bodies) and self._sock is not None and not self._is_full:
            one = run.one(count)
            if not self._put(one):
                break
            count += 1
        return count

    def _put(self, one: Run) -> bool:
        """Return True if the message is finished."""
        if one.epoch != self._journal.epoch:  # its number now belongs to another
            return self._bury(one, OF_ANOTHER_LIFE)
        if one.first > self._journal.handed:  # else that was found out after the greeting
            if why := self._unfit(one.bodies[0]):
                return self._bury(one, why)
            self._evidence.begin(one.first)
            self._evidence.before(one.first)
            number = self._send(one.first, self._framed(one.bodies[0]))
            if number:
                self._evidence.not_sent(one.first)
                return self._failed(one, number)
            self._evidence.after(one.first)
        self._host.handed(one)
        return True

    def _unfit(self, body: bytes) -> str:
        if len(body) > self._config.max_message:
            return f"{len(body)} bytes are more than max_message = {self._config.max_message} of this agent"
        if self._is_stream and self._config.framing is StreamFraming.LINE and b"\n" in body:
            return "it has a newline in it, and lines are sent"
        return ""

    def _framed(self, body: bytes) -> bytes:
        if not self._is_stream:
            return body
        return body + b"\n" if self._config.framing is StreamFraming.LINE else _LENGTH.pack(len(body)) + body

    def _send(self, seq: int, data: bytes) -> int:
        """Send what is left of a message; return 0 or errno."""
        assert self._sock is not None  # noqa: S101  (asked by put)
        begun, at = self._begun
        at = at if begun == seq else 0
        try:
            while self._is_stream and len(data) - at > _AT_ONCE:
                at += self._sock.send(data[at : len(data) - _AT_ONCE])
                self._begun = (seq, at)
        except OSError as error:
            return error.errno or errno.EIO
        if not data:  # pwritev2 sends no empty message, but is counted; a kill in between repeats it
            try:
                self._sock.send(data)
            except OSError as error:
                return error.errno or errno.EIO
        sent = self._sender.send(data[at:] if at else data)
        self._begun = (0, 0) if sent >= 0 else self._begun
        return 0 if sent >= 0 else -sent

    def _failed(self, one: Run, number: int) -> bool:
        """Return True if the message is finished, as a dead letter; otherwise it is offered again later."""
        if number in _WAITS:
            assert self._sock is not None  # noqa: S101  (it has just refused)
            self._is_full = True
            self._host.blocked("in", f"{self._what} is full: its program does not read")
            self._host.loop.watch(self._sock.fileno(), WRITABLE, self._has_room)
        elif number == errno.EMSGSIZE:
            size = len(one.bodies[0])
            return self._bury(one, f"{size} bytes are more than a datagram may have (net.core.wmem_default)")
        else:
            self._leave()
            self._waiter.wait(f"{self._what}: {os.strerror(number)}: its program is gone; waiting for it")
        return False

    def _bury(self, one: Run, why: str) -> bool:
        return self._host.dead(one, self._what, why)

    def _has_room(self, _events: int) -> None:
        self._rest()
        self._host.sink_ready()

    def _rest(self) -> None:
        if self._is_full and self._sock is not None:
            self._is_full = False
            self._host.blocked("in", "")
            self._host.loop.watch(self._sock.fileno(), READABLE, self._said)

    def _leave(self) -> None:
        if self._sock is not None:
            self._host.loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._begun = (0, 0)  # a new connection gets the whole message
        self._is_full = False

    def _again(self) -> None:
        if self._sock is None:
            try:
                self._connect()
            except Blocked as reason:
                self._waiter.wait(reason)
                return
        self._waiter.done()  # before: what follows may show another reason
        self._host.sink_ready()

    def _connect(self) -> None:
        """Connect to the socket at the path. Raises Blocked."""
        directory = self._tree.open_directory(self._directory)
        try:
            fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            raise Blocked(f"no socket {self._what} in {self._host.container}: has its program started?") from None
        except OSError as error:
            raise blocked_by(error, self._what) from None
        finally:
            os.close(directory)
        with closing(fd):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise Blocked(f"{self._what} is no socket")
            self._open(fd)

    def _open(self, fd: int) -> None:
        sock = socket.socket(socket.AF_UNIX, self._config.type.number)
        sock.setblocking(False)
        number = connect(sock, self._tree.own_fds, fd)
        if number:
            sock.close()
            raise Blocked(f"{self._what}: {_refused(number)}")
        self._sock = sock
        self._sender = PreparedSend(sock.fileno())
        self._host.loop.watch(sock.fileno(), READABLE, self._said)

    def _said(self, events: int) -> None:
        """Drop what the program sends back, and notice that it has closed its end."""
        assert self._sock is not None  # noqa: S101  (else it is not watched)
        try:
            data = self._sock.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and (self._config.type is not SocketType.DATAGRAM or events & HUNG_UP):
            self._leave()
            self._again()


def _refused(number: int) -> str:
    """Return why a socket takes no connection."""
    reasons = {
        errno.ECONNREFUSED: "no program uses it; waiting for one",
        errno.EPROTOTYPE: "it is of another type than this agent's",
        errno.EAGAIN: "its program does not accept connections",
    }
    return reasons.get(number, os.strerror(number))
