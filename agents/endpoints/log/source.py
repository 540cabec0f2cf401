"""The `out` side of the `log` endpoint: takes messages as they are appended to a file.

* The file is the journal. The position after each message is noted with the message, so a restart continues there. An
  unconfirmed message is read again from its position, under its former number.
* A move without a message (a new file, a truncation, something too long) takes a number too: an empty record (VOID).
* Rotation: a renamed file is read to its end first, while a process has it open for writing. Then its last line is a
  message even without a newline, and the next file begins (model.py decides which).
* Incomplete lines wait, also across a restart. Missing files are counted together with the next position, so only once.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource, Waiter
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.log.arrivals import EVENTS, LogArrivals
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.log.ear import Ear
from nsbridge.agents.endpoints.log.ends import Ends
from nsbridge.agents.endpoints.log.framing import Splitter, TooLong, Unended, grouped, splitter
from nsbridge.agents.endpoints.log.generations import Generations
from nsbridge.agents.endpoints.log.model import Missed
from nsbridge.agents.endpoints.log.notes import Note
from nsbridge.agents.endpoints.log.reports import Reports
from nsbridge.agents.endpoints.log.reread import Reread
from nsbridge.agents.endpoints.log.siblings import Siblings, now
from nsbridge.agents.endpoints.log.tail import Position, Positions, Tail, TruncatedError
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sourcejournal import RECORDS, SourceJournal
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.wire import VOID

_READS_AT_ONCE = 16  # then the rest of the agent has its turn
_RUN = 255  # messages that one note is for, at most


class _Step(Enum):
    """The steps that can be queued in the place of a message; each is done in its turn."""

    NEXT = 1  # continue with the next file
    AGAIN = 2  # continue at the start of this one


class LogSource(EventSource):
    """Takes the messages of an append-only file."""

    def __init__(self, host: AgentApi, tree: Tree, config: LogEndpoint, journal: SourceJournal) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self.store = NoteStore(journal, self._load)
        journal.cells[RECORDS] = config.notes
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.out)
        self._shown = shown(self._path)
        self._parent, self._name = os.path.split(self._path)
        self._positions = Positions(journal)
        self._resumed = journal.taken  # up to here messages may have to be read again
        self._ear = Ear(host, tree, self._parent, self._changed)
        self._reports = Reports(host, self._shown, journal, self._positions)
        self._reread = Reread(self._reports)
        self._siblings = Siblings(tree, -1, self._name)
        self._generations = Generations(self._siblings, self._reports.warn)
        self._arrivals = LogArrivals(self._name)
        self._tail: Tail | None = None
        self._items: deque[list[bytes] | TooLong | Unended | _Step] = deque()
        self._at = 0  # where the first of the items begins
        self._ends = Ends(host.loop, self._shown, self._go_on_if_open)
        self._goes_on = False
        self._took = 0  # messages, to distinguish work that brings some from work that does not
        self._waiter = Waiter(host, "out", self._again)

    def start(self) -> None:
        """Open the directory, find the file that was read last, and continue there."""
        self._reports.show()
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
        if self._items and self._ear.watch is not None:
            self._take()

    def confirmed(self, seq: int) -> None:
        """Release nothing in the container: the file stays as it is."""
        if seq >= self._resumed:
            self._reread.close()

    def lend(self) -> bool:
        """See Source: the place that was reached stays so."""
        self._positions.keep()
        return True

    def _again(self) -> None:
        if self._ear.watch is None:
            self.start()
        else:
            self._take()

    def _open(self) -> None:
        self._ear.open(EVENTS)
        self._siblings = Siblings(self._tree, self._ear.fd, self._name)
        self._generations = Generations(self._siblings, self._reports.warn)
        position = self._positions.read()
        if position is None:
            if self.store.taken:
                self._reports.no_position()
            self._tree.make_file(self._ear.fd, self._path, self._config.mode)
        while True:  # so that a file that was found by looking does not count as an arrival too
            if self._ear.read().gone:
                raise Blocked(f"{shown(self._parent)} was removed or replaced")
            self._begin(position)
            changes = self._ear.read()
            if not changes.lost and not self._arrivals.take(changes.files).arrivals and not changes.gone:
                return
            self._forget()

    def _begin(self, position: Position | None) -> None:
        if position is None:
            self._generations.first()
            self._items.append(_Step.NEXT)
            return
        start = self._generations.resume(position, self._splitter)
        if start is None:
            self._reports.gone(position.end)
            self._items.append(_Step.NEXT)
            return
        begun = position.begun or now()
        at = 0 if start.is_anew else start.at
        self._follow(Tail(start.fd, start.who, self._splitter(), at, begun), at)
        self._ear.follow(start.fd)
        if start.is_anew:
            self._reports.truncated()
            self._items.append(_Step.AGAIN)

    def _follow(self, tail: Tail, at: int) -> None:
        """Continue in another file; its descriptor belongs to us from now on."""
        if self._tail is not None:
            os.close(self._tail.fd)
        self._tail, self._at = tail, at

    def _close_tail(self) -> None:
        self._ear.turn_away()
        if self._tail is not None:
            os.close(self._tail.fd)
            self._tail = None

    def _changed(self, _events: int) -> None:
        begun, took = self._host.loop.now(), self._took
        changes = self._ear.read()
        news = self._arrivals.take(changes.files)
        if changes.gone:
            self._take()
            self._close()
            self.start()
            return
        if news.concerns_path or changes.lost:
            self._look(None if changes.lost else news.arrivals, news.moved_to)
        if self._items and self._tail is not None:
            self._tail.grows()
            self._ear.stall()
        elif news.concerns_path or changes.lost or news.concerns_file:
            self._take()
        if self._took == took and not self._items:
            self._ear.rest(begun)

    def _look(self, arrivals: int | None, moved_to: frozenset[bytes] = frozenset()) -> None:
        """Look at the path, and note how many files arrived there; None: unknown."""
        try:
            if arrivals is None:
                self._generations.lost_count([self._tail.fd] if self._tail else [], is_known=self._ear.polls)
            else:
                self._generations.look(arrivals, moved_to)
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown))

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
        begun, took = self._host.loop.now(), self._took
        for _ in range(_READS_AT_ONCE):
            if not self._take_items() or not self._read():
                return
            self._host.flush()
        if not self._goes_on:
            self._goes_on = True
            pause = self._ear.pace.pause(begun, self._host.loop.now()) if self._took == took else 0
            self._host.loop.call_later(pause, self._resume)

    def _resume(self) -> None:
        self._goes_on = False
        self._go_on_if_open()

    def _go_on_if_open(self) -> None:
        if self._ear.watch is not None:
            self._take()

    def _take_items(self) -> bool:
        """Take the items that were read; True if there was room for all of them."""
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
        note = Note(self._tail.who.inode, self._at, self.store.taken + 1, sizes, checks)
        self._positions.prepare(self._tail.position(end - sizes[-1], end, checks[-1]))
        self._host.take_run(bodies, note.pack())
        self._at = end
        self._took += count
        return count

    def _move(self, tail: Tail, at: int) -> None:
        """Note that the next message is looked for there."""
        self._positions.prepare(tail.position(at, at, 0))
        self._host.take(VOID, Note(tail.who.inode, at, self.store.taken + 1, (), ()).pack())
        self._at = at

    def _pass_over(self, item: TooLong) -> None:
        assert self._tail is not None  # noqa: S101  (it was read from there)
        self._reports.passed_over(item, self._at, self._config.max_message)
        self._move(self._tail, self._at + item.size)

    def _begin_again(self) -> None:
        """Read the truncated file from its start, or first the copies that have its old content."""
        assert self._tail is not None  # noqa: S101  (it was truncated)
        missed = self._generations.begin_again(self._tail, self._at)
        if missed is None:
            self._items.append(_Step.NEXT)
            return
        self._reports.missed(missed, "truncated, and no copy has them")
        fresh = Tail(self._tail.fd, self._tail.who, self._splitter(), begun=now())
        self._move(fresh, 0)
        self._tail = fresh

    def _begin_next(self) -> bool:
        """Open the next file; False if something else comes first."""
        if self._tail is not None and self._tail.has_changed() and self._generations.is_over(self._tail.who):
            self._items.popleft()
            return False
        found = self._generations.open_next()
        if isinstance(found, Missed):
            self._generations.advance()
            self._reports.missed(found, "compressed, deleted or moved away before they were read")
            return False
        if found is None:
            self._look_at_path()
            if self._tail is not None and not self._generations.is_over(self._tail.who):
                self._items.popleft()  # it came back to its path
            return False
        fd, who = found
        at, begun, head = self._generations.start_of(who)
        tail = Tail(fd, who, self._splitter(), at, begun)
        tail.expect(head)
        self._ear.follow(fd)
        self._move(tail, at)
        self._generations.advance()
        self._follow(tail, at)
        return True

    def _look_at_path(self) -> None:
        """Look at the path without an event. Raises OSError if nothing is there, or something else than a file."""
        os.close(self._siblings.open(self._name))
        self._generations.look(0)

    def _read(self) -> bool:
        """Read the next bytes; True if there may be more to do at once."""
        assert self._tail is not None  # noqa: S101  (no item is left, so a file is being followed)
        self._ear.resume()
        try:
            if not self._tail.reached and self._tail.is_anew() and self._generations.precedes(self._tail):
                self._items.append(_Step.NEXT)
                return True
            items = self._tail.read()
            if items is None:
                return self._look_for_next()
        except TruncatedError:
            self._reports.truncated()
            self._items.append(_Step.AGAIN)
            return True
        self._items.extend(grouped(items))
        return True

    def _look_for_next(self) -> bool:
        """Decide at the end of the file: True if it has ended or has more. Raises Blocked while that is unknown."""
        tail = self._tail
        assert tail is not None  # noqa: S101  (asked by _read)
        if not self._generations.is_over(tail.who):
            if self._generations.at_path is None:
                with suppress(FileNotFoundError):
                    self._look_at_path()  # something else than a file may be there
            elif tail.unwritten:
                self._ends.await_writing(tail)
            return False
        items, has_ended = self._ends.finish(tail)
        self._items.extend(grouped(items))
        if has_ended:
            self._items.append(_Step.NEXT)
        return True

    def _load(self, record: bytes, seq: int) -> tuple[int, list[bytes]] | None:
        """Read messages again by an earlier agent's note; None if they cannot be read now."""
        note = Note.read(record, seq)
        if note is None:
            return VOID.type, [VOID.body]
        if self._ear.watch is None:
            return None
        try:
            return self._reread.load(note, seq, self._siblings, self._splitter())
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown))
            return None

    def _splitter(self) -> Splitter:
        return splitter(self._config.framing, self._config.max_message)

    def _forget(self) -> None:
        """Forget the directory, so that it is examined again."""
        self._close_tail()
        self._items.clear()
        self._generations.close()

    def _close(self) -> None:
        self._forget()
        self._ear.close()
        self._reread.forget()
