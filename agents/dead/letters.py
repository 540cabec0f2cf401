"""Dead letters: messages that can never be handed over, saved with the reason before they are confirmed.

One message is two files in the agent's own directory `state_dir/dead/ROUTE/AGENT`: EPOCH-SEQ.body, its bytes, and then
EPOCH-SEQ.json, the note, with reason, time and origin. A letter exists once its note does. Writing it again changes
nothing.

quota.py decides how many letters there may be. This module counts them:
* It counts when the first letter is to be written, not at the agent's start (20,000 files take 0.1 s). It counts again
  if there is no room and the directory has changed. So letters that the supervisor or a person removed make room.
* A letter is dropped note first. So a kill leaves a body without its note, which is not a letter. The next count
  removes such a body, like every other part that a kill left.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from nsbridge.agents.dead.quota import Admission, FileSystem, KeptLetter, Quota
from nsbridge.agents.endpoints.files import write_all
from nsbridge.agents.journal.sinkjournal import DEAD, DEAD_DROPPED, NOT_DELIVERED, SinkJournal
from nsbridge.agents.loop import Clock
from nsbridge.agents.statefiles import EPOCH, SEQ, stem
from nsbridge.agents.wire import Run
from nsbridge.config.schema import DeadConfig

_PART = re.compile(rf"\.?({EPOCH}-{SEQ})\.(body|json)")
_BLOCK = 512  # bytes in a unit of st_blocks, on every file system
_SETTLED = 0.1  # seconds after which another change of a directory shows in its time of change

Dropped = Callable[[KeptLetter], None]


class NoRoomError(Exception):
    """There is no room for the letter now; `str()` says what is full."""


class NoSpaceError(NoRoomError):
    """The file system of `state_dir` has no space for the letter now."""


class DeadLetters:
    """The dead letters of one sink, in a directory opened before the join. `dropped` is called for each dropped letter.

    If an agent was killed after it wrote a letter and before it noted that, the letter stands, even if the endpoint
    takes the message by now. Otherwise the message would be delivered and be a dead letter too.
    """

    def __init__(
        self,
        directory: int,
        journal: SinkJournal | None,
        limits: DeadConfig = DeadConfig(),  # noqa: B008  (frozen)
        clock: Clock = time.monotonic,
        dropped: Dropped = lambda _letter: None,
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._clock = clock
        self._dropped = dropped
        self._quota = Quota(limits)
        self._counted_at = -1  # the directory's mtime when it was counted; -1: count it again
        self._is_counted = False
        if journal is not None and self._has(journal.epoch, journal.handed + 1):
            self._count(journal.epoch)
            journal.hand(journal.handed + 1)

    def add(self, one: Run, where: str, why: str) -> bool:
        """Write the one message as a dead letter; False if it was one already. Nothing is confirmed if this raises.

        Raises NoRoomError, OSError.
        """
        (body,) = one.bodies
        if self._has(one.epoch, one.first):
            return False
        about = {
            "epoch": one.epoch,
            "seq": one.first,
            "type": one.type,
            "bytes": len(body),
            "where": where,
            "why": why,
            "time": time.time(),
        }
        note, name = json.dumps(about).encode(), stem(one.epoch, one.first)
        self._make_room(len(body) + len(note))
        self._write(f"{name}.body", body)
        self._write(f"{name}.json", note)
        self._quota.add(KeptLetter(name, len(body) + len(note), self._clock()))
        self._count(one.epoch)
        return True

    def adopt(self, limits: DeadConfig) -> None:
        """Use other limits from now on. Letters beyond them stay until a new letter or their age drops them."""
        self._quota.limits = limits

    def changed(self) -> None:
        """Note that letters were removed: count again before refusing one for lack of room."""
        self._is_counted = False

    def expire(self) -> float | None:
        """Drop letters that are too old. Return the clock's time when the next one will be. Raises OSError."""
        if self._quota.limits.max_age is None:
            return None
        if not self._is_counted:
            self._recount()
        for letter in self._quota.expired(self._clock()):
            self._drop(letter)
        return self._quota.next_expiry()

    def _make_room(self, size: int) -> None:
        """Make room for a letter. Raise NoRoomError, OSError."""
        if not self._is_counted:
            self._recount()
        admission = self._ask(size)
        if admission.full and self._has_changed():
            self._recount()
            admission = self._ask(size)
        if admission.full:
            raise (NoSpaceError if admission.is_disk else NoRoomError)(admission.full)
        for letter in admission.drop:
            self._drop(letter)

    def _ask(self, size: int) -> Admission:
        found = os.fstatvfs(self._directory)
        room = FileSystem(
            found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files
        )
        return self._quota.admit(size, room)

    def _has_changed(self) -> bool:
        """True if the directory may have changed since it was counted, also by this agent."""
        return self._counted_at != os.fstat(self._directory).st_mtime_ns

    def _recount(self) -> None:
        """Count the letters, and remove what a kill left of one. Raises OSError."""
        changed = os.fstat(self._directory).st_mtime_ns
        now, wall = self._clock(), time.time()
        self._quota.replace(self._found(now, wall))
        self._is_counted = True
        # The kernel's file clock is coarse: an immediate second change would have the same time.
        self._counted_at = changed if wall - changed / 1e9 > _SETTLED else -1

    def _found(self, now: float, wall: float) -> Iterator[KeptLetter]:
        names = frozenset(os.listdir(self._directory))  # noqa: PTH208  (a descriptor)
        for name in names:
            found = _PART.fullmatch(name)
            if found is None:
                continue  # neither the agent nor the supervisor made it
            note, body = f"{found[1]}.json", f"{found[1]}.body"
            if name.startswith(".") or not {note, body} <= names:
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
            elif name == note:
                with suppress(FileNotFoundError):
                    (size, changed), (more, _) = self._measure(note), self._measure(body)
                    yield KeptLetter(found[1], size + more, now - max(0.0, wall - changed))

    def _measure(self, name: str) -> tuple[int, float]:
        """Return a file's bytes, without its holes, and its time of change."""
        about = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        return min(about.st_size, about.st_blocks * _BLOCK), about.st_mtime

    def _drop(self, letter: KeptLetter) -> None:
        """Remove a letter, note first; harmless if it is gone already. Raises OSError."""
        self._quota.remove(letter.name)
        try:
            os.unlink(f"{letter.name}.json", dir_fd=self._directory)
            os.unlink(f"{letter.name}.body", dir_fd=self._directory)
        except FileNotFoundError:
            return
        if self._journal is not None:
            self._journal.cells[DEAD_DROPPED] += 1
        self._dropped(letter)

    def _has(self, epoch: int, seq: int) -> bool:
        """True if the letter exists. A compromised agent may have put something else in its note's place."""
        try:
            about = os.stat(f"{stem(epoch, seq)}.json", dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(about.st_mode)

    def _count(self, epoch: int) -> None:
        assert self._journal is not None  # noqa: S101  (there is a sink)
        self._journal.cells[DEAD] += 1
        if epoch == self._journal.epoch:  # of another it is not among those that were handed
            self._journal.cells[NOT_DELIVERED] += 1

    def _write(self, name: str, data: bytes) -> None:
        part = f".{name}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(part, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
