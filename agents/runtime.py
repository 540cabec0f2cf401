"""Runs an agent that has entered its container: it relays between its endpoint and the other agent until it exits.

The runtime joins the parts and has no policy of its own: the session decides about messages, the endpoint about its
container, the supervisor about life and death.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from nsbridge.agents import control, linux, scoreboard
from nsbridge.agents.confinement import entry
from nsbridge.agents.confinement.entry import Assignment, Entered
from nsbridge.agents.dead.keeper import DeadLetterKeeper
from nsbridge.agents.dead.retries import DeadLetterRetries
from nsbridge.agents.endpoints.base import Blocked, Sink, Source
from nsbridge.agents.endpoints.kind import ServedEndpoint
from nsbridge.agents.heartbeat import Heart, Voucher
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.journal import sinkjournal
from nsbridge.agents.journal.pending import PendingGauge
from nsbridge.agents.journal.state import AgentFiles
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.loop import READABLE, Loop
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.peerlink import PeerLink
from nsbridge.agents.session import Session
from nsbridge.agents.tap import TapWriter
from nsbridge.agents.waiting import WaitReport
from nsbridge.agents.wire import VOID, Message, Run


class Agent:
    """The Host of an endpoint: one socket to the other agent, one to the supervisor, one loop."""

    def __init__(
        self,
        loop: Loop,
        assignment: Assignment,
        channel: socket.socket,
        entered: Entered,
        served: ServedEndpoint[Any],
        state: AgentFiles,
    ) -> None:
        self.loop = loop
        self.name, self.container = assignment.agent.name, str(assignment.agent.container)
        self._assignment = assignment
        self._entered = entered
        self._served = served
        self._channel = channel
        self._blocked_in = ""  # what the sink itself waits for
        self._draining = self._drained = False
        self._unshown = False  # True while the scoreboard is behind the sink's journal
        self._cells = assignment.scoreboard.cells
        self._heart = Heart(self.loop, self._cells, assignment.beat_every)
        self._tap = TapWriter(assignment.scoreboard.tap)
        window, names = assignment.route.window, assignment.agent.endpoint.keeps_names
        self._state, self._journal, self.state_dir = state, state.sink, assignment.state_dir
        self.syncs = assignment.route.fsync
        self._synced = 0  # the last seq whose record is on the disk, where that is asked for
        self._waits = WaitReport(loop, assignment.scoreboard.set_reason, self._report_blocked)
        sync = (lambda: linux.syncfs(state.dead)) if assignment.route.fsync else None
        self._dead = DeadLetterKeeper(self, state.dead, state.sink, assignment.dead, sync)
        served.joined(self, entered, state.counter)
        self._source: Source | None = served.source(self, state.source) if state.source is not None else None
        self._sink: Sink | None = served.sink(self, state.sink) if state.sink is not None else None
        self.store = self._source.store if self._source is not None else None
        self._pending = PendingGauge(state.source, self._cells, self.loop.now) if state.source is not None else None
        self._confirmed = -1  # the last seq of which the source was informed
        outgoing = Outgoing(self.store, window) if self.store is not None else None
        incoming = Incoming(state.sink, window, self._sink.may_adopt, names) if state.sink and self._sink else None
        self._session = Session(int.from_bytes(os.urandom(8)) | 1, outgoing, incoming)
        fsync = self._sync if assignment.route.fsync else None
        self._link = PeerLink(self.loop, assignment.peer_fd, self._show_late, fsync)
        self._dead_retries = DeadLetterRetries(state.dead_retry, self.store, self, fsync=fsync) if self.store else None

    def run(self) -> None:
        """Serve until the supervisor says exit, or is gone."""
        self.show_counters()
        self.loop.watch(self._channel.fileno(), READABLE, self._read_control)
        self._link.start(self._session, self._received)
        self._heart.beat()
        self._heart.vouch(self._recheck)
        if self._pending is not None:
            self._heart.vouch(self._pending.note)
        if self._dead_retries is not None:
            self._dead_retries.settle()
        with self.loop.lock:
            if self._sink is not None:
                self._sink.start()
            if self._source is not None:
                self._source.start()
            self._dead.start()
            self.retry_dead_letters()
            self.flush()
            self._heart.start()
        confined = self._entered.confined
        for what, why in confined.lacks.items():
            self.log("warning", f"runs without {what}: {why}")
        about = {"uid": os.getuid(), "gid": os.getgid(), "places": self._served.ends()}
        control.send(
            self._channel, report="ready", ns_inode=self._entered.ns_inode, landlock=confined.landlock, **about
        )
        gc.freeze()
        self.loop.run()
        if self._pending is not None:
            self._pending.note()

    # What the endpoint calls (endpoints/base.py, Host)

    def guarded(self) -> AbstractContextManager[object]:
        """See AgentApi."""
        return self.loop.lock

    def has_room(self) -> bool:
        """See AgentApi."""
        outgoing = self._session.outgoing
        return outgoing is not None and not self._draining and outgoing.has_room()

    def take(self, message: Message, note: bytes = b"") -> int:
        """See AgentApi."""
        assert self.store is not None  # noqa: S101  (there is a source)
        try:
            if isinstance(self.store, NoteStore) and note:
                seq = self.store.note(message.type, (message.body,), note)
            else:
                seq = self.store.append(message)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        self.landed(seq)
        return seq

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        outgoing = self._session.outgoing
        return (0, 0) if outgoing is None or self._draining else outgoing.room()

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """See AgentApi."""
        outgoing = self._session.outgoing
        return 0 if outgoing is None or self._draining else outgoing.room_for(bodies)

    def take_run(self, bodies: Sequence[bytes], note: bytes) -> int:
        """See AgentApi."""
        assert isinstance(self.store, NoteStore)  # noqa: S101  (only sources of notes take runs)
        try:
            seq = self.store.note(0, bodies, note)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        self.landed(seq)
        return seq

    def retry_dead_letters(self) -> None:
        """See AgentApi."""
        if self._dead_retries is not None and self._source is not None:
            self._dead_retries.take(self._source.lend)

    def landed(self, seq: int) -> None:
        """See AgentApi."""
        assert self._pending is not None  # noqa: S101  (there is a source)
        self._heart.beat()  # on a slow disk a pass of the loop may last long, and is all right while it gets on
        self._pending.landed(seq, self._cells[scoreboard.BEAT])

    def missed(self, files: int, size: int) -> None:
        """See AgentApi."""
        self._cells[scoreboard.MISSED], self._cells[scoreboard.MISSED_BYTES] = files, size

    def flush(self) -> None:
        """See AgentApi."""
        self._link.flush()
        if self._draining:
            self._report_if_drained()

    def _show_late(self) -> None:
        if self._unshown:
            self.show_counters()

    def _sync(self) -> None:
        """Sync, as a group commit: what the next packets report to the other agent is on the disk before they leave."""
        if self.store is not None and self._synced != self.store.taken:
            self._synced = self.store.taken
            os.fdatasync(self._state.source_fd)
        incoming = self._session.incoming
        if incoming is not None and incoming.ack_due and self._sink is not None:
            if self._sink.descriptor() >= 0:
                linux.syncfs(self._sink.descriptor())
            os.fdatasync(self._state.sink_fd)

    def handed(self, run: Run) -> None:
        """See AgentApi."""
        self._settle(run)
        if self._cells[scoreboard.TAPPED]:
            self._tap.put(run, self._cells[scoreboard.BEAT])

    def _settle(self, run: Run) -> None:
        """Count the messages as handed over: they were, or they became dead letters, or are none."""
        incoming, journal = self._session.incoming, self._journal
        assert incoming is not None and journal is not None  # noqa: S101, PT018  (there is a sink)
        self._heart.beat()  # see landed
        incoming.handed(run)
        journal.cells[sinkjournal.BYTES] += run.size
        if not self._unshown:
            self._unshown = True
            self._link.do_late()
        if self._dead.reason:
            self._dead.clear()

    def dead(self, one: Run, where: str, why: str) -> bool:
        """See AgentApi."""
        is_new = self._dead.put(one, where, why)
        if is_new is None:
            return False
        if is_new:
            control.send(self._channel, report="dead", text=f"message {one.first}: {where}: {why}")
        self._settle(one)
        return True

    def senders(self, pids: tuple[int, ...]) -> None:
        """See AgentApi."""
        entry.forbid_forks(self._assignment, self._entered.confined)
        for which, pid in enumerate(pids):
            self._cells[scoreboard.SENDERS + which] = pid

    def confine_sender(self) -> None:
        """See AgentApi."""
        entry.confine_sender(self._assignment, self._entered.confined)

    def vouch(self, voucher: Voucher) -> None:
        """See AgentApi."""
        self._heart.vouch(voucher)

    def put_back(self, run: Run) -> None:
        """See AgentApi."""
        assert self._session.incoming is not None  # noqa: S101  (there is a sink)
        self._session.incoming.put_back(run)

    def sink_ready(self) -> None:
        """See AgentApi."""
        self._hand_over()
        self.flush()

    def blocked(self, side: str, reason: str) -> None:
        """See AgentApi. The reason may be that the endpoint belongs to another user now."""
        if reason:
            self._entered.around.recheck()
        if side == "in":
            self._blocked_in = reason
            self.show_blocked()
        else:
            self._waits.set(side, reason)

    def show_blocked(self) -> None:
        """Show what the sink waits for: room for a dead letter, or its own reason."""
        self._waits.set("in", "; ".join(filter(None, (self._dead.reason, self._blocked_in))))

    def _report_blocked(self) -> None:
        control.send(self._channel, report="blocked")

    def _recheck(self) -> float:
        self._entered.around.recheck()
        return self.loop.now()

    def notice(self, side: str, text: str) -> None:
        """See AgentApi."""
        self._assignment.scoreboard.set_notice(side, text)

    def refused(self, count: int, total: int) -> None:
        """See AgentApi."""
        self._cells[scoreboard.REFUSED], self._cells[scoreboard.REFUSED_TOTAL] = count, total

    def report_refused(self, text: str, *, moved: bool) -> None:
        """See AgentApi."""
        control.send(self._channel, report="refused", text=text[:2000], moved=moved)

    def renew_socket(self) -> None:
        """See AgentApi."""
        control.send(self._channel, report="renew")

    def files_waiting(self, count: int) -> None:
        """See AgentApi."""
        self._cells[scoreboard.WAITING_FILES] = count

    def log(self, level: str, text: str) -> None:
        """See AgentApi."""
        control.send(self._channel, report="log", level=level, text=text[:2000])

    # What the loop calls

    def _received(self) -> None:
        incoming, store = self._session.incoming, self.store
        if incoming is not None:
            if incoming.waiting:
                self._hand_over()
            if incoming.repeats_dropped:
                self.show_counters()
        if store is not None and self._confirmed != store.confirmed:
            self._release(store.confirmed)
        self.flush()

    def _release(self, confirmed: int) -> None:
        """Let the source release what is confirmed, and take what there is room for now."""
        assert self._source is not None and self._pending is not None  # noqa: S101, PT018  (there is a store)
        if self._session.has_more():
            self._link.flush()  # what the journal has goes first: removing files and taking more takes longer
        self._pending.confirmed()
        self._source.confirmed(confirmed)
        if self._session.greeted:
            self._confirmed = confirmed
            if self.has_room():
                self.retry_dead_letters()
                self._source.room_again()

    def _hand_over(self) -> None:
        incoming = self._session.incoming
        if incoming is None or self._sink is None:
            return
        waiting = incoming.waiting
        while waiting:
            run = waiting[0]
            count = self._put(incoming, run)
            incoming.accepted(count)
            if count < len(run.bodies):
                break

    def _put(self, incoming: Incoming, run: Run) -> int:
        if run.type != VOID.type:
            assert self._sink is not None  # noqa: S101  (asked by _hand_over)
            return self._sink.put(run)
        if incoming.in_flight():
            return 0  # in its turn
        assert self._journal is not None  # noqa: S101  (there is a sink)
        self._journal.cells[sinkjournal.NOT_DELIVERED] += len(run.bodies)
        self._settle(run)
        return len(run.bodies)

    def show_counters(self) -> None:
        """Put what the journals know where the supervisor sees it."""
        self._unshown = False
        if self._journal is not None and self._session.incoming is not None:
            self._journal.cells[sinkjournal.REPEATS] += self._session.incoming.repeats_dropped
            self._session.incoming.repeats_dropped = 0
            self._journal.show(self._cells)

    def _read_control(self, _events: int) -> None:
        fields = control.parse(self._channel.recv(control.MAX_SIZE))
        order = fields.get("order", "exit")  # end of file: the supervisor is gone
        if order == "drain":
            self._draining = self._link.acks_at_once = True
            self._report_if_drained()
        elif order == "retry_dead" and self._dead_retries is not None:
            self._dead_retries.due = True
            self.retry_dead_letters()
            self.flush()
        elif order == "dead":
            self._dead.adopt(control.dead_limits(fields))
        elif order == "letters":
            self._dead.changed()
        elif order == "exit":
            self._link.flush_all()
            self.show_counters()
            self.loop.stop()

    def _report_if_drained(self) -> None:
        if not self._draining or self._drained or self._link.unsent:
            return
        outgoing, incoming = self._session.outgoing, self._session.incoming
        if outgoing is not None and outgoing.store.taken != outgoing.store.confirmed:
            return
        if incoming is not None and not incoming.idle():
            return
        if self._source is not None and not self._source.stop_taking():
            return
        self.show_counters()
        self._drained = control.send(self._channel, report="drained")
