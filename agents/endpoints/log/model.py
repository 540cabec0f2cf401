"""Decides the order in which the files of a log are read. No I/O: callers report what they see and get the next file.

A log is a chain of *generations*: files that were at the log's path, one after the other. Facts, and what follows:

* A file is a generation only if it was at the path. So the order is the order of arrival there. inotify reports each
  arrival, even if the file is renamed away before anyone looks. So arrivals are counted, files are identified by
  looking at the path, and the others are searched for in the directory. The rest is missing, and the number is exact.
* A generation is identified by inode and birth time. The birth time is needed because inodes of deleted files are
  reused. Neither rename nor late writes change it; they change `changed` (mtime).
* A generation ends when another file is at the path and no process has it open for writing. Until then late writes are
  read, and later arrivals wait in order.
* A descriptor reads a file under any name. So the first HELD waiting generations are kept open. Those beyond are found
  again by inode, under any name. Without a name, or if it was compressed, such a file is missing.
* Descriptors do not survive a kill. A new agent has one generation open, the one that was being read. It finds later
  ones by their names: born later, and not at the path. If the known one is still at the path, there are none.
* A truncated file begins a new generation with the same inode. The old content may be in a copy (copytruncate).

Rejected designs:

* "The next is the oldest sibling that was changed after the finished file." A late write makes the finished file the
  newest of all, and the files between were lost (issue 13, F1).
* Order by number or date in the name. Some programs count rotated files up and others count them down; numbers change
  while they are listed, and dates repeat. Names decide only between files with equal times.
* Follow names by the cookies of inotify's renames. Compression is no rename, and after an overflow there is nothing.
* Read compressed files. After a restart an unconfirmed message is read again from its position, so each restart would
  unpack from the start. An agent would run decompressors on hostile input, and there are many formats. A running agent
  need not read compressed files; with `delaycompress`, neither need one that missed a single rotation. The others are
  counted.
* Keep all descriptors. A container could exhaust them, and a deleted file keeps its disk space while it is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.log.names import Form

HELD = 32  # generations that wait with an open descriptor
MOST = 4096  # generations that wait in all; later arrivals are missing
_REMEMBERED = 1024  # finished generations that a look at the directory may still meet


class LogFileId(NamedTuple):
    """A file. `born` is its time of birth in ns, 0 where the file system does not say."""

    inode: int
    born: int


class LogFile(NamedTuple):
    """A regular file of the log's directory."""

    who: LogFileId
    changed: int  # mtime, ns
    size: int
    form: Form
    age: int  # the number in its name: the higher, the older
    name: bytes


class Missed(NamedTuple):
    """Stands for generations that cannot be read: how many, and at least how many bytes."""

    files: int
    size: int = 0


def _order(one: LogFile) -> tuple[int, int, int, bytes]:
    return one.who.born, one.changed, -one.age, one.name


