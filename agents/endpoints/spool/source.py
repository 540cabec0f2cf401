"""The `out` side of the `spool` endpoint: each file of a directory is one message.

A file counts when it is in the directory under a message's name and no process has it open for writing. It is removed
(deleted, or moved to `done`) only when the other side has confirmed it, so the directory is the journal.
whole.py decides when a file is complete, names.py in which order names wait.

The same file (by inode) under a new name is the same message. So a program may rename a file that was taken.

The container may put anything there, in any amount. A file that cannot be taken now (another user owns it, its disk has
an error, a program holds a lease on it) is set aside and does not delay others.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource, Waiter
from nsbridge.agents.endpoints.directory import WatchedDirectory
from nsbridge.agents.endpoints.files import LEASED, NotAFileError, Tree, blocked_by
from nsbridge.agents.endpoints.spool.cells import WAITING
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.delivered import DeliveredFiles
from nsbridge.agents.endpoints.spool.matching import message_names
from nsbridge.agents.endpoints.spool.names import CLOSED, CREATED, MOVED_IN, SCANNED, Calls, SpoolNames
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, Taken, identity_of, pack, sent_name, unpack
from nsbridge.agents.endpoints.spool.refused import Fate, RefusedFiles
from nsbridge.agents.endpoints.spool.taken import TakenFiles
from nsbridge.agents.endpoints.spool.whole import Completeness, Verdict
from nsbridge.agents.endpoints.spool.writable import RemovalNotice
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sourcejournal import RECORDS, SourceJournal
from nsbridge.agents.journal.store import NOTE, NoteStore
from nsbridge.agents.journal.waitinglist import WaitingList
from nsbridge.agents.wire import VOID, Message

_NEW_NAMES = MOVED_IN | CREATED
_EMPTY = 2.0  # seconds until an empty file counts that was created and not closed
_REFUSED = 10.0  # seconds until a file that was refused is looked at again
_SOON = 0.001  # seconds until a closed file's lease is asked for again; doubled each time
_PATIENCE = 7  # times, 0.13 s in all
_AT_ONCE = 512  # names; then the rest of the agent has its turn
_SENT_AT_ONCE = 128  # files that are taken before they are sent, or removed; the first few of them after fewer
_FIRST_SENT = 16
_FIRST_REMOVED = 16  # delivered files that are removed before more are taken
_READS = 1000  # of events in a row, 64 KiB each
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # these say nothing about the file

KeptName = Callable[[bytes], bytes]

_GONE = VOID.type, (VOID.body,)


class _NotYet(Exception):
    """The next file was closed, but the kernel still counts its writer."""


class SpoolSource(EventSource):
    """Takes the files of a directory."""

    def __init__(
        self,
        host: AgentApi,
        tree: Tree,
        config: SpoolEndpoint,
        journal: SourceJournal,
        *,
        kept_name: KeptName | None = None,
    ) -> None:
        """Send names if the sink across keeps them: `kept_name` is its Endpoint.kept_name then."""
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self.store = NoteStore(journal, self._load, sent_name if kept_name is not None else None)
        self._kept_name = kept_name
        journal.cells[RECORDS] = config.notes
        journal.hold()
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.out)
        self._foreign_files_stay = False  # in another user's sticky directory: only a file's owner may remove it
        self._directory = WatchedDirectory(host, tree, "out", self._path, self._changed)
        self._waiter = Waiter(host, "out", self._again)
        host.vouch(self._show_waiting)
        self._removal = RemovalNotice(host, shown(self._path))
        waiting = WaitingList(journal.waiting_fd, config.waiting_size, journal.cells, WAITING)
        calls = Calls(self._take, self._odd, self._listen, self._drain)
        self._names = SpoolNames(host.loop, message_names(config.takes), calls, waiting)
        self._refused = RefusedFiles(host, tree, config, journal.cells)
        self._patience = 0  # how often the next file's lease was refused
        self._pauses = False  # until it is asked for again
        self._completeness = Completeness(host.loop.now)
        self._taken = TakenFiles(tree, config, self.store, self._names)
        self._delivered = DeliveredFiles(tree, config, self._taken, self._names, host.loop, self._remove_more)

    def start(self) -> None:
        """Open and watch the directory, resend unconfirmed files, then scan: watch or scan finds every file."""
        try:
            self._open()
        except Blocked as reason:
            self._close()
            self._waiter.wait(reason)
            return
        self._waiter.done()
        self.confirmed(self.store.confirmed)
        self._host.flush()
        self._names.open(self._directory.fd)

    def room_again(self) -> None:
        """Take what was left."""
        if self._names.may_have_more():
            self._take()

    def confirmed(self, seq: int) -> None:  # noqa: ARG002  (the notes show what was delivered)
        """Delete the files, or move them to `done`. Nothing more is taken if that cannot be done."""
        self._remove(_FIRST_REMOVED)

    def lend(self) -> bool:
        """See Source: the notes of what was delivered and not removed must stay."""
        return self._directory.watch is not None and self._taken.delivered() is None

    def stop_taking(self) -> bool:
        """Take no more; what was delivered is removed now, as far as that can be done."""
        self._remove(1 << 30)
        return True

    def _remove(self, most: int) -> None:
        if self._directory.watch is None:
            return
        try:
            self._delivered.remove(most)
        except Blocked as reason:
            self._waiter.wait(reason)

    def _remove_more(self) -> None:
        self._remove(_SENT_AT_ONCE)
        self._take()

    # -- the directory

    def _again(self) -> None:
        if self._directory.watch is None:
            self.start()
            return
        self.confirmed(self.store.confirmed)
        self._take()

    def _open(self) -> None:
        self._directory.open(_NEW_NAMES, self._config.mode)
        about = os.fstat(self._directory.fd)
        self._foreign_files_stay = bool(about.st_mode & stat.S_ISVTX) and about.st_uid != os.getuid()
        self._taken.open(self._directory.fd)
        self._delivered.open(self._directory.fd)
        self._refused.open(self._directory.fd)
        self._removal.look(self._directory.fd)
        self._resume()

    def _resume(self) -> None:
        """Recognise the taken files: remove the confirmed ones, and do not take the others twice."""
        store = self.store
        get = store.journal.get
        for seq in range(store.journal.released + 1, store.taken + 1):
            kind, note = get(seq)
            if kind == NOTE:
                identity, name = unpack(note)
                self._taken.add(Taken(seq, name, identity))

    def _load(self, note: bytes, _seq: int) -> tuple[int, tuple[bytes]] | None:
        """Read the message again, by the note of an earlier agent; None if that fails."""
        if self._directory.watch is None:
            return None
        identity, name = unpack(note)
        try:
            body = self._taken.load(identity, name)
        except (FileNotFoundError, NotAFileError):
            self._host.log("warning", f"LOST: {self._shown(name)} was removed from `out` before it could be delivered")
            return _GONE
        except OSError as error:
            self._waiter.wait(blocked_by(error, self._shown(name)))
            return None
        if body is None:
            self._host.log("warning", f"LOST: {self._shown(name)} was replaced or changed before it could be delivered")
            return _GONE
        return 0, (body,)

    def _show_waiting(self) -> float:
        """Report at each heartbeat about how many files wait."""
        self._host.files_waiting(self._names.estimated_count())
        return self._host.loop.now()

    def _listen(self) -> bool:
        """Watch for closed files too, which may take 20 ms (watch.py); False if it does already. Raises Blocked."""
        return self._directory.listen_for(CLOSED)

    def _changed(self, _events: int) -> None:
        if self._read_events():
            self._take()

    def _drain(self) -> bool:
        """Read every event up to now; False if the directory was replaced."""
        for _ in range(_READS):
            if not self._read_events():
                return False
            if self._directory.watch is None or self._directory.watch.is_drained:
                break
        return True

    def _read_events(self) -> bool:
        """Read some events; False if the directory was gone and is opened again."""
        changes = self._directory.read(hidden=False)
        if changes.gone:
            self._close()
            self.start()
            return False
        event = self._names.event
        for name, mask in changes.files:
            event(name, mask)
        if changes.lost:
            self._names.scan()
        return True

    # -- taking

    def _take(self) -> None:
        if self._directory.watch is None or self._pauses or self._delivered.is_blocked:
            return  # what was delivered cannot be removed: `_remove` says why, and comes again
        self._host.retry_dead_letters()
        try:
            self._take_some()
        except _NotYet:
            self._pauses = True  # whatever event comes meanwhile
            self._host.loop.call_later(_SOON * 2**self._patience, self._after_pause)
            self._patience += 1
        except Blocked as reason:
            self._waiter.wait(reason)
        else:
            self._waiter.done()
        self._refused.show(self._names.refused())
        self._host.flush()

    def _after_pause(self) -> None:
        self._pauses = False
        self._take()

    def _take_some(self) -> None:
        """Take files while there is room. Raises Blocked, _NotYet."""
        names, host = self._names, self._host
        messages, size = host.room()
        messages = min(messages, self.store.journal.room())
        taken = 0
        for _ in range(_AT_ONCE):
            if messages <= 0 or size <= 0:
                return
            name = names.first()
            if name is None:
                return
            message = self._read(name)
            self._patience = 0
            if message is not None:
                body, identity = message
                seq = host.take(Message(0, body), pack(identity, name))
                self._taken.add(Taken(seq, name, identity, body))
                messages -= 1
                size -= len(body)
                taken += 1
                if taken == _FIRST_SENT or not taken % _SENT_AT_ONCE:
                    host.flush()
                    self._delivered.remove(2 * min(taken, _SENT_AT_ONCE))  # so few are left at any time
        host.loop.call_later(0, self._take)

    def _read(self, name: bytes) -> tuple[bytes, SpoolFileId] | None:
        """Return the file's content; None if it cannot be taken (now). Raises Blocked, _NotYet."""
        if self._kept_name is not None and not self._kept_name(name):
            self._refuse(name, "has a name that would be too long with the suffix of the other spool", Fate.MOVES)
            return None
        try:
            fd, status = self._tree.open_and_stat(self._directory.fd, name, os.O_RDONLY)
        except OSError as error:
            self._not_opened(name, error)
            return None
        try:
            if not self._is_whole(fd, name, status):
                return None
            identity = identity_of(status)
            if self._taken.is_renamed(name, identity):
                return None
            body = files.read_up_to(fd, self._config.max_message, identity.size)
            if body is not None and len(body) != identity.size:  # it was written to before the lease was held
                identity = identity_of(os.fstat(fd))
        except OSError as error:
            self._refuse(name, f"cannot be read: {os.strerror(error.errno or 0)}", Fate.WAITS)
            return None
        finally:
            os.close(fd)
        if body is None:
            self._refuse(name, f"has more than max_message = {self._config.max_message} bytes", Fate.MOVES)
            return None
        return body, identity

    def _not_opened(self, name: bytes, error: OSError) -> None:
        """Handle a name whose file cannot be opened. Raises Blocked if the file is not the cause."""
        if isinstance(error, NotAFileError):
            self._refuse(name, _what_it_is(error), Fate.MOVES)
        elif isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:  # from a list that was forged
            if self._names.how(name) == CLOSED:
                # A file made by O_TMPFILE and linked later has no name when it is closed; the event shows its inode.
                self._names.look_again()
            self._names.forget(name)
        elif isinstance(error, BlockingIOError):
            self._refuse(name, f"cannot be opened: {LEASED}", Fate.PASSES)
        elif error.errno in _OURS:
            raise blocked_by(error, self._shown(name)) from None
        else:
            try:
                os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                pass  # seen at the next look
            except OSError as search:
                raise blocked_by(search, shown(self._path)) from None  # the directory itself cannot be searched
            self._refuse(name, str(blocked_by(error, "cannot be opened")), Fate.WAITS)

    def _odd(self, name: bytes) -> None:
        """Refuse a name that is not a regular file, as a scan found."""
        try:
            os.close(self._tree.open_file(self._directory.fd, name, os.O_RDONLY))
        except NotAFileError as error:
            self._refuse(name, _what_it_is(error), Fate.MOVES)
        except OSError:
            pass  # it is gone, or an event will follow

    def _refuse(self, name: bytes, why: str, fate: Fate) -> None:
        """Set a file aside for a reason that the operator should know, which is reported once; or move it away."""
        is_new = self._names.set_aside(name, why, 0.0 if fate is Fate.PASSES else _REFUSED)
        if self._refused.refuse(name, why, fate, is_new=is_new):
            self._names.forget(name)

    def _is_whole(self, fd: int, name: bytes, status: os.stat_result) -> bool:
        """True if no process is writing the file, and it can be removed later. Otherwise it is set aside.

        Raises _NotYet, Blocked.
        """
        if self._foreign_files_stay and status.st_uid != os.getuid():
            why = "could not be removed when it is delivered, because the directory is sticky"
            self._refuse(name, f"belongs to uid {status.st_uid} and {why}", Fate.STAYS)
            return False
        how = self._names.how(name)
        held = files.lease(fd)
        if held and how in (CLOSED, MOVED_IN):
            return True
        if how == SCANNED and self._directory.polls:
            how = CREATED  # it may be as new as that
        verdict = self._completeness.judge(fd, name, how, status)
        if verdict is not Verdict.WHOLE and self._listen():  # its close is an event from now on, or it came before
            verdict = self._completeness.judge(fd, name, how, status)
        if verdict is Verdict.WHOLE:
            return True
        if verdict is Verdict.NEARLY and self._patience < _PATIENCE:
            raise _NotYet
        self._names.set_aside(name, delay=_EMPTY if verdict is Verdict.EMPTY else 0.0)  # its close queues it
        return False

    def _shown(self, name: bytes) -> str:
        return shown(self._path + b"/" + name)

    def _close(self) -> None:
        self._names.close()
        self._removal.look(-1)
        self._directory.close()
        self._taken.close()
        self._delivered.close()
        self._refused.close()
        self._completeness.clear()


def _what_it_is(error: NotAFileError) -> str:
    """Return why it cannot be a message: its kind, or what is mounted over it."""
    is_kind = str(error.strerror).endswith("not a regular file")
    return f"is {error.strerror}" if is_kind else f"is not taken: {error.strerror}"
