"""An agent's main: enters its container, then relays between its endpoint and the other agent until told to exit.

The runtime joins the parts and has no policy of its own: the session decides about messages, the endpoint about its
container, the supervisor about life and death.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NoReturn

from nsbridge.agents import control, entry, linux, scoreboard, sides, sinkjournal
from nsbridge.agents.dead import DeadLetters
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.entry import Assignment, Entered
from nsbridge.agents.fork import EXIT_AGAIN, EXIT_NEVER
from nsbridge.agents.heartbeat import Heart, Voucher
from nsbridge.agents.journalfile import NewerVersionError
from nsbridge.agents.loop import READABLE, WRITABLE, Loop
from nsbridge.agents.retries import Retries
from nsbridge.agents.session import Arrived, Incoming, Outgoing, Session
from nsbridge.agents.sides import Keys
from nsbridge.agents.state import State, open_state
from nsbridge.agents.store import NoteStore
from nsbridge.agents.wire import MAX_PACKET, VOID, Message, WireError

_PACKETS_AT_ONCE = 8  # read before what came is handed over and confirmed


def main(assignment: Assignment) -> int:
    """Be the agent; returns the exit code. Nothing is raised: the supervisor is told in the last words."""
    channel = socket.socket(fileno=assignment.control_fd)
    try:
        sys.setswitchinterval(0.0005)  # s; a thread that wakes with a message waits at most that for the other
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease; its default would kill
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # a terminal's are for the supervisor
            signal.signal(signum, signal.SIG_IGN)
        own_fds = entry.leave_the_supervisor(assignment)
        window = assignment.route.window
        state = open_state(assignment.state_dir, assignment.agent, window, lambda text: _report(channel, text))
        assignment.scoreboard.begin()  # it may have waited for the earlier agent to be gone
        keys = sides.queue_keys(assignment)
        entered = entry.enter(assignment, own_fds, state.given, lambda: sides.look_around(assignment, keys))
        threading.excepthook = lambda args: _crash(channel, args.exc_value)
        sys.unraisablehook = lambda about: _report(channel, f"ignored: {_described(about.exc_value)}"[:1000])
        agent = Agent(assignment, channel, entered, keys, state)
        agent.run()
        return 0
    except (entry.Refused, NewerVersionError) as error:
        control.say(channel, say="error", text=str(error)[:1000])
        return EXIT_NEVER
    except entry.Gone as error:
        control.say(channel, say="error", text=str(error))
        return EXIT_AGAIN
    except (WireError, OSError) as error:
        control.say(channel, say="error", text=f"{type(error).__name__}: {error}"[:1000])
        return EXIT_AGAIN
    except BaseException as error:  # noqa: BLE001  (an agent has nobody to raise to)
        _crash(channel, error)


def _crash(channel: socket.socket, error: BaseException | None) -> NoReturn:
    control.say(channel, say="error", text=f"internal error: {_described(error)}"[:1000])
    os._exit(EXIT_AGAIN)


def _described(error: BaseException | None) -> str:
    """What went wrong and where, without a file being opened: a traceback would read its lines from the container."""
    where = []
    trace: TracebackType | None = error.__traceback__ if error else None
    while trace is not None:
        where.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} at {' > '.join(where)}"


def _report(channel: socket.socket, text: str) -> None:
    control.say(channel, say="log", level="error", text=text)


class Agent:
    """The Host of an endpoint: one socket to the other agent, one to the supervisor, one loop."""

    def __init__(
        self, assignment: Assignment, channel: socket.socket, entered: Entered, keys: Keys, state: State
    ) -> None:
        self.loop = Loop()
        self.name = assignment.agent.name
        self._assignment = assignment
        self._entered = entered
        self._channel = channel
        self._peer = socket.socket(fileno=assignment.peer_fd)
        self._peer.setblocking(False)
        self._unsent = b""
        self._cells = assignment.scoreboard.cells
        self._heart = Heart(self.loop, self._cells, assignment.beat_every)
        self._draining = False
        self._drained = False
        endpoint = assignment.agent.endpoint
        window = assignment.route.window
        self._journal = state.sink
        self._state = state
        self._synced = 0  # the last seq whose record is on the disk, where that is asked for
        self._dead = DeadLetters(state.dead)
        self.store = sides.store(endpoint, state.source)
        outgoing = Outgoing(self.store, window) if self.store is not None else None
        incoming = Incoming(state.sink, window) if state.sink is not None else None
        self._session = Session(int.from_bytes(os.urandom(8)) | 1, outgoing, incoming)
        self._source, self._sink = sides.make(self, assignment, entered, keys, state)
        self._retries: Retries | None = None
        if self.store is not None:
            fsync = self._sync if assignment.route.fsync else None
            self._retries = Retries(state.retry, self.store, self, fsync=fsync)

    def run(self) -> None:
        """Serve until the supervisor says exit, or is gone."""
        self._show_counters()
        for side in ("out", "in"):
            self.blocked(side, "")
        self.loop.watch(self._channel.fileno(), READABLE, self._read_control)
        self.loop.watch(self._peer.fileno(), READABLE, self._peer_ready)
        self._heart.beat()
        if self._retries is not None:
            self._retries.settle()
        with self.loop.lock:
            if self._sink is not None:
                self._sink.start()
            if self._source is not None:
                self._source.start()
            self.retry()
            self.flush()
            self._heart.start()
        confined = self._entered.confined
        for what, why in confined.lacks.items():
            self.log("warning", f"runs without {what}: {why}")
        who = {"uid": os.getuid(), "gid": os.getgid()}
        control.say(self._channel, say="ready", ns_inode=self._entered.ns_inode, landlock=confined.landlock, **who)
        gc.freeze()
        self.loop.run()

    # What the endpoint calls (endpoints/base.py, Host)

    def guarded(self) -> AbstractContextManager[object]:
        """See Host."""
        return self.loop.lock

    def has_room(self) -> bool:
        """See Host."""
        outgoing = self._session.outgoing
        return outgoing is not None and not self._draining and outgoing.has_room()

    def take(self, message: Message, note: bytes = b"") -> int:
        """See Host."""
        assert self.store is not None  # noqa: S101  (there is a source)
        try:
            if isinstance(self.store, NoteStore) and note:
                seq = self.store.note(message, note)
            else:
                seq = self.store.append(message)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        self.landed(seq)
        return seq

    def retry(self) -> None:
        """See Host."""
        if self._retries is not None and self._source is not None:
            self._retries.take(self._source.lend)

    def landed(self, seq: int) -> None:
        """See Host."""
        assert self.store is not None  # noqa: S101  (there is a source)
        self._heart.beat()  # on a slow disk a pass of the loop may last long, and is all right while it gets on
        self._cells[scoreboard.TAKEN] = seq
        self._cells[scoreboard.PENDING] = seq - self.store.confirmed

    def flush(self) -> None:
        """See Host."""
        if self._unsent:
            return  # the socket is full; _peer_ready goes on
        if self._assignment.route.fsync:
            self._sync()
        while packet := self._session.next_packet():
            try:
                self._peer.send(packet)
            except BlockingIOError:
                self._unsent = packet
                self.loop.watch(self._peer.fileno(), READABLE | WRITABLE, self._peer_ready)
                return

    def _sync(self) -> None:
        """Group commit: what the next packets tell the other agent is on the disk before they go."""
        if self.store is not None and self._synced != self.store.taken:
            self._synced = self.store.taken
            os.fdatasync(self._state.source_fd)
        incoming = self._session.incoming
        if incoming is not None and incoming.ack_due and self._sink is not None:
            if self._sink.descriptor() >= 0:
                linux.syncfs(self._sink.descriptor())
            os.fdatasync(self._state.sink_fd)

    def handed(self, arrived: Arrived) -> None:
        """See Host."""
        assert self._session.incoming is not None  # noqa: S101  (there is a sink)
        assert self._journal is not None  # noqa: S101
        self._heart.beat()  # see landed
        self._session.incoming.handed(arrived)
        self._journal.cells[sinkjournal.BYTES] += len(arrived.message.body)

    def dead(self, arrived: Arrived, where: str, why: str) -> bool:
        """See Host."""
        assert self._journal is not None  # noqa: S101  (there is a sink)
        try:
            is_new = self._dead.add(arrived, where, why)
        except OSError as error:
            self.blocked("in", f"dead letter: {error.strerror}")
            return False
        if is_new:
            if self._assignment.route.fsync:
                linux.syncfs(self._state.dead)
            self._journal.cells[sinkjournal.DEAD] += 1
            self._journal.cells[sinkjournal.NOT_DELIVERED] += 1
            self.log("warning", f"message {arrived.seq} is a dead letter: {where}: {why}")
        self.handed(arrived)
        return True

    def senders(self, pids: tuple[int, ...]) -> None:
        """See Host."""
        for which, pid in enumerate(pids):
            self._cells[scoreboard.SENDERS + which] = pid

    def vouch(self, voucher: Voucher) -> None:
        """See Host."""
        self._heart.vouch(voucher)

    def put_back(self, arrived: Arrived) -> None:
        """See Host."""
        assert self._session.incoming is not None  # noqa: S101  (there is a sink)
        self._session.incoming.put_back(arrived)

    def sink_ready(self) -> None:
        """See Host."""
        self._hand_over()
        self.flush()
        self._say_if_drained()

    def blocked(self, side: str, reason: str) -> None:
        """See Host."""
        self._assignment.scoreboard.set_reason(side, reason)

    def log(self, level: str, text: str) -> None:
        """See Host."""
        control.say(self._channel, say="log", level=level, text=text[:2000])

    # What the loop calls

    def _peer_ready(self, events: int) -> None:
        if events & WRITABLE and self._unsent:
            try:
                self._peer.send(self._unsent)
            except BlockingIOError:
                pass
            else:
                self._unsent = b""
                self.loop.watch(self._peer.fileno(), READABLE, self._peer_ready)
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = self._peer.recv(MAX_PACKET + 1)
            except BlockingIOError:
                break
            if not packet:
                raise OSError("the route's socket was closed")
            self._session.receive(packet)
        self._after_receiving()

    def _after_receiving(self) -> None:
        outgoing = self._session.outgoing
        self._hand_over()
        if outgoing is not None and self._source is not None:
            self._source.confirmed(outgoing.store.confirmed)
            self._show_counters()
            if self.has_room():
                self.retry()
                self._source.room_again()
        self.flush()
        self._say_if_drained()

    def _hand_over(self) -> None:
        incoming = self._session.incoming
        if incoming is None or self._sink is None:
            return
        waiting = incoming.waiting
        while waiting and self._put(incoming, waiting[0]):
            incoming.next()
        self._show_counters()

    def _put(self, incoming: Incoming, arrived: Arrived) -> bool:
        if arrived.message != VOID:
            assert self._sink is not None  # noqa: S101  (asked by _hand_over)
            return self._sink.put(arrived)
        if incoming.in_flight():
            return False  # in its turn
        assert self._journal is not None  # noqa: S101  (there is a sink)
        self._journal.cells[sinkjournal.NOT_DELIVERED] += 1
        self.handed(arrived)
        return True

    def _show_counters(self) -> None:
        """Put what the journals know where the supervisor sees it."""
        cells = self._cells
        if self.store is not None:
            cells[scoreboard.PENDING] = self.store.taken - self.store.confirmed
        if self._journal is not None and self._session.incoming is not None:
            kept = self._journal.cells
            kept[sinkjournal.REPEATS] += self._session.incoming.repeats_dropped
            self._session.incoming.repeats_dropped = 0
            cells[scoreboard.HANDED] = self._journal.delivered
            cells[scoreboard.HANDED_BYTES] = kept[sinkjournal.BYTES]
            cells[scoreboard.REPEATS_DROPPED] = kept[sinkjournal.REPEATS]
            cells[scoreboard.IN_DOUBT] = kept[sinkjournal.IN_DOUBT]
            cells[scoreboard.DEAD] = kept[sinkjournal.DEAD]

    def _read_control(self, _events: int) -> None:
        order = control.parse(self._channel.recv(control.MAX_SIZE)).get("do", "exit")  # end of file: nobody is there
        if order == "drain":
            self._draining = True
            self._say_if_drained()
        elif order == "retry" and self._retries is not None:
            self._retries.due = True
            self.retry()
            self.flush()
        elif order == "exit":
            self.flush()
            self.loop.stop()

    def _say_if_drained(self) -> None:
        if not self._draining or self._drained or self._unsent:
            return
        outgoing, incoming = self._session.outgoing, self._session.incoming
        if outgoing is not None and outgoing.store.taken != outgoing.store.confirmed:
            return
        if incoming is not None and not incoming.idle():
            return
        self._drained = control.say(self._channel, say="drained")