class Chain:
    """The generation that is being read, and those that wait."""

    def __init__(self) -> None:
        self.current: LogFileId | None = None
        self._waiting: deque[LogFileId | Missed] = deque()
        self._done: dict[LogFileId, None] = {}
        self._newest: LogFileId | None = None  # what was at the path last
        self._owed = 0  # arrivals that no file is known for

    def __bool__(self) -> bool:
        """True if something waits behind the current generation."""
        return bool(self._waiting)

    def held(self) -> Iterator[LogFileId]:
        """Return the generations that should be open: the first HELD that wait."""
        found = (one for one in self._waiting if isinstance(one, LogFileId))
        return (one for one, _ in zip(found, range(HELD), strict=False))

    def begin(
        self, current: LogFileId | None, at_path: LogFileId | None, missed: Missed, after: Sequence[LogFile]
    ) -> None:
        """Start with `current`, or without one; `after` follow, and the file at the path is last."""
        self.current, self._owed, self._newest = current, 0, at_path or current
        self._waiting.clear()
        if missed.files:
            self._waiting.append(missed)
        self._waiting.extend(one.who for one in after)
        if at_path is not None and at_path != current:
            self._waiting.append(at_path)

    def look(
        self,
        at_path: LogFileId | None,
        arrivals: int,
        seen: Callable[[], Sequence[LogFile]],
        moved_to: Collection[bytes] = (),
    ) -> None:
        """Note the file that is at the path now, and how many files arrived there since the last look.

        `seen` lists the directory; it is called only if an arrival has no known file. `moved_to`: new names of files
        that left the path.
        """
        self._owed += arrivals
        fresh = at_path is not None and at_path != self._newest and not self._knows(at_path)
        lacking = self._owed - fresh
        if lacking > 0:
            found = self._unknown(seen(), at_path, moved_to)[-lacking:]
            for one in found:
                self._push(one.who)
            self._miss(lacking - len(found))
            self._owed -= lacking
        if fresh and at_path is not None:
            self._owed -= 1
            self._push(at_path)
        if at_path is not None:
            self._newest = at_path

    def unknown(self, seen: Sequence[LogFile], at_path: LogFileId | None) -> list[LogFile]:
        """Return the files that may have been at the path since it was looked at last, oldest first."""
        return self._unknown(seen, at_path, ())

    def lost_count(self, at_path: LogFileId | None, found: Sequence[LogFile]) -> None:
        """Queue `found`, which is from `unknown`, and forget what is owed: events were lost."""
        for one in found:
            self._push(one.who)
        self._owed = 0
        if at_path is not None and at_path != self._newest and not self._knows(at_path):
            self._push(at_path)
        self._newest = at_path or self._newest

    def next(self) -> LogFileId | Missed | None:
        """Return the generation after the current one, or Missed; `advance` takes it."""
        return self._waiting[0] if self._waiting else None

    def advance(self) -> None:
        """Finish the current generation and begin `next`; if `next` is Missed, only remove it."""
        one = self._waiting.popleft()
        if isinstance(one, Missed):
            return
        if self.current is not None:
            self._done[self.current] = None
            if len(self._done) > _REMEMBERED:
                del self._done[next(iter(self._done))]
        self.current = one

    def give_up(self) -> None:
        """Note that the generation `next` no longer exists."""
        assert isinstance(self._waiting[0], LogFileId)  # noqa: S101  (asked by the caller)
        self._waiting[0] = Missed(1)

    def begin_again(self, missed: Missed, copies: Sequence[LogFileId]) -> None:
        """Handle a truncation of the current file. `copies`, oldest first, have the old content that is not `missed`.

        After them the file is read from its start.
        """
        assert self.current is not None  # noqa: S101  (asked by the caller)
        self._waiting.extendleft(reversed([*([missed] if missed.files else []), *copies, self.current]))

    def insert_copies(self, copies: Sequence[LogFileId], original: LogFileId) -> None:
        """Insert further copies of the waiting file `original`, to be read before it."""
        if original in self._waiting:
            for one in copies:
                self._waiting.insert(self._waiting.index(original), one)

    def knows(self, who: LogFileId) -> bool:
        """True if that generation is being read, waits, or is finished."""
        return self._knows(who) or who in self._done

    def _knows(self, who: LogFileId) -> bool:
        return who == self.current or who in self._waiting

    def _push(self, who: LogFileId) -> None:
        if len(self._waiting) < MOST:
            self._waiting.append(who)
        else:
            self._miss(1)

    def _miss(self, files: int) -> None:
        last = self._waiting[-1] if self._waiting else None
        if files and isinstance(last, Missed):
            self._waiting[-1] = Missed(last.files + files, last.size)
        elif files:
            self._waiting.append(Missed(files))

    def _unknown(
        self, seen: Sequence[LogFile], at_path: LogFileId | None, moved_to: Collection[bytes]
    ) -> list[LogFile]:
        """Return the files that were at the path after the newest known one, oldest first."""
        since = self._newest.born if self._newest else 0
        found = [
            one
            for one in seen
            if one.who not in (at_path, self._newest)
            and not self._knows(one.who)
            and one.who not in self._done
            and one.who.born >= since
            and (one.name in moved_to or one.form in (Form.ROTATED, Form.INSIDE))
        ]
        return sorted(found, key=_order)


def after(
    position: LogFileId, begun: int, found: LogFile | None, at_path: LogFile | None, seen: Sequence[LogFile]
) -> list[LogFile]:
    """Return the generations after the one at `position`, without the one at the path, as a new agent sees them.

    `begun`: when the content at `position` began, in ns; 0 if it is not known. `found`: that file, if it has a name.
    A file that is still at the path has none after it.
    """
    if found is not None and at_path is not None and found.who == at_path.who:
        return []
    return sorted((one for one in seen if _follows(one, position, begun, found, at_path)), key=_order)


def _follows(one: LogFile, position: LogFileId, begun: int, found: LogFile | None, at_path: LogFile | None) -> bool:
    if one.form not in (Form.ROTATED, Form.INSIDE) or not one.size or one.who in (position, at_path and at_path.who):
        return False
    if one.form is Form.INSIDE and _may_be_foreign(one, found, at_path):
        return False
    if not one.who.born or not begun:
        return found is not None and one.changed > found.changed
    if one.who.born == begun and found is not None:
        return (one.changed, -one.age) > (found.changed, -found.age)
    return one.who.born > begun


def _may_be_foreign(one: LogFile, found: LogFile | None, at_path: LogFile | None) -> bool:
    """True if a name with a number before its suffix may belong to another program's log ("worker-1.log").

    The new name of the last file shows how this log is rotated. Without it, a file that was written after the last
    rotation is not taken.
    """
    if found is not None:
        return found.form is not Form.INSIDE
    return at_path is not None and one.changed > at_path.who.born > 0


def compressed_after(
    begun: int, found: LogFile | None, at_path: LogFile | None, seen: Sequence[LogFile]
) -> list[LogFile]:
    """Return the compressed files of the generation that began at `begun`, and of later ones; oldest first.

    A compressed file keeps the time of its last message. `found`, `at_path`: see `after`.
    """
    if found is not None and (at_path is None or found.who == at_path.who):
        return []
    since, oldest = max(begun, found.changed if found else 0), found.age if found else 0
    packed = [one for one in seen if one.form is Form.COMPRESSED and since and one.changed > since]
    packed = [one for one in packed if not oldest or not one.age or one.age < oldest]
    return sorted(packed, key=lambda one: (one.changed, -one.age, one.name))
