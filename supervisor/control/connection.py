"""One connection of the control socket: its unanswered requests, its unread answers, its streams.

No caller can make the supervisor wait or grow. Nothing blocks. The constants below bound a request, the requests in
flight and the queued bytes; a caller beyond these bounds loses its connection. A connection reads no further request
before those that it has read had their turns (server.py decides the turns). A request has its turn only when at most
MAX_UNREAD bytes of earlier answers are unread.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from nsbridge.agents.loop import HUNG_UP, READABLE, WRITABLE, Loop
from nsbridge.config.errors import NotPermittedError, NsbridgeError, UsageError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control.access import Caller, Right
from nsbridge.supervisor.control.answer import Answer, ControlApi, error_line
from nsbridge.supervisor.control.errands import Errand, Errands, Job, Outcome
from nsbridge.supervisor.control.request import MAX_LOGGED, MAX_REQUEST, TOO_LONG, parse, place, refusal, summary

READING_METHODS = frozenset({"status", "overview", "tail", "events", "inspect", "top", "version", "dead_list"})

MAX_UNREAD = 64 << 10  # bytes of answers that wait to be read when the next request is served
MAX_QUEUED = 4 << 20  # bytes that wait to be read by a caller
MAX_UNDER_WAY = 64  # requests of one connection that are not answered yet
MAX_FOLLOWED = 4  # endless streams of one connection


class Server(Protocol):
    """The part of the ControlServer that a connection uses."""

    loop: Loop
    config: ControlConfig
    api: ControlApi
    errands: Errands
    streams: Errands
    notice: Callable[[str], None]
    audit: Callable[[str], None]

    def forget(self, connection: Connection) -> None:
        """Remove a connection that has closed."""

    def note_refusal(self, line: str) -> None:
        """Log a line about a refused caller."""

    def enlist(self, connection: Connection) -> None:
        """Note that the connection has a request that waits for its turn."""

    def may_follow(self, caller: Caller) -> bool:
        """True if one more stream without end can be served to that caller."""
        ...


class Connection:
    """One caller: its unserved requests, its unread answers, its streams."""

    def __init__(self, server: Server, peer: socket.socket, caller: Caller) -> None:
        self.closed = False
        self.caller = caller
        self._server = server
        self._peer = peer
        self._received = bytearray()
        self._requests: deque[bytes] = deque()  # whole lines that wait for their turns
        self._queued = bytearray()
        self._under_way: set[Answer] = set()
        self._followed: set[Answer] = set()  # endless streams
        self._errand: Errand | None = None  # a child that has the socket for now
        self._waits_for_room: Errand | None = None  # it gets the socket when the queue has been written
        self._is_enlisted = False  # its next request waits for its turn
        self._reading = True  # False: end of file, or no more requests are accepted
        self._mask = -1
        self._watch()

    @property
    def followed(self) -> int:
        """Return the number of endless streams to this caller."""
        return len(self._followed)

    def serve_one(self) -> None:
        """Serve the request whose turn it is; the next one gets its own turn."""
        self._is_enlisted = False
        if self._may_serve and not self.closed:
            self._request(self._requests.popleft())
        self._resume()

    def send(self, message: dict[str, object], limit: int = MAX_QUEUED) -> None:
        """Queue `message`; with more than `limit` bytes waiting, close the connection."""
        if self.closed:
            return
        self._queued += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if self._errand is None:
            self._write()
        if len(self._queued) > limit:
            self.close()

    def finish(self, answer: Answer, message: dict[str, object]) -> None:
        """Send the last message of `answer`."""
        self._forget(answer)
        self.send(message)
        self._close_if_done()

    def end_with(self, error: NsbridgeError) -> None:
        """Report `error` about the connection itself, read no more, and close once the error has been read."""
        self._reading = False
        self._received.clear()
        self._requests.clear()
        self._abandon()
        self._watch()
        self.send(error_line(None, error))
        self._close_if_done()

    def close(self) -> None:
        """Close the connection now, without flushing."""
        if self.closed:
            return
        self.closed = True
        self._server.loop.unwatch(self._peer.fileno())
        self._peer.close()
        self._server.forget(self)
        self._abandon()

    def lend_to_stream(self, answer: Answer, job: Job) -> None:
        """Let a child answer for as long as it likes; see `lend`."""
        if self._server.streams.is_full:
            job.gone()
            raise NsbridgeError("nsbridged serves as many taps as it can; end one, or try again later")
        self.lend(answer, job, None, self._server.streams)

    def lend(
        self, answer: Answer, job: Job, otherwise: Callable[[], None] | None, errands: Errands | None = None
    ) -> None:
        """Let a child answer: it gets the socket once the queue is empty, and nothing else is sent meanwhile."""
        end = partial(self._returned, answer, otherwise)
        errand = Errand(errands or self._server.errands, self.caller.uid, self._peer.fileno(), job, end)
        if self._queued:
            self._waits_for_room = errand
        else:
            self._hand_over(errand)

    def follow(self, answer: Answer) -> None:
        """See Answer."""
        if len(self._followed) >= MAX_FOLLOWED:
            raise NsbridgeError(f"one connection can follow {MAX_FOLLOWED} streams at most")
        if not self._server.may_follow(self.caller):
            raise NsbridgeError("nsbridged serves as many streams as it can; end one, or try again later")
        self._followed.add(answer)

    @property
    def _may_serve(self) -> bool:
        return bool(self._requests) and not self._has_lent and len(self._queued) <= MAX_UNREAD

    @property
    def _has_lent(self) -> bool:
        return self._errand is not None or self._waits_for_room is not None

    def _hand_over(self, errand: Errand) -> None:
        self._waits_for_room, self._errand = None, errand
        self._watch()
        errand.enlist()

    def _returned(self, answer: Answer, otherwise: Callable[[], None] | None, outcome: Outcome) -> None:
        """Continue after the child has ended, or hangs and will never run again."""
        self._errand = None
        if self.closed:
            return
        if outcome is Outcome.BROKEN:
            self.close()
            return
        if outcome is Outcome.DONE:
            answer.was_sent()
            self._forget(answer)
        elif otherwise is not None:
            otherwise()
        else:
            answer.error(NsbridgeError("no answer in time: the request asks for too much, or something hangs"))
        if self._errand is None:
            self._write()
            self._close_if_done()
        self._resume()

    def _resume(self) -> None:
        """Schedule the next request, or continue to read."""
        if self.closed:
            return
        self._enlist()
        self._watch()
        self._close_if_done()

    def _enlist(self) -> None:
        if self._may_serve and not self._is_enlisted:
            self._is_enlisted = True
            self._server.enlist(self)

    def _forget(self, answer: Answer) -> None:
        self._under_way.discard(answer)
        self._followed.discard(answer)

    def _drop_errand(self) -> None:
        for errand in (self._errand, self._waits_for_room):
            if errand is not None:
                errand.abandon()
        self._errand = self._waits_for_room = None

    def _abandon(self) -> None:
        self._drop_errand()
        self._followed.clear()
        while self._under_way:
            self._under_way.pop().abandon()

    def _watch(self) -> None:
        if self.closed:
            return
        reads = self._reading and not self._requests and not self._has_lent
        mask = (READABLE if reads else 0) | (WRITABLE if self._queued and self._errand is None else 0)
        if mask != self._mask:
            self._mask = mask
            self._server.loop.watch(self._peer.fileno(), mask, self._serve)

    def _close_if_done(self) -> None:
        if not (self.closed or self._reading or self._queued or self._under_way or self._requests):
            self.close()

    def _serve(self, events: int) -> None:
        if events & WRITABLE:
            self._write()
        if not self.closed and self._reading and not self._requests and events & (READABLE | HUNG_UP):
            self._read()
        elif events & HUNG_UP and self._requests:  # serve them although the answers cannot be read
            self._drop_errand()
            self._resume()
        elif events & HUNG_UP:
            self.close()
        self._close_if_done()

    def _write(self) -> None:
        try:
            sent = self._peer.send(self._queued) if self._queued else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # the caller has gone
            self.close()
            return
        del self._queued[:sent]
        if not self._queued and self._waits_for_room is not None:
            self._hand_over(self._waits_for_room)
        self._enlist()
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
        self._requests.extend(map(bytes, lines))
        if not self._requests and len(self._received) > MAX_REQUEST:
            self.end_with(TOO_LONG)
        self._resume()

    def _request(self, line: bytes) -> None:
        try:
            request_id, method, params = parse(line)
        except UsageError as error:
            self.end_with(error)
            return
        if len(self._under_way) >= MAX_UNDER_WAY:
            self.end_with(NsbridgeError(f"more than {MAX_UNDER_WAY} requests of one connection are not answered yet"))
            return
        answer = Answer(self, request_id)
        self._under_way.add(answer)
        try:
            if self.caller.right < Right.CONTROL and method not in READING_METHODS:
                why = refusal(self._server.config, self.caller, method.replace("_", " "))
                self._server.note_refusal(why[:MAX_LOGGED])
                raise NotPermittedError(why)
            if method not in READING_METHODS:
                self._server.audit(f"uid {self.caller.uid} asks to {summary(method, params)}")
            self._server.api.call(method, params, answer)
        except NsbridgeError as error:
            answer.error(error)
        except Exception as bug:  # noqa: BLE001  (a request must never end the daemon, and the next one may do better)
            self._server.notice(f"bug: {method} failed: {place(bug)}")
            answer.error(NsbridgeError(f"nsbridged failed in {method}: this is a bug; its log has the details"))
