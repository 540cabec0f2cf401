"""The `out` side of the `log` endpoint: takes messages as they are appended to a file.

* The file is the journal. The place after each message is noted with the message, so a restart goes on there, and an
  unconfirmed message is read again from its place, under the number that it had.
* A move to another place without a message (a new file, a truncation, something too long) takes a number too, for a
  message that is none (VOID): so it is noted in the same way, once.
* Rotation: the file that was renamed is read to its end first, as long as somebody has it open for writing. Then its
  last line is a message even without a newline, and the next file is begun.
* What is incomplete waits, also across a restart.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Sequence
from enum import Enum
from itertools import groupby, takewhile

from nsbridge.agents.endpoints import files, watch
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.files import Tree, blocked_by, shown
from nsbridge.agents.endpoints.log_framing import Item, Splitter, TooLong, Unended, splitter
from nsbridge.agents.endpoints.log_notes import Note
from nsbridge.agents.endpoints.log_tail import Position, Positions, Siblings, Tail, TruncatedError, body_at, is_at
from nsbridge.agents.journal import LOG_NOTES, LOG_TRUNCATIONS, RECORDS
from nsbridge.agents.store import NoteStore
from nsbridge.agents.wire import VOID
from nsbridge.config.schema import LogEndpoint

_EVENTS = watch.CREATED | watch.MOVED_IN | watch.MOVED_OUT | watch.DELETED
_FILE_EVENTS = watch.MODIFIED | watch.CLOSED
_READS_AT_ONCE = 16  # then the rest of the agent has its turn
_QUIET = 5.0  # seconds without a write after which a renamed file has ended, where no lease can tell
_RUN = 255  # messages that one note is for, at most


class _Step(Enum):
    """What is to be done when it is its turn, in the place of a message."""

    NEXT = 1  # go on with the next file
    AGAIN = 2  # go on at the start of this one


class LogSource:
    """Takes the messages of an append-only file."""

    def __init__(self, host: Host, tree: Tree, config: LogEndpoint, store: NoteStore) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._store = store
        store.load = self._load
        store.journal.cells[RECORDS] = LOG_NOTES
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.out)
        self._shown = shown(self._path)
        self._parent, self._name = os.path.split(self._path)
        self._positions = Positions(store.journal)
        self._resumed = store.taken  # up to here messages may have to be read again
        self._reread = -1  # the file of which they were last
        self._missing: set[int] = set()  # inodes that were looked for: a directory may have very many names
        self._directory = -1
        self._watch: watch.AnyWatch | None = None
        self._siblings: Siblings
        self._file_watch = -1
        self._tail: Tail | None = None
        self._items: deque[list[bytes] | TooLong | Unended | _Step] = deque()
        self._at = 0  # where the first of the items begins
        self._path_changed = True  # another file may be at the path
        self._quiet_since = (0, 0.0)  # of a renamed file: its size, and when it was seen first
        self._goes_on = False
        self._waiter = Waiter(host, "out", self._again)
        watch.keep_place(host, lambda fd: tree.leads_to(self._parent, fd), lambda: self._watch, self._changed)

    def start(self) -> None:
        """Open the directory, find the file that was read last, go on."""
        try:
            try:
                self._open()
            except OSError as error:
                raise blocked_by(error, self._shown) from None
        except Blocked as reason:
            self._close()
            self._waiter.wait(reason)
            return
        self._take()

    def room_again(self) -> None:
        """Take what was left."""
        if self._items and self._watch is not None:
            self._take()

    def confirmed(self, seq: int) -> None:
        """The file stays as it is."""
        if self._reread >= 0 and seq >= self._resumed:
            os.close(self._reread)
            self._reread = -1

    def lend(self) -> bool:
        """See Source: the place that was reached stays so."""
        self._positions.keep()
        return True

    def _again(self) -> None:
        if self._watch is None:
            self.start()
        else:
            self._take()

    def _open(self) -> None:
        self._directory = self._tree.open_directory(self._parent)
        self._watch = watch.watch_directory(self._host, "out", self._directory, _EVENTS)
        self._host.loop.watch(self._watch.fileno(), 1, self._changed)
        self._siblings = Siblings(self._tree, self._directory, self._name, self._warn)
        self._path_changed = True
        position = self._positions.read()
        if position is None:
            if self._store.taken:
                self._warn(f"{self._shown}: the journal does not say how far it was read: it is read from its start")
            self._tree.make_file(self._directory, self._path, self._config.mode, for_program=True)
            self._items.append(_Step.NEXT)
        else:
            self._resume(position)

    def _resume(self, position: Position) -> None:
        """Find the file by what was noted of it; say so if it is not there, or not as it was."""
        fd = self._siblings.find(position.inode)
        if fd is not None and is_at(fd, position, self._splitter()):
            self._follow(fd, position.end)
        elif fd is not None and self._siblings.inode() == position.inode:
            self._follow(fd, 0)
            self._truncated()
        else:
            if fd is not None:
                os.close(fd)
            what = f"the file that was read up to byte {position.end} is no longer in its directory"
            self._warn(f"{self._shown}: {what}: what was appended to it after that is lost; the new file is read")
            self._items.append(_Step.NEXT)

    def _follow(self, fd: int, at: int) -> None:
        """Go on in this open file; its descriptor belongs to the tail from now on."""
        assert self._watch is not None  # noqa: S101  (a file is opened in its directory)
        try:
            file_watch = self._watch.add_file(self._tree.own_fds, fd, _FILE_EVENTS)
        except Blocked:
            os.close(fd)
            raise
        self._let_go()
        self._tail, self._at, self._file_watch = Tail(fd, self._splitter(), at), at, file_watch
        self._path_changed = True

    def _let_go(self) -> None:
        if self._tail is not None:
            if self._watch is not None:
                self._watch.drop(self._file_watch)
            os.close(self._tail.fd)
            self._tail = None

    def _changed(self, _events: int) -> None:
        assert self._watch is not None  # noqa: S101  (called only while it is watched)
        changes = self._watch.read()
        renamed = changes.lost or any(name == self._name for name, _ in changes.files)
        self._path_changed = self._path_changed or renamed
        if changes.gone:
            self._take()
            self._close()
            self.start()
        elif renamed or any(not name for name, _ in changes.files):
            self._take()

    def _take(self) -> None:
        """Take what is there, while there is room."""
        try:
            self._take_some()
        except Blocked as reason:
            self._waiter.wait(reason)
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown))
        else:
            self._waiter.done()
        self._host.flush()

    def _take_some(self) -> None:
        for _ in range(_READS_AT_ONCE):
            if not self._take_items() or not self._read():
                return
            self._host.flush()
        if not self._goes_on:
            self._goes_on = True
            self._host.loop.call_later(0, self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        if self._watch is not None:
            self._take()

    def _take_items(self) -> bool:
        """Whether all that was read could be taken."""
        items = self._items
        while items:
            item = items[0]
            if isinstance(item, list):
                assert self._tail is not None  # noqa: S101  (they were read from there)
                count = self._take_messages(item, self._tail.splitter.overhead)
                if not count:
                    return False
                if count < len(item):
                    items[0] = item[count:]
                    continue
            elif not self._host.has_room():
                return False
            elif isinstance(item, Unended):
                self._take_messages([item.body], 0)
            elif isinstance(item, TooLong):
                self._pass_over(item)
            elif item is _Step.AGAIN:
                self._begin_again()
            elif not self._begin_next():
                continue
            items.popleft()
        return True

    def _take_messages(self, bodies: Sequence[bytes], overhead: int) -> int:
        """Take the first of them, as many as there is room for now; how many. Raises Blocked."""
        assert self._tail is not None  # noqa: S101  (they were read from there)
        bodies = bodies[:_RUN]
        count = self._host.room_for(bodies)
        if not count:
            return 0
        if not count % 2:
            count -= 1  # the places take turns: by an even step the one that counts now would be overwritten
        bodies = bodies[:count]
        sizes, checks = [len(body) + overhead for body in bodies], list(map(zlib.crc32, bodies))
        end = self._at + sum(sizes)
        note = Note(self._tail.inode, self._at, self._store.taken + 1, sizes, checks)
        self._positions.prepare(self._tail.position(end - sizes[-1], end, checks[-1]))
        self._host.take_run(bodies, note.pack())
        self._at = end
        return count

    def _move(self, tail: Tail, at: int) -> None:
        """Note that the next message is looked for there."""
        self._positions.prepare(tail.position(at, at, 0))
        self._host.take(VOID, Note(tail.inode, at, self._store.taken + 1, (), ()).pack())
        self._at = at

    def _pass_over(self, item: TooLong) -> None:
        assert self._tail is not None  # noqa: S101  (it was read from there)
        what = f"{item.size} bytes at byte {self._at} are passed over and left there: more than max_message"
        self._warn(f"{self._shown}: {what} = {self._config.max_message}, or the incomplete end of a file")
        self._move(self._tail, self._at + item.size)

    def _begin_again(self) -> None:
        assert self._tail is not None  # noqa: S101  (it was truncated)
        fresh = Tail(self._tail.fd, self._splitter())
        self._move(fresh, 0)
        self._tail = fresh

    def _begin_next(self) -> bool:
        """Open the next file; False if the last has more after all."""
        if self._tail is not None and self._tail.has_grown():
            self._items.popleft()
            self._path_changed = True
            return False
        fd = self._siblings.open_next(self._tail.fd if self._tail else None)
        try:
            self._move(Tail(fd, self._splitter()), 0)
        except Blocked:
            os.close(fd)
            raise
        self._follow(fd, 0)
        return True

    def _read(self) -> bool:
        """Whether there may be more to do at once."""
        assert self._tail is not None  # noqa: S101  (no item is left, so a file is being followed)
        try:
            items = self._tail.read()
            if items is None:
                return self._look_for_next()
        except TruncatedError:
            self._truncated()
            return True
        self._read_in(items)
        return True

    def _read_in(self, items: Sequence[Item]) -> None:
        """Keep what was read until it is taken, messages in lists."""
        for kind, group in groupby(items, type):
            if kind is bytes:
                self._items.append([item for item in group if isinstance(item, bytes)])
            else:
                self._items.extend(item for item in group if isinstance(item, TooLong))

    def _truncated(self) -> None:
        cells = self._store.journal.cells
        cells[LOG_TRUNCATIONS] += 1
        what = f"was truncated or written anew ({cells[LOG_TRUNCATIONS]} times so far)"
        self._warn(f"{self._shown} {what}: what was not read before is lost; it is read from its start")
        self._items.append(_Step.AGAIN)

    def _look_for_next(self) -> bool:
        """At the end of the file: whether it has ended for good, or has more. Raises Blocked while that is unknown."""
        assert self._tail is not None  # noqa: S101  (asked by _read)
        if not self._path_changed:
            return False
        inode = self._siblings.inode()
        if inode in (0, self._tail.inode):
            self._path_changed = not inode
            return False
        held = files.lease(self._tail.fd)
        try:
            if not held and not (held is None and self._is_quiet(self._tail)):
                what = "was renamed and is still open for writing" if held is False else "was renamed a moment ago"
                raise Blocked(f"{self._shown}: the file that was there {what}: the new one is read after its end")
            items = self._tail.read()
        finally:
            if held:
                files.end_lease(self._tail.fd)
        if items is not None:
            self._read_in(items)
        else:
            last = self._tail.end()
            self._items.extend((last, _Step.NEXT) if last else (_Step.NEXT,))
        return True

    def _is_quiet(self, tail: Tail) -> bool:
        size, now = os.fstat(tail.fd).st_size, self._host.loop.now()
        if self._quiet_since[0] != size + 1:
            self._quiet_since = (size + 1, now)
        return now - self._quiet_since[1] >= _QUIET

    def _load(self, record: bytes, seq: int) -> tuple[int, list[bytes]] | None:
        """The messages again, by the note that an earlier life made; VOIDs if they are no more."""
        note = Note.unpack(record)
        if not note.sizes:
            return VOID.type, [VOID.body]
        if self._watch is None:
            return None
        bodies: list[bytes | None] = []
        try:
            is_there = self._find_again(note.inode)
            for start, end, check in note.extents(seq):
                bodies.append(body_at(self._reread, self._splitter(), start, end, check) if is_there else None)
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown))
            return None
        there = [body for body in takewhile(lambda body: body is not None, bodies) if body is not None]
        if there:
            return 0, there
        gone = sum(1 for _ in takewhile(lambda body: body is None, bodies))
        start, _, _ = note.extents(seq)[0]
        which = "the message" if gone == 1 else f"{gone} messages"
        what = f"{which} at byte {start} {'was' if gone == 1 else 'were'} taken, and gone before being delivered"
        self._warn(f"{self._shown}: {what} (the file was truncated, moved away or deleted)")
        return VOID.type, [VOID.body] * gone

    def _find_again(self, inode: int) -> bool:
        """Have the file that messages are read from again. Raises OSError."""
        if inode in self._missing:
            return False
        if self._reread < 0 or os.fstat(self._reread).st_ino != inode:
            if self._reread >= 0:
                os.close(self._reread)
                self._reread = -1
            found = self._siblings.find(inode)
            if found is None:
                self._missing.add(inode)
                return False
            self._reread = found
        return True

    def _splitter(self) -> Splitter:
        return splitter(self._config.framing, self._config.max_message)

    def _warn(self, text: str) -> None:
        self._host.log("warning", text)

    def _close(self) -> None:
        self._let_go()
        if self._watch is not None:
            self._host.loop.unwatch(self._watch.fileno())
            self._watch.close()
            self._watch = None
        for fd in (self._directory, self._reread):
            if fd >= 0:
                os.close(fd)
        self._directory = self._reread = -1
        self._items.clear()
        self._missing.clear()
