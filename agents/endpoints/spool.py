"""The `out` side of the `spool` endpoint: each file of a directory is one message.

A file counts when it is renamed into the directory or closed after writing; it is let go of (deleted, or moved
to `done`) only when the other side has confirmed it, so the directory is the journal. Order is arrival; what a scan
finds goes by name. A scanned file may still be open for writing: a read lease tells.

The container may put there what it likes, as much as it likes. What is no regular file is said once and left. A file
that cannot be opened just now, because its program holds a lease on it, keeps nobody waiting. As many names wait as the
kernel would keep events; the rest is found by a scan.
"""

from __future__ import annotations

import errno
import heapq
import os
import struct
from collections import deque
from typing import NamedTuple

from nsbridge.agents import linux
from nsbridge.agents.endpoints import files, watch
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.files import LEASED, NotAFileError, Tree, blocked_by, shown
from nsbridge.agents.journal import RECORDS, SPOOL_NOTES
from nsbridge.agents.store import NoteStore
from nsbridge.agents.wire import VOID, Message
from nsbridge.config.schema import SpoolEndpoint

_EVENTS = watch.CLOSED | watch.MOVED_IN
_LOOK_AGAIN = 0.5  # seconds after which a scanned file that was open for writing is tried again
_QUIET = 10.0  # seconds without a change after which a scanned file counts as whole, where no lease can tell
_MOST = 16384  # names that wait to be taken, as many as the kernel's events (fs.inotify.max_queued_events)


class _Identity(NamedTuple):
    """What makes it the same file with the same content."""

    inode: int
    mtime_ns: int
    size: int


_GONE = VOID.type, (VOID.body,)
_NOTE = struct.Struct("<QqQ")  # an _Identity; the name follows


def described(note: bytes, _seq: int) -> tuple[int, str]:
    """A note for a person: the message's bytes, and which file it is."""
    return _Identity(*_NOTE.unpack_from(note)).size, f"file {shown(note[_NOTE.size :])}"


class _Taken(NamedTuple):
    seq: int
    name: bytes
    identity: _Identity


