"""Dead letters that are to be delivered after all: each is taken again, once, as a new message of its flow's source.

The supervisor puts them into `state_dir/dead/ROUTE/.retry/AGENT` by rename, as EPOCH-SEQ.TYPE: that name is the letter,
its content the message's bytes. The source's agent, which opened the directory before its join, takes them in the order
of their names. So that no kill makes one be taken twice or not at all:
* Before it is put into the journal it is renamed to NAME@EPOCH-SEQ, the epoch and seq it will have there.
* Nothing else is put into the journal until it is there, or has its own name again.
* So after a kill the journal decides: if it has that seq in that epoch, the letter is there and the file is removed;
  otherwise it is not, and the file gets its own name back.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable

from nsbridge.agents.dead.ids import in_short
from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import AgentApi, Blocked, Waiter
from nsbridge.agents.outgoing import SourceStore
from nsbridge.agents.statefiles import EPOCH, SEQ, stem
from nsbridge.agents.wire import Message
from nsbridge.config.descriptors import closing
from nsbridge.config.schema import MAX_MESSAGE

_LETTER = re.compile(rf"{EPOCH}-{SEQ}\.([0-9]{{1,19}})")
_CLAIMED = re.compile(rf"({EPOCH}-{SEQ}\.[0-9]{{1,19}})@({EPOCH})-({SEQ})")


class DeadLetterRetries:
    """The directory of one source."""

    def __init__(self, directory: int, store: SourceStore, host: AgentApi, *, fsync: Callable[[], None] | None) -> None:
        self._directory = directory
        self._fsync = fsync  # puts the journal on the disk, where a crash of the host is provided for
        self._store = store
        self._host = host
        self.due = True  # whether there may be some
        self._lend: Callable[[], bool] = lambda: False  # the last caller's
        self._waiter = Waiter(host, "out", self._again)

    def settle(self) -> None:
        """Find out what became of one that a killed agent was taking; before anything is taken. Raises OSError."""
        for name in os.listdir(self._directory):  # noqa: PTH208  (a descriptor)
            claimed = _CLAIMED.fullmatch(name)
            if claimed is None:
                continue
            own, epoch, seq = claimed.groups()
            if int(epoch, 16) == self._store.epoch and int(seq) <= self._store.taken:
                os.unlink(name, dir_fd=self._directory)
            else:
                self._rename(name, own)

    def take(self, lend: Callable[[], bool]) -> None:
        """Take those that are there while the window has room and `lend`, asked before each, lets it be done."""
        self._lend = lend
        if not self.due or not self._host.has_room():
            return
        taken: dict[str, int] = {}
        try:
            self.due = not self._take_all(taken)
        finally:
            self._report(taken)
        if taken:
            self._host.flush()  # a source's thread that calls this may wait for a message next

    def _take_all(self, taken: dict[str, int]) -> bool:
        """Do it, and note those that were taken; False if some are left."""
        for name in sorted(filter(_is_letter, os.listdir(self._directory))):  # noqa: PTH208
            if not self._host.has_room() or not self._lend():
                return False
            try:
                self._take(name, taken)
            except Blocked as reason:  # a confirmation may end it; or, where nothing is pending, only time
                self._waiter.wait(f"dead letter {name}: {reason}")
                return False
            self._waiter.done()
        return True

    def _again(self) -> None:
        self.take(self._lend)
        self._host.flush()

    def _report(self, taken: dict[str, int]) -> None:
        """Log the letters that were taken, by name, and the messages that they are now."""
        seqs = tuple(taken.values())
        which = in_short(f"{epoch}-{int(seq)}" for epoch, _, seq in (name.partition("-") for name in taken))
        if len(seqs) == 1:
            self._host.log("info", f"dead letter {which} was taken again, as message {seqs[0]}")
        elif seqs:
            what = f"{len(seqs):,} dead letters were taken again, as messages {seqs[0]} to {seqs[-1]}"
            self._host.log("info", f"{what}: {which}")

    def _take(self, name: str, taken: dict[str, int]) -> None:
        """Take the letter into the journal, and note it in `taken`. Raise Blocked (no room in it now), OSError."""
        body = self._read(name)
        if body is None:
            return
        mtype = int(name.rpartition(".")[2])
        claimed = f"{name}@{stem(self._store.epoch, self._store.taken + 1)}"
        self._rename(name, claimed)
        if self._fsync is not None:
            os.fsync(self._directory)
        try:
            seq = self._host.take(Message(mtype, body))
        except Blocked:
            self._rename(claimed, name)
            raise
        if self._fsync is not None:
            self._fsync()
        os.unlink(claimed, dir_fd=self._directory)
        taken[name.partition(".")[0]] = seq

    def _read(self, name: str) -> bytes | None:
        """Return its bytes; None, and a line in the log, if it cannot be taken at all."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError as error:
            self._host.log("error", f"dead letter {name} cannot be read: {os.strerror(error.errno or 0)}")
            return None
        with closing(fd):
            body = files.read_up_to(fd, MAX_MESSAGE) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        if body is None:
            self._host.log("error", f"dead letter {name} is no file of a message that nsbridge carries")
        return body

    def _rename(self, name: str, other: str) -> None:
        os.rename(name, other, src_dir_fd=self._directory, dst_dir_fd=self._directory)


def _is_letter(name: str) -> bool:
    """True if the supervisor can have put it there."""
    found = _LETTER.fullmatch(name)
    return found is not None and int(found[1]) < 1 << 63
