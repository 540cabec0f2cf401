"""The `file` endpoint: the whole content of one file, at each close, is one message; what comes in replaces another's.

A read lease makes it exact: while it is held no process has the file open for writing, so every close up to now is in
the inotify queue and can be taken out of it, and the content belongs to the last of them. The kernel reports a close
just before it counts the writer out, so a lease may be refused once more after the event: it is asked for again.

The file stays open for reading while the name leads to it. The name is looked at under the lease, after the closes:
what another file brings that takes the name later is in later events. A file that has lost its name sends none.

A close that came while no agent was there shows in the file's time of change, which is remembered from life to life.
What the file has when it is first looked at is not a message: no program closed it since. What appears while it, or its
directory, is waited for is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from nsbridge.agents.confinement.callrules import TREE, KindCalls
from nsbridge.agents.endpoints import files, watch
from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource, Waiter
from nsbridge.agents.endpoints.directory import DirectorySink, WatchedDirectory
from nsbridge.agents.endpoints.files import CachedFile, KeptFile, NotAFileError, Tree, blocked_by
from nsbridge.agents.endpoints.kind import ServedPaths
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message, Run
from nsbridge.config.kind import PathEndpoint

_EVENTS = watch.CLOSED | watch.MOVED_IN | watch.NAMED_ONLY
_REPLACEMENTS = 4  # in a row; then other events are served first
_FIRST_DELAY = 0.001  # seconds until the lease is asked for again
_MAX_DELAY = 0.05
NOTE = 3  # two cells of a source's journal, by the parity of the last message taken: when its content was written
_NOTHING = 1  # the time of no content: the file was looked for and not there


@dataclass(frozen=True, slots=True)
class FileEndpoint(PathEndpoint):
    """Single files: the whole content at each close is one message."""

    name: ClassVar[str] = "file"


class ServedFile(ServedPaths[FileEndpoint]):
    """See ServedEndpoint."""

    table = FileEndpoint
    calls = KindCalls(always=TREE, source=("fcntl:lease", "sched_yield"))
    source_cells = (NOTE, NOTE + 1)

    def source(self, agent: AgentApi, journal: SourceJournal) -> FileSource:
        """See ServedEndpoint."""
        return FileSource(agent, self.tree, self.endpoint, journal)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> FileSink:  # noqa: ARG002  (it keeps nothing)
        """See ServedEndpoint."""
        return FileSink(agent, self.tree, self.endpoint)


class _Found(NamedTuple):
    """The content of a file; None if it is too long. `changed`: when; `gone`: its directory has been replaced since."""

    body: bytes | None
    changed: int
    gone: bool


class FileSource(EventSource):
    """Takes the content of a file whenever it is closed after writing or another file is renamed over it."""

    def __init__(self, host: AgentApi, tree: Tree, config: FileEndpoint, journal: SourceJournal) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._journal = self.store = journal
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.out)
        self._parent, self._name = os.path.split(self._path)
        self._file = KeptFile(tree, self._name)
        self._directory = WatchedDirectory(host, tree, "out", self._parent, self._changed)
        self._opening = Waiter(host, "out", self._again)
        self._unread = False  # a close was seen and the content not yet taken
        self._delay = _FIRST_DELAY
        self._is_retried = False  # the lease is asked for again soon

    def start(self) -> None:
        """Open the directory, make the file if it is missing, watch for closes."""
        try:
            self._directory.find()
            try:
                # Its close is not watched.
                made = self._tree.make_file(self._directory.fd, self._path, self._config.mode)
                self._check_kind()
                self._directory.listen(_EVENTS)
            except Blocked:
                self._directory.close()
                raise
        except Blocked as reason:
            if not self._seen():
                self._note(_NOTHING)
            self._opening.wait(reason)
            return
        if made:
            self._note(made)  # the emptiness that we have made is no message
        self._opening.done()
        self._look_what_was_missed()
        self.room_again()

    def _again(self) -> None:
        """Open the directory if it is not open; else the journal had no room."""
        if self._directory.watch is None:
            self.start()
        else:
            self._opening.done()
            self.room_again()

    def _check_kind(self) -> None:
        try:
            os.close(self._tree.open_file(self._directory.fd, self._name, os.O_RDONLY))
        except NotAFileError as error:
            raise blocked_by(error, shown(self._path)) from None
        except OSError:
            pass  # reported when there is something to read

    def _look_what_was_missed(self) -> None:
        try:
            changed = _time(os.stat(self._name, dir_fd=self._directory.fd, follow_symlinks=False).st_mtime_ns)
        except OSError:
            return
        if not self._seen():
            self._note(changed)
        self._unread = self._unread or self._seen() != changed

    def _seen(self) -> int:
        """Return when the content that was seen last was written; 0 before the first look at the file."""
        return self._journal.cells[NOTE + self._journal.taken % 2]

    def _note(self, changed: int) -> None:
        self._journal.cells[NOTE + self._journal.taken % 2] = changed

    def room_again(self) -> None:
        """Take what could not be taken before."""
        if self._unread and self._directory.watch is not None:
            self._take()

    def lend(self) -> bool:
        """See Source: what was seen last stays so."""
        self._journal.cells[NOTE + (self._journal.taken + 1) % 2] = self._seen()
        return True

    def _changed(self, _events: int) -> None:
        changes = self._directory.read()
        if changes.gone:
            self._reopen()
            return
        if changes.lost:
            self._look_what_was_missed()
        if self._unread:
            self._take()
            return
        for change in changes.files:
            if change.name == self._name:
                self._take()
                return

    def _reopen(self) -> None:
        """Open the directory that is there now, and look at what it has."""
        self._file.close()
        self._directory.close()
        self.start()

    def _take(self) -> None:
        self._unread = True
        if not self._host.has_room():
            return
        try:
            found = self._read()
        except FileNotFoundError:
            self._unread = False  # removed again: there is no content
            return
        except OSError as error:
            self._opening.wait(blocked_by(error, shown(self._path)))
            self._file.close()
            self._directory.close()
            return
        if found is None:
            self._retry()
            return
        self._unread = False
        self._delay = _FIRST_DELAY
        if found.body is None:
            self._host.log("warning", f"{shown(self._path)}: more than {self._config.max_message} bytes; not taken")
        else:
            self._publish(found.body, found.changed)
        if found.gone:
            self._reopen()

    def _read(self) -> _Found | None:
        """Return what the name leads to; None while a program has it open for writing. Raises OSError."""
        file, directory = self._file, self._directory
        for _ in range(_REPLACEMENTS):
            held, gone = file.lease(directory.fd), False
            try:
                if held:
                    gone = directory.read().gone  # the closes up to now are this content's
                status = file.named(directory.fd)
                if status is not None:
                    if held is False:
                        return None
                    body = files.read_up_to(file.fd, self._config.max_message, status.st_size)
                    return _Found(body, _time(status.st_mtime_ns), gone)
            finally:
                if held:
                    files.end_lease(file.fd)
            file.close()
        return None  # again and again another one has taken the name

    def _retry(self) -> None:
        """Ask for the lease again a little later."""
        if not self._is_retried:
            self._is_retried = True
            self._host.loop.call_later(self._delay, self._retry_now)
            self._delay = min(self._delay * 2, _MAX_DELAY)

    def _retry_now(self) -> None:
        self._is_retried = False
        self.room_again()

    def _publish(self, body: bytes, changed: int) -> None:
        # Two cells take turns. The store that publishes the message also selects the cell that counts.
        self._journal.cells[NOTE + (self._journal.taken + 1) % 2] = changed
        try:
            self._host.take(Message(0, body))
        except Blocked as reason:
            self._unread = True
            self._opening.wait(reason)
            return
        self._host.flush()


class FileSink(DirectorySink):
    """Writes each message into a file in place and closes it, so that a watcher sees one close for each."""

    def __init__(self, host: AgentApi, tree: Tree, config: FileEndpoint) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._config = config
        self._path = os.fsencode(config.in_)
        parent, name = os.path.split(self._path)
        super().__init__(host, tree, parent)
        self._file = CachedFile(tree, name)

    def _open(self) -> None:
        self._directory.open()
        self._tree.make_file(self._directory.fd, self._path, self._config.mode)

    def _write(self, one: Run) -> None:
        try:
            fd = self._file.open(self._directory.fd, os.O_WRONLY | os.O_TRUNC)
            try:
                files.write_all(fd, one.bodies[0])
            finally:
                os.close(fd)
        except OSError as error:
            raise blocked_by(error, shown(self._path)) from None


def _time(changed: int) -> int:
    """Return what the journal keeps of a time of change in ns, which may be of any year: only equality counts."""
    return changed % (1 << 64)
