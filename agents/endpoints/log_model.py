"""Which file of a log is read after which: a model without I/O. It is told what is seen and says what comes next.

A log is a chain of *generations*: files that were at the log's path, one after the other. Facts, and what they mean:

* Only being at the path makes a file a generation. So the order is the order of arrival at the path. inotify reports
  each arrival, also of a file that is renamed away before anybody looks: arrivals are counted, files are identified by
  looking at the path, and the difference is looked for in the directory. What is not found there is missing, and the
  number is exact.
* A generation is known by its inode and its time of birth. The birth is needed because a deleted file's inode is used
  again. It does not change: neither by rename nor by late writes. `changed` (mtime) does.
* A generation ends when another file is at the path and nobody has it open for writing. Until then late writes are
  read, and all that arrives meanwhile waits in the order of its arrival.
* A descriptor reads a file whatever becomes of its name. The first HELD that wait are therefore kept open. A file that
  waits beyond them is found again by inode under whatever name it has; if it has none, or was compressed, it is
  missing.
* Descriptors do not survive a kill. A new agent knows one generation, the one that was being read, and finds those
  after it by their names: born after it, and not at the path. If that one is still at the path, none came after it.
* A truncated file begins a new generation with the same inode. The old content may be in a copy (copytruncate).

Rejected designs:

* "The next is the oldest sibling that was changed after the finished file." A late write makes the finished file the
  newest of all, and what came between was lost (issue 13, F1).
* Order by number or date in the name. Some programs count rotated files up and others count them down; numbers change
  while they are listed, and dates repeat. Names decide only between files with equal times.
* Follow names by the cookies of inotify's renames. Compression is no rename, and after an overflow there is nothing.
* Read compressed files. A message that is not confirmed is read again from its place after a restart, which would mean
  to unpack from the start each time; an agent would run decompressors on hostile input; and there are many formats.
  While an agent runs nothing that is compressed has to be read, and with `delaycompress` nothing of one rotation that
  it did not see. What is compressed all the same is counted.
* Keep all descriptors. A container could exhaust them; and a deleted file takes its disk space as long as it is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.log_names import Form

HELD = 32  # generations that wait with an open descriptor
MOST = 4096  # generations that wait at all; what arrives beyond them is missing
_REMEMBERED = 1024  # finished generations that a look at the directory may still meet


class Identity(NamedTuple):
    """A file. `born` is its time of birth in ns, 0 where the file system does not say."""

    inode: int
    born: int


class Seen(NamedTuple):
    """A regular file of the log's directory."""

    who: Identity
    changed: int  # mtime, ns
    size: int
    form: Form
    age: int  # what its name counts: the higher the older
    name: bytes


class Missed(NamedTuple):
    """In the place of generations that cannot be read: how many, and how many bytes at least."""

    files: int
    size: int = 0


def _order(one: Seen) -> tuple[int, int, int, bytes]:
    return one.who.born, one.changed, -one.age, one.name