class SpoolSource:
    """Takes the files of a directory."""

    def __init__(self, host: Host, tree: Tree, config: SpoolEndpoint, store: NoteStore) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._store = store
        store.load = self._load
        store.journal.cells[RECORDS] = SPOOL_NOTES
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.out)
        self._directory = -1
        self._done = -1
        self._watch: watch.DirectoryWatch | None = None
        self._waiter = Waiter(host, "out", self._again)
        self._backlog: deque[bytes] = deque()  # to be taken, in this order
        self._scan_is_due = False
        self._has_more = False  # there were more than _MOST: they are found by a scan
        self._scanned: set[bytes] = set()  # of these, the ones whose writer may not be done
        self._known: set[bytes] = set()  # in the backlog, or postponed, or taken and not confirmed, or refused
        self._postponed: set[bytes] = set()  # cannot be taken just now: looked at again after a while
        self._refused: set[bytes] = set()  # no message: logged once, looked at again when it changes
        self._leased: set[bytes] = set()  # postponed because of a lease: logged once
        self._refused_limit = _MOST  # with so many refused, those that are gone are forgotten
        self._seen: dict[
            bytes, tuple[_Identity, float]
        ] = {}  # scanned files of which no lease tells that they are whole
        self._taken: deque[_Taken] = deque()
        watch.keep_place(host, lambda fd: tree.leads_to(self._path, fd), lambda: self._watch, self._changed)

    def start(self) -> None:
        """Open the directory, watch it, then scan it: whatever comes in between is seen by one of the two."""
        try:
            self._open()
        except Blocked as reason:
            self._close()
            self._waiter.wait(reason)
            return
        self._waiter.done()
        self._take()
        self._host.flush()

    def room_again(self) -> None:
        """Take what was left."""
        if self._backlog or self._has_more:
            self._take()

    def confirmed(self, seq: int) -> None:
        """Delete the files, or move them to `done`. Nothing more is taken while that cannot be done."""
        if self._watch is None:
            return
        while self._taken and self._taken[0].seq <= seq:
            taken = self._taken[0]
            try:
                self._let_go(taken)
            except FileNotFoundError:
                self._known.discard(taken.name)
            except OSError as error:
                self._waiter.wait(f"delivered, but cannot be removed: {blocked_by(error, self._shown(taken.name))}")
                return
            except Blocked as reason:
                self._waiter.wait(f"delivered, but cannot be moved away: {reason}")
                return
            self._taken.popleft()
            self._store.journal.released = taken.seq
        # Past dead letters too, which have no file: or `_resume` would go too far back.
        self._store.journal.released = seq

    def lend(self) -> bool:
        """See Source: the notes of what was delivered and not removed must stay."""
        return self._watch is not None and not (self._taken and self._taken[0].seq <= self._store.confirmed)

    def _let_go(self, taken: _Taken) -> None:
        if _identity(os.stat(taken.name, dir_fd=self._directory, follow_symlinks=False)) != taken.identity:
            self._known.discard(taken.name)  # its program has put another message there meanwhile
            self._add(taken.name)
            return
        if self._config.done is None:
            os.unlink(taken.name, dir_fd=self._directory)
        else:
            self._move_to_done(taken)
        self._known.discard(taken.name)

    def _move_to_done(self, taken: _Taken) -> None:
        """Under its name, or if that is there already under NAME.SEQ; the directory is made again if it is gone."""
        if self._done < 0:
            self._open_done()
        for name in (taken.name, b"%s.%d" % (taken.name, taken.seq)):
            try:
                linux.rename_noreplace(self._directory, taken.name, name, self._done)
            except FileExistsError:
                continue
            except FileNotFoundError:
                self._open_done()
                linux.rename_noreplace(self._directory, taken.name, name, self._done)
            return
        raise FileExistsError(errno.EEXIST, "it is in the done directory already")

    def _open_done(self) -> None:
        """Raises Blocked; there is none then."""
        if self._done >= 0:
            os.close(self._done)
            self._done = -1
        if self._config.done is not None:
            self._done = self._tree.open_directory(os.fsencode(self._config.done), self._config.mode)

    def _again(self) -> None:
        if self._watch is None:
            self.start()
            return
        self.confirmed(self._store.confirmed)
        self._take()

    def _open(self) -> None:
        self._directory = self._tree.open_directory(self._path, self._config.mode)
        self._open_done()
        self._watch = watch.DirectoryWatch(self._directory, _EVENTS)
        self._host.loop.watch(self._watch.fileno(), 1, self._changed)
        self._resume()
        self._scan()

    def _resume(self) -> None:
        """Know again what was taken: to be let go of where it was confirmed, not to be taken twice where it was not."""
        store = self._store
        for seq in range(store.journal.released + 1, store.taken + 1):
            if note := store.note_of(seq):
                identity, name = _Identity(*_NOTE.unpack_from(note)), note[_NOTE.size :]
                self._known.add(name)
                self._taken.append(_Taken(seq, name, identity))
        self.confirmed(store.confirmed)

    def _load(self, note: bytes, _seq: int) -> tuple[int, tuple[bytes]] | None:
        """The message again, by the note that an earlier life made."""
        if self._watch is None:
            return None
        name = note[_NOTE.size :]
        try:
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
        except (FileNotFoundError, NotAFileError):
            self._host.log("warning", f"{self._shown(name)} was taken, and is gone before it was delivered")
            return _GONE
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown(name)))
            return None
        try:
            body = files.read_up_to(fd, self._config.max_message)
            if body is None or _identity(os.fstat(fd)) != _NOTE.unpack_from(note):
                self._host.log("warning", f"{self._shown(name)} was taken, and is another file before it was delivered")
                return _GONE
        finally:
            os.close(fd)
        return 0, (body,)

    def _scan(self) -> None:
        """Of what is there and not known the first by name, as many as may wait.

        A listing may miss a file that came before another one which it has (ext4 lists by a hash of the name). It is
        there when a second listing begins, so of two the second has all that came before the last of the first.
        """
        room = _MOST - len(self._backlog)
        first = self._listed(room + 1)
        found = self._listed(room + 1, upto=first[-1]) if first else []
        self._has_more = len(found) > room
        for name in found[:room]:
            self._scanned.add(name)
            self._known.add(name)
            self._backlog.append(name)

    def _listed(self, most: int, upto: bytes | None = None) -> list[bytes]:
        """The first new ones by name."""
        with os.scandir(self._directory) as entries:
            names = (os.fsencode(entry.name) for entry in entries)
            wanted = (name for name in names if self._is_new(name) and (upto is None or name <= upto))
            return heapq.nsmallest(most, wanted)

    def _is_new(self, name: bytes) -> bool:
        return name not in self._known and not name.startswith(b".")

    def _add(self, name: bytes) -> None:
        if not self._is_new(name):
            return
        if self._has_more or len(self._backlog) >= _MOST:
            self._has_more = True  # those that are found by a scan came before this one
            return
        self._known.add(name)
        self._backlog.append(name)

    def _changed(self, _events: int) -> None:
        assert self._watch is not None  # noqa: S101  (called only while it is watched)
        changes = self._watch.read()
        if changes.gone:
            self._close()
            self.start()
            return
        for name, _ in changes.files:
            self._scanned.discard(name)
            if name in self._refused or name in self._postponed:  # it may be another file by now
                self._refused.discard(name)
                self._postponed.discard(name)
                self._known.discard(name)
            self._add(name)
        if changes.lost:
            self._known -= self._refused  # they may be others by now, too
            self._refused.clear()
            self._scan()
        self._take()

    def _take(self) -> None:
        if self._taken and self._taken[0].seq <= self._store.confirmed:
            return  # what was delivered is still there: `confirmed` says why, and comes again
        self._host.retry()
        try:
            while self._backlog and self._host.has_room():
                name = self._backlog[0]
                message = self._read(name)
                if message is not None:
                    body, identity = message
                    seq = self._host.take(Message(0, body), _NOTE.pack(*identity) + name)
                    self._taken.append(_Taken(seq, name, identity))
                self._backlog.popleft()
        except Blocked as reason:
            self._waiter.wait(reason)
        else:
            self._waiter.done()
        self._host.flush()
        if self._has_more and not self._backlog and not self._scan_is_due:
            self._scan_is_due = True
            self._host.loop.call_later(0, self._take_more)

    def _take_more(self) -> None:
        self._scan_is_due = False
        if self._watch is not None:
            self._scan()
            self._take()

    def _read(self, name: bytes) -> tuple[bytes, _Identity] | None:
        """The file's content; None if it is not to be taken (now): it is gone, being written, or no message."""
        try:
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
        except FileNotFoundError:
            for names in (self._known, self._scanned, self._leased):
                names.discard(name)
            return None
        except NotAFileError as error:
            self._refuse(name, f"is {error.strerror}")
            return None
        except BlockingIOError:
            self._postpone(name, f"cannot be opened: {LEASED}")
            return None
        except OSError as error:
            raise blocked_by(error, self._shown(name)) from None
        try:
            if name in self._scanned and not self._is_whole(fd, name):
                return None
            identity = _identity(os.fstat(fd))
            body = files.read_up_to(fd, self._config.max_message, identity.size)
        finally:
            os.close(fd)
        if body is None:
            self._refuse(name, f"has more than max_message = {self._config.max_message} bytes")
            return None
        return body, identity

    def _refuse(self, name: bytes, why: str) -> None:
        self._refused.add(name)
        self._host.log("warning", f"{self._shown(name)} {why}; left where it is")
        if len(self._refused) > self._refused_limit:
            gone = self._refused.difference(map(os.fsencode, os.listdir(self._directory)))  # noqa: PTH208
            self._refused -= gone
            self._known -= gone
            self._refused_limit = max(_MOST, 2 * len(self._refused))

    def _postpone(self, name: bytes, why: str = "") -> None:
        """Leave it, without the others waiting for it, and look at it again after a while."""
        if why and name not in self._leased:
            self._leased.add(name)
            self._host.log("warning", f"{self._shown(name)} {why}; it is tried again")
        if not self._postponed:
            self._host.loop.call_later(_LOOK_AGAIN, self._look_again)
        self._scanned.add(name)
        self._postponed.add(name)

    def _is_whole(self, fd: int, name: bytes) -> bool:
        """Whether nobody is writing a file that a scan found; if not, its close is an event that brings it again."""
        held = files.lease(fd)
        if held is False or (held is None and not self._is_quiet(fd, name)):
            self._postpone(name)  # its close brings it again; a close that was just before the scan does not
            return False
        self._scanned.discard(name)
        self._leased.discard(name)
        self._seen.pop(name, None)
        return True

    def _is_quiet(self, fd: int, name: bytes) -> bool:
        """Whether a file that is not ours, so that no lease tells, has not changed for a while."""
        now, identity = self._host.loop.now(), _identity(os.fstat(fd))
        before, since = self._seen.get(name, (None, now))
        if before != identity:
            self._seen[name] = (identity, now)
        return before == identity and now - since >= _QUIET

    def _look_again(self) -> None:
        names, self._postponed = sorted(self._postponed), set()
        if self._watch is None:
            return
        self._known.difference_update(names)
        for name in names:
            self._add(name)
        self._take()

    def _shown(self, name: bytes) -> str:
        return shown(self._path + b"/" + name)

    def _close(self) -> None:
        if self._watch is not None:
            self._host.loop.unwatch(self._watch.fileno())
            self._watch.close()
            self._watch = None
        for fd in (self._directory, self._done):
            if fd >= 0:
                os.close(fd)
        self._directory = self._done = -1
        self._has_more = False
        for names in (self._backlog, self._scanned, self._known, self._refused, self._seen, self._taken):
            names.clear()
        self._postponed.clear()
        self._leased.clear()


def _identity(status: os.stat_result) -> _Identity:
    return _Identity(status.st_ino, status.st_mtime_ns, status.st_size)
