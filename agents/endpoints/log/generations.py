"""The generations of a log as open files: finds, opens and keeps the files that model.py decides about.

A descriptor is kept for the first generations that wait: compression, deletion and odd names do not matter for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from nsbridge.agents.endpoints.log.framing import Splitter
from nsbridge.agents.endpoints.log.model import MOST, Chain, LogFile, LogFileId, Missed, after, compressed_after
from nsbridge.agents.endpoints.log.names import Form
from nsbridge.agents.endpoints.log.siblings import Siblings, now
from nsbridge.agents.endpoints.log.tail import Position, Tail, is_at
from nsbridge.agents.identity.walk import shown

_NOTHING = Missed(0)
_PROOF = 16  # first bytes of a file that distinguish two files


class Start(NamedTuple):
    """The place where a new agent continues: an open file, and the byte `at`.

    `is_anew`: it continues at the start, because the file was truncated.
    """

    fd: int
    who: LogFileId
    at: int
    is_anew: bool


class Generations:
    """The chain of one log, with its open files."""

    def __init__(self, siblings: Siblings, warn: Callable[[str], None]) -> None:
        self._siblings = siblings
        self._warn = warn
        self._chain = Chain()
        self.at_path: LogFile | None = None  # the regular file at the path
        self._held: dict[LogFileId, int] = {}
        self._copies: set[LogFileId] = set()
        self._left_out: dict[LogFileId, None] = {}  # of which the log has a line
        self._starts: dict[LogFileId, int] = {}  # byte at which reading continues in a copy
        self._doubts: dict[LogFileId, tuple[bytes, int]] = {}  # how it must begin, else a copy was skipped wrongly
        self._begun: dict[LogFileId, int] = {}  # of what was there before this process, or truncated; ns

    def close(self) -> None:
        """Close what waits."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    # Beginning

    def first(self) -> None:
        """Begin with what is at the path, without a place."""
        self.at_path = at_path = self._siblings.at_path()
        self._chain.begin(None, at_path and at_path.who, _NOTHING, ())
        if at_path is not None:
            self._begun[at_path.who] = now()
        self._hold(())

    def resume(self, position: Position, splitter: Callable[[], Splitter]) -> Start | None:
        """Find the position that an earlier agent noted, and the later files. None: it is gone. Raises OSError."""
        self.at_path = at_path = self._siblings.at_path()
        seen = self._siblings.listing()
        start = self._find(position, splitter, seen)
        if start is not None and start.is_anew:
            packed = self._packed(position, None, seen, is_gone=True)
            self._begin(start, packed if packed.size else _NOTHING, (), seen)
            return start
        who = start.who if start else position.who
        found = self._seen_as(who, seen)
        follow = after(who, max(position.begun, who.born), found, at_path, seen)
        follow = self._without_copies(follow, [start.fd] if start else [])
        self._begin(start, self._packed(position, found, seen, is_gone=start is None), follow, seen)
        if start is not None and at_path is not None and 0 < at_path.who.born < start.who.born:
            self._copies.add(start.who)
        return start

    def _begin(self, start: Start | None, missed: Missed, follow: Sequence[LogFile], seen: Sequence[LogFile]) -> None:
        path = self.at_path.who if self.at_path else None
        self._chain.begin(start.who if start else None, path, missed, follow)
        self._hold(seen)

    def _find(self, position: Position, splitter: Callable[[], Splitter], seen: Sequence[LogFile]) -> Start | None:
        """Return the file of the position, or its copy if it was copied and truncated."""
        fd = self._siblings.find(position.inode)
        if fd is not None:
            who = self._siblings.identify(fd)
            is_other = 0 != position.born != who.born != 0  # the inode was used again
            if not is_other and is_at(fd, position, splitter()):
                return Start(fd, who, position.end, False)
            is_current = self.at_path is not None and who == self.at_path.who and not is_other
            copy = self._copy_at(position, splitter, seen) if is_current else None
            if copy is None and is_current:
                return Start(fd, who, 0, True)
            os.close(fd)
            return copy
        return None

    def _copy_at(self, position: Position, splitter: Callable[[], Splitter], seen: Sequence[LogFile]) -> Start | None:
        if position.head >> 32 < min(position.end, _PROOF) or not position.end:
            return None  # nothing proves it
        for one in self._rotated(seen, position.begun):
            fd = self._siblings.open_seen(one)
            if fd is not None and is_at(fd, position, splitter()):
                self._copies.add(one.who)
                return Start(fd, one.who, position.end, False)
            if fd is not None:
                os.close(fd)
        return None

    def _packed(self, position: Position, found: LogFile | None, seen: Sequence[LogFile], *, is_gone: bool) -> Missed:
        """Return how much of the log was compressed or deleted while no agent ran."""
        packed = compressed_after(position.begun, found, self.at_path, seen)
        sizes = [self._siblings.unpacked_size(one) for one in packed]
        if is_gone and sizes and sizes[0] >= position.end:
            sizes[0] -= position.end  # the file that was being read
            if not sizes[0]:
                del sizes[0]
        elif is_gone:
            sizes.append(0)
        return Missed(len(sizes), sum(sizes))

    # Looking

    def look(self, arrivals: int, moved_to: Collection[bytes] = ()) -> None:
        """Look at the path, where `arrivals` files have arrived since the last look. Raises OSError."""
        seen: list[LogFile] = []

        def listing() -> list[LogFile]:
            seen.extend(self._siblings.listing(moved_to))
            return seen

        self.at_path = at_path = self._siblings.at_path()
        self._chain.look(at_path and at_path.who, arrivals, listing, moved_to)
        self._hold(seen)

    def lost_count(self, originals: Sequence[int], *, is_known: bool) -> None:
        """Look at the whole directory: events were lost, or there are none. Copies of `originals` do not count.

        Raises OSError.
        """
        if not is_known:
            self._warn("the kernel lost events of this directory: files that came and went meanwhile are not counted")
        self.at_path = at_path = self._siblings.at_path()
        seen = self._siblings.listing()
        path = at_path and at_path.who
        found = [one for one in self._chain.unknown(seen, path) if one.who not in self._left_out]
        self._chain.lost_count(path, self._without_copies(found, originals))
        self._hold(seen)

    def is_over(self, who: LogFileId) -> bool:
        """True if the generation that is read has left the path, and another one is or was there."""
        return bool(self._chain) and (self.at_path is None or self.at_path.who != who)

    # Continuing

    def open_next(self) -> tuple[int, LogFileId] | Missed | None:
        """Return the next generation, open until `advance` or `close`; or Missed in its place. Raises OSError."""
        self._find_more_copies()
        one = self._chain.next()
        if one is None or isinstance(one, Missed):
            return one
        if one not in self._held:
            fd = self._siblings.find(one.inode)
            if fd is not None and self._siblings.identify(fd) != one:
                os.close(fd)
                fd = None
            if fd is None:
                self._chain.give_up()
                return Missed(1)
            self._held[one] = fd
        return self._held[one], one

    def start_of(self, who: LogFileId) -> tuple[int, int, bytes]:
        """Return the byte at which reading begins there; when its content began, 0 for its birth; how it must begin."""
        head, begun = self._doubts.get(who, (b"", self._begun.get(who, 0)))
        return self._starts.get(who, 0), begun, head

    def advance(self) -> None:
        """Move to the generation that `open_next` returned; its descriptor now belongs to the caller."""
        one = self._chain.next()
        self._chain.advance()
        if isinstance(one, LogFileId):
            self._held.pop(one, None)
            self._starts.pop(one, None)
            self._doubts.pop(one, None)
            self._hold_more()

    def begin_again(self, tail: Tail, at: int) -> Missed | None:
        """Handle a truncation of the file that is read; its next message would have begun at byte `at`.

        Return None if copies have its old content; `open_next` returns these first. Otherwise return what is missing:
        the caller reads the file from its start.
        """
        seen = self._siblings.listing()
        found = [one for one in self._rotated(seen, tail.begun) if not self._chain.knows(one.who)]
        later: list[LogFileId] = []
        goes_on: LogFileId | None = None
        for one in found:
            fd = self._siblings.open_seen(one)
            if fd is None:
                continue
            if goes_on is None and tail.continues_in(fd):
                goes_on = one.who
                later = [one.who]
                self._starts[one.who] = at
            elif not tail.has_all_of(fd):
                later.append(one.who)
            os.close(fd)
        missed = Missed(1, tail.unread) if goes_on is None and tail.unread > 0 else _NOTHING
        if not later:
            return missed
        self._copies.update(later)
        self._begun[tail.who] = now()
        self._chain.begin_again(missed, later)
        return None

    def precedes(self, tail: Tail) -> bool:
        """True if the file was copied and truncated again before it was read. Then the copies are read first."""
        if self.at_path is None or self.at_path.who != tail.who:
            return False
        seen = self._rotated(self._siblings.listing(), tail.begun)
        found = self._without_copies([one for one in seen if not self._chain.knows(one.who)], [])
        if found:
            copies = [one.who for one in found]
            self._copies.update(copies)
            self._begun[tail.who] = now()
            self._chain.begin_again(_NOTHING, copies)
        head, _ = self._doubts.pop(tail.who, (b"", 0))
        tail.expect(head)
        return bool(found)

    def _find_more_copies(self) -> None:
        """Find copies that were made while a copy was read: the original may have been truncated again."""
        current, at_path = self._chain.current, self.at_path
        if current is None or at_path is None or current not in self._copies:
            return
        more = [one for one in self._rotated(self._siblings.listing(), current.born) if not self._chain.knows(one.who)]
        more = self._without_copies(more, [])
        self._copies.update(one.who for one in more)
        self._chain.insert_copies([one.who for one in more], at_path.who)

    # Files

    def _rotated(self, seen: Sequence[LogFile], begun: int) -> list[LogFile]:
        """Return the rotated files that were made after `begun`, oldest first."""
        path = self.at_path.who if self.at_path else None
        forms = (Form.ROTATED, Form.INSIDE)
        found = [one for one in seen if one.form in forms and one.who != path and one.who.born > begun and one.size]
        return sorted(found, key=lambda one: (one.who.born, one.changed, -one.age))

    def _without_copies(self, seen: Sequence[LogFile], originals: Sequence[int]) -> list[LogFile]:
        """Leave out files that begin like one of these open files, or like the file at the path."""
        at_path = self.at_path if seen else None
        path = self._siblings.open_seen(at_path) if at_path is not None else None
        kept = []
        for one in seen:
            is_rotated = one.form in (Form.ROTATED, Form.INSIDE)
            head = self._siblings.copied(one, [path]) if is_rotated and path is not None else b""
            if head and at_path is not None and at_path.who != self._chain.current:
                self._doubts.setdefault(at_path.who, (head, max(one.who.born - 1, 0)))
            if head or (is_rotated and self._siblings.copied(one, originals)):
                self._leave_out(one)
            else:
                kept.append(one)
        if path is not None:
            os.close(path)
        return kept

    def _leave_out(self, one: LogFile) -> None:
        if one.who not in self._left_out:
            self._warn(f"{shown(one.name)} begins like another file of the log: taken for a copy, not read")
            self._left_out[one.who] = None
        if len(self._left_out) > MOST:
            del self._left_out[next(iter(self._left_out))]

    def _seen_as(self, who: LogFileId, seen: Sequence[LogFile]) -> LogFile | None:
        if self.at_path is not None and self.at_path.who == who:
            return self.at_path
        return next((one for one in seen if one.who == who), None)

    def _hold(self, seen: Sequence[LogFile]) -> None:
        """Open the waiting files whose names are known. Retry a failed open when the file's turn comes."""
        names = {one.who: one for one in (*seen, *([self.at_path] if self.at_path else []))}
        for who in self._chain.held():
            if who not in self._held and who in names:
                fd = self._siblings.open_seen(names[who])
                if fd is not None:
                    self._held[who] = fd

    def _hold_more(self) -> None:
        lacking = [who for who in self._chain.held() if who not in self._held]
        if lacking:
            self._hold(self._siblings.listing())