class Chain:
    """The generation that is read, and those that wait."""

    def __init__(self) -> None:
        self.current: Identity | None = None
        self._waiting: deque[Identity | Missed] = deque()
        self._done: dict[Identity, None] = {}
        self._newest: Identity | None = None  # what was at the path last
        self._owed = 0  # arrivals that no file is known for

    def __bool__(self) -> bool:
        """True if something waits behind the current generation."""
        return bool(self._waiting)

    def held(self) -> Iterator[Identity]:
        """Return the generations that should be open: the first HELD that wait."""
        found = (one for one in self._waiting if isinstance(one, Identity))
        return (one for one, _ in zip(found, range(HELD), strict=False))

    def begin(self, current: Identity | None, at_path: Identity | None, missed: Missed, after: Sequence[Seen]) -> None:
        """Start with `current`, or without one; then come `after`, and what is at the path last."""
        self.current, self._owed, self._newest = current, 0, at_path or current
        self._waiting.clear()
        if missed.files:
            self._waiting.append(missed)
        self._waiting.extend(one.who for one in after)
        if at_path is not None and at_path != current:
            self._waiting.append(at_path)

    def look(
        self,
        at_path: Identity | None,
        arrivals: int,
        seen: Callable[[], Sequence[Seen]],
        moved_to: Collection[bytes] = (),
    ) -> None:
        """Take in what is at the path now, and how many files arrived there since the last look.

        `seen` lists the directory; it is called only if a file is owed. `moved_to`: names that files left the path for.
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

    def unknown(self, seen: Sequence[Seen], at_path: Identity | None) -> list[Seen]:
        """Return the files that may have been at the path since it was looked at last, oldest first."""
        return self._unknown(seen, at_path, ())

    def lost_count(self, at_path: Identity | None, found: Sequence[Seen]) -> None:
        """Events were lost: nothing is owed, and `found`, of `unknown`, waits."""
        for one in found:
            self._push(one.who)
        self._owed = 0
        if at_path is not None and at_path != self._newest and not self._knows(at_path):
            self._push(at_path)
        self._newest = at_path or self._newest

    def next(self) -> Identity | Missed | None:
        """Return what comes after the current generation; `advance` takes it."""
        return self._waiting[0] if self._waiting else None

    def advance(self) -> None:
        """The current generation is finished, and `next` begins; or what `next` says is missing is noted."""
        one = self._waiting.popleft()
        if isinstance(one, Missed):
            return
        if self.current is not None:
            self._done[self.current] = None
            if len(self._done) > _REMEMBERED:
                del self._done[next(iter(self._done))]
        self.current = one

    def give_up(self) -> None:
        """`next`, a generation, is nowhere any more."""
        assert isinstance(self._waiting[0], Identity)  # noqa: S101  (asked by the caller)
        self._waiting[0] = Missed(1)

    def begin_again(self, missed: Missed, copies: Sequence[Identity]) -> None:
        """The current file was truncated. `copies` have the old content, as far as it is not `missed`; oldest first.

        It is read from its start after them.
        """
        assert self.current is not None  # noqa: S101  (asked by the caller)
        self._waiting.extendleft(reversed([*([missed] if missed.files else []), *copies, self.current]))

    def insert_copies(self, copies: Sequence[Identity], original: Identity) -> None:
        """More copies were made of `original`, which waits: they are read before it."""
        if original in self._waiting:
            for one in copies:
                self._waiting.insert(self._waiting.index(original), one)

    def knows(self, who: Identity) -> bool:
        """True if that generation is read, waits, or is finished."""
        return self._knows(who) or who in self._done

    def _knows(self, who: Identity) -> bool:
        return who == self.current or who in self._waiting

    def _push(self, who: Identity) -> None:
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

    def _unknown(self, seen: Sequence[Seen], at_path: Identity | None, moved_to: Collection[bytes]) -> list[Seen]:
        """Files that were at the path since the newest known one was, oldest first."""
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


def after(position: Identity, begun: int, found: Seen | None, at_path: Seen | None, seen: Sequence[Seen]) -> list[Seen]:
    """Return the generations after the one at `position`, without the one at the path, as a new agent sees them.

    `begun`: when the content at `position` began, in ns; 0 if it is not known. `found`: that file, if it has a name.
    A file that is still at the path has none after it.
    """
    if found is not None and at_path is not None and found.who == at_path.who:
        return []
    return sorted((one for one in seen if _follows(one, position, begun, found, at_path)), key=_order)


def _follows(one: Seen, position: Identity, begun: int, found: Seen | None, at_path: Seen | None) -> bool:
    if one.form not in (Form.ROTATED, Form.INSIDE) or not one.size or one.who in (position, at_path and at_path.who):
        return False
    if one.form is Form.INSIDE and _may_be_foreign(one, found, at_path):
        return False
    if not one.who.born or not begun:
        return found is not None and one.changed > found.changed
    if one.who.born == begun and found is not None:
        return (one.changed, -one.age) > (found.changed, -found.age)
    return one.who.born > begun


def _may_be_foreign(one: Seen, found: Seen | None, at_path: Seen | None) -> bool:
    """True if a name with a number before its suffix may be another program's log ("worker-1.log").

    The name that the last file got tells how this log is rotated. Without it, a file that was written after the last
    rotation is not taken.
    """
    if found is not None:
        return found.form is not Form.INSIDE
    return at_path is not None and one.changed > at_path.who.born > 0


def compressed_after(begun: int, found: Seen | None, at_path: Seen | None, seen: Sequence[Seen]) -> list[Seen]:
    """Return the compressed files that were the generation which began at `begun`, or came after it; oldest first.

    A compressed file keeps the time of its last message. `found`, `at_path`: see `after`.
    """
    if found is not None and (at_path is None or found.who == at_path.who):
        return []
    since, oldest = max(begun, found.changed if found else 0), found.age if found else 0
    packed = [one for one in seen if one.form is Form.COMPRESSED and since and one.changed > since]
    packed = [one for one in packed if not oldest or not one.age or one.age < oldest]
    return sorted(packed, key=lambda one: (one.changed, -one.age, one.name))
