"""The `in` side of the `log` endpoint: appends messages to a file, as many with one write as have come.

The crash rule: before a write, the journal says which message comes next and at which byte. After a kill, what the
file has from that byte on decides: the messages come again and are compared with what is there. Equal: it was handed
over. A part of it: the part that is missing is appended. Nothing: it is written. This holds while nsbridge is the only
one who writes to the file; if others do, or the file is gone, `in_doubt` decides.

What could only be written in part (the disk is full) is completed later, so the framing is kept for readers.
The file that is renamed away (a rotation) gets nothing any more once its rename was seen; a new one is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Sink, Waiter, put_in_parts
from nsbridge.agents.endpoints.directory import WatchedDirectory
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.log.arrivals import EVENTS
from nsbridge.agents.endpoints.log.cells import LOG_APPEND
from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.log.framing import joined
from nsbridge.agents.endpoints.log.siblings import Siblings
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt

_WRITE_AT = 256 << 10  # bytes that are not kept for the end of a turn
_FLAGS = os.O_RDWR | os.O_APPEND
_SLOT = 5  # cells of an Intent


class Intent(NamedTuple):
    """The messages `first` to `last` are appended, `first` at byte `offset` of the file `inode`."""

    epoch: int
    first: int
    last: int
    offset: int
    inode: int


class Intents:
    """The intent in the journal: two slots, and a cell that says which counts; so a change of it is one store."""

    def __init__(self, journal: SinkJournal) -> None:
        self._cells = journal.cells

    def read(self) -> Intent:
        """Return the last intent; all zeros if there never was one."""
        at = LOG_APPEND + 1 + self._cells[LOG_APPEND] % 2 * _SLOT
        return Intent(*self._cells[at : at + _SLOT])

    def note(self, intent: Intent) -> None:
        """Store the intent, which counts from now on."""
        cells = self._cells
        which = (cells[LOG_APPEND] + 1) % 2
        at = LOG_APPEND + 1 + which * _SLOT
        cells[at], cells[at + 1], cells[at + 2], cells[at + 3], cells[at + 4] = intent
        cells[LOG_APPEND] = which


class LogSink(Sink):
    """Appends each message to a file exactly once."""

    def __init__(
        self, host: AgentApi, tree: Tree, config: LogEndpoint, journal: SinkJournal, in_doubt: InDoubt
    ) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._journal = journal
        self._intents = Intents(journal)
        self._in_doubt = in_doubt
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.in_)
        self._shown = shown(self._path)
        self._parent, self._name = os.path.split(self._path)
        self._lines = config.framing is Framing.LINE
        self._directory = WatchedDirectory(host, tree, "in", self._parent, self._changed)
        self._fd = -1
        self._inode = 0
        self._path_changed = False
        self._batch: list[Run] = []  # accepted and not handed over
        self._batch_bytes = 0
        self._unwritten = memoryview(b"")  # of the batch, once its writing has begun
        self._into = -1  # where that goes
        self._due = False  # at the end of this turn the batch is written
        self._doubt: Intent | None = None  # left by an agent that was killed, and not settled
        self._doubt_fd = -1
        self._undecided = (0, 0)  # epoch, and the last seq for which nothing shows whether it was appended
        self._waits = False
        self._waiter = Waiter(host, "in", self._again)

    def descriptor(self) -> int:
        """See Sink."""
        return self._fd

    def may_adopt(self) -> bool:
        """See Sink: a message is in its journal by its number alone."""
        return not self._batch

    def start(self) -> None:
        """Make the file if it is missing, so that a program can follow it before the first message."""
        try:
            try:
                self._open()
                self._find_doubt()
            except OSError as error:
                raise blocked_by(error, self._shown) from None
        except Blocked as reason:
            self._close()
            self._wait(reason)
        else:
            self._waits = False
            self._waiter.done()

    def put(self, run: Run) -> int:
        """Keep them for the end of this turn, so that what comes together is written together."""
        return put_in_parts(run, self._put_some)

    def _put_some(self, run: Run) -> int:
        """Accept some of the first messages and return how many; 0 if it cannot take any now."""
        if self._waits:
            return 0
        if self._is_done(run.one(0)):
            return 1
        if self._batch_bytes >= _WRITE_AT and not self._write_batch():
            return 0
        if self._batch and self._batch[0].epoch != run.epoch:
            return 0  # in its turn
        good = _before_a_newline(run.bodies) if self._lines else len(run.bodies)
        if not good:
            return self._refuse(run.one(0))
        self._keep(run.before(good))
        return good

    def _is_done(self, one: Run) -> bool:
        """True if an agent that was killed had handed it over, or it is to be skipped."""
        if one.first <= self._journal.handed and one.epoch == self._journal.epoch:
            self._host.handed(one)  # found out after the greeting
            return True
        return (self._doubt is not None or self._undecided[1] > 0) and self._is_settled(one)

    def _keep(self, run: Run) -> None:
        self._batch.append(run)
        self._batch_bytes += run.size
        if not self._due:
            self._due = True
            self._host.loop.call_later(0, self._end_of_turn)

    def _refuse(self, one: Run) -> bool:
        if self._batch:
            return False  # in its turn
        if self._host.dead(one, self._shown, "it has a newline in it, and the log is framed by lines"):
            self._waiter.done()
            return True
        return False

    def _end_of_turn(self) -> None:
        self._due = False
        if not self._waits and (not self._batch or self._write_batch()):
            self._host.sink_ready()

    def _again(self) -> None:
        self._waits = False
        if self._directory.watch is None:
            self.start()
        if not self._waits and (not self._batch or self._write_batch()):
            self._host.sink_ready()

    def _wait(self, reason: object) -> None:
        self._waits = True
        self._waiter.wait(reason)

    # Appending

    def _write_batch(self) -> bool:
        """Note what is going to be appended where, and append it. Whether it is done; if not, it is tried again."""
        try:
            if not self._unwritten:
                if self._path_changed:
                    self._reopen()
                first, last = self._batch[0], self._batch[-1]
                offset = os.lseek(self._fd, 0, os.SEEK_END)
                self._intents.note(Intent(first.epoch, first.first, last.last, offset, self._inode))
                bodies = [body for run in self._batch for body in run.bodies]
                self._unwritten, self._into = memoryview(joined(self._config.framing, bodies)), self._fd
            self._write()
        except Blocked as reason:
            self._wait(reason)
            return False
        except OSError as error:
            self._wait(blocked_by(error, self._shown))
            return False
        self._waiter.done()
        return True

    def _write(self) -> None:
        """Append the rest of the batch, which is then handed over. Raises OSError."""
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._into, self._unwritten) :]
        if self._into != self._fd:
            os.close(self._into)
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch[-1].epoch == self._journal.epoch:
            self._journal.hand(batch[-1].last)  # all of them by one store: a kill must not fall between
        for run in batch:
            self._host.handed(run)

    def _reopen(self) -> None:
        """Open what is at the path now: another file may be there, or none.

        Raises Blocked, OSError; then the file that is open stays open.
        """
        if self._siblings.inode() != self._inode:
            fd = self._open_file()
            os.close(self._fd)
            self._fd, self._inode = fd, os.fstat(fd).st_ino
        self._path_changed = False

    def _open_file(self) -> int:
        self._tree.make_file(self._directory.fd, self._path, self._config.mode)
        return self._tree.open_file(self._directory.fd, self._name, _FLAGS)

    def _open(self) -> None:
        self._directory.open(EVENTS)
        self._siblings = Siblings(self._tree, self._directory.fd, self._name)
        self._fd = self._open_file()
        self._inode = os.fstat(self._fd).st_ino

    def _changed(self, _events: int) -> None:
        changes = self._directory.read()
        if changes.lost or any(name == self._name for name, _ in changes.files):
            self._path_changed = True
        if changes.gone:
            for run in reversed(self._batch):
                self._host.put_back(run)
            self._close()
            self.start()
            self._host.sink_ready()

    # After a kill

    def _find_doubt(self) -> None:
        """Find out if a killed agent was appending, and to which file."""
        intent, journal = self._intents.read(), self._journal
        if intent.epoch != journal.epoch or intent.last <= journal.handed:
            return
        journal.hand(intent.first - 1)  # its appending was proved, and not noted
        fd = self._siblings.find(intent.inode, _FLAGS)
        if fd is not None and os.fstat(fd).st_size >= intent.offset and intent.first == journal.handed + 1:
            self._doubt, self._doubt_fd = intent, fd
            return
        if fd is not None:
            os.close(fd)
        self._resolve_doubt_by_rule(
            intent, "the file is no longer in its directory" if fd is None else "the file was truncated"
        )

    def _is_settled(self, one: Run) -> bool:
        """True if nothing is left to do for this message of a killed agent: it was appended, or is to be skipped."""
        doubt = self._doubt
        if doubt is not None and (one.epoch, one.first) != (doubt.epoch, doubt.first):
            self._forget_doubt()  # from another source, or beyond what was intended
        elif doubt is not None:
            data = joined(self._config.framing, one.bodies)
            there = os.pread(self._doubt_fd, len(data), doubt.offset)
            if there == data:
                self._doubt = doubt._replace(first=one.first + 1, offset=doubt.offset + len(data))
                self._intents.note(self._doubt)
                self._host.handed(one)
                return True
            if there and data.startswith(there):
                self._complete(doubt, one, data[len(there) :])
                return True
            self._forget_doubt()
            if there:
                self._resolve_doubt_by_rule(
                    doubt, "the file has something else in that place, so others write to it too"
                )
        epoch, last = self._undecided
        if one.epoch != epoch or one.first > last:
            self._undecided = (0, 0)
            return False
        self._journal.cells[IN_DOUBT] += 1
        if self._in_doubt is InDoubt.RESEND:
            return False
        self._journal.cells[NOT_DELIVERED] += 1
        self._host.handed(one)
        return True

    def _complete(self, doubt: Intent, one: Run, rest: bytes) -> None:
        """Append what is missing of a message that was appended in part."""
        self._intents.note(doubt._replace(last=one.first))
        self._batch, self._unwritten, self._into = [one], memoryview(rest), self._doubt_fd
        self._doubt, self._doubt_fd = None, -1
        self._write_batch()

    def _resolve_doubt_by_rule(self, intent: Intent, why: str) -> None:
        self._undecided = (intent.epoch, intent.last)
        first = self._journal.handed + 1
        which = f"message {first} was" if first == intent.last else f"messages {first} to {intent.last} were"
        what = "appended again" if self._in_doubt is InDoubt.RESEND else "skipped"
        self._host.log("warning", f"{self._shown}: {why}: unknown whether {which} appended before a kill: {what}")

    def _forget_doubt(self) -> None:
        self._doubt = None
        if self._doubt_fd >= 0:
            os.close(self._doubt_fd)
            self._doubt_fd = -1

    def _close(self) -> None:
        self._directory.close()
        self._forget_doubt()
        for fd in {self._fd, self._into if self._unwritten else -1}:
            if fd >= 0:
                os.close(fd)
        self._fd = -1
        self._batch, self._batch_bytes, self._unwritten = [], 0, memoryview(b"")


def _before_a_newline(bodies: Sequence[bytes]) -> int:
    """Return how many messages come before the first that has a newline in it."""
    if b"\n" not in b"".join(bodies):
        return len(bodies)
    return next(count for count, body in enumerate(bodies) if b"\n" in body)
