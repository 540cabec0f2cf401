"""The `in` side of the `spool` endpoint: each message becomes a file that appears whole.

The sink writes a hidden temporary file, notes the intent, then renames the file. After a kill the hidden name decides.
If it exists, the message was not handed over. If it is gone, it was, even if the reader has deleted the file since.

Other programs may make files of the same names. Such files are no evidence:
* If a final name is taken, the sink waits and reports it; it never overwrites a file. A file counts as this message
  only if it belongs to our user and has exactly its content, as an earlier agent with a lost journal leaves it.
* If a hidden name is taken by something that cannot be removed, the sink uses another one that cannot be guessed.

The names begin with the source's epoch, so that they sort in the order of the messages. If an epoch is older than
existing names, as after the clock was set back, the names continue after those (epochs.py).

With `name = "original"` a message's file has the name that its file had at the source. The same name comes again and
again, with the same content too. So a file of that name is never taken for the message: the message waits until the
name is free, and later messages wait behind it. After a kill the hidden name decides, as for every message.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NoReturn

from nsbridge.agents import linux
from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.directory import DirectorySink, NameTaken, Undeliverable
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.spool.cells import HIDDEN
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.epochs import NameEpochs
from nsbridge.agents.endpoints.spool.writable import refusal
from nsbridge.agents.endpoints.watch import DELETED, MOVED_OUT, Changes
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.sinkjournal import PLACE, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.filenames import LONGEST_NAME

_MOST = (1 << 64) - 1  # that a cell of the journal keeps
_NO_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)  # the file system has no such names


class SpoolSink(DirectorySink):
    """Puts each message into a file of its own.

    It is named EPOCH-SEQ.TYPE, so that the order by name is the messages' order; or as its file was at the source.
    """

    def __init__(self, host: AgentApi, tree: Tree, config: SpoolEndpoint, journal: SinkJournal) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._journal = journal
        self._config = config
        self._suffix = os.fsencode(config.suffix)
        self._keeps_names = config.keeps_names
        self._awaited = b""  # the name that a message waits for
        self._path = os.fsencode(config.in_)
        super().__init__(host, tree, self._path)
        self._epochs = NameEpochs(journal.cells, lambda text: host.log("warning", f"{shown(self._path)}: {text}"))

    def _write(self, one: Run) -> None:
        """Write the one message under a hidden name and rename it. Raises Blocked; then no intent is left."""
        journal = self._journal
        if one.epoch == journal.epoch and one.first <= journal.handed:
            return
        self._awaited = b""
        try:
            name = self._name(one)
            if self._keeps_names and self._is_taken(name):
                self._wait_for(name)
            fd, hidden = self._make_hidden(one)
            try:
                files.write_all(fd, one.bodies[0])
            finally:
                os.close(fd)
            journal.intent = one.first if one.epoch == journal.epoch else 0
            if not self._rename(hidden, name):
                self._settle_taken_name(name, one.bodies[0])
        except OSError as error:
            journal.intent = 0  # else it would count as handed over if the hidden name was removed
            raise blocked_by(error, shown(self._path)) from None

    def _name(self, one: Run) -> bytes:
        """Return the name of the message's file. Raises OSError, Undeliverable."""
        if self._keeps_names and one.names and one.names[0]:
            (original,) = one.names
            if name := self._config.kept_name(original):
                return name
            why = f"its name would be longer than {LONGEST_NAME} bytes with the suffix {self._config.suffix}"
            raise Undeliverable(shown(self._path + b"/" + original), why)
        epoch = self._epochs.named(one.epoch, self._directory.fd)
        return b"%016x-%020d.%d" % (epoch, one.first, one.type) + self._suffix

    def _is_taken(self, name: bytes) -> bool:
        """True if anything has that name. Raises OSError; Undeliverable if the file system has no such names."""
        try:
            os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in _NO_NAME:
                raise
            why = f"its file system cannot have the name: {os.strerror(error.errno)}"
            raise Undeliverable(shown(self._path + b"/" + name), why) from None
        return True

    def _wait_for(self, name: bytes) -> NoReturn:
        self._awaited = name
        where = shown(self._path + b"/" + name)
        raise NameTaken(f"{where} already exists, and the next message has that name: it waits until the file is gone")

    def _files_changed(self, changes: Changes) -> None:
        """See DirectorySink: the name that a message waits for may be free."""
        if self._awaited and (changes.lost or any(name == self._awaited for name, _ in changes.files)):
            self._host.sink_ready()

    def _rename(self, hidden: bytes, name: bytes) -> bool:
        """Publish the file; False if the name is taken. Then neither the hidden name nor the intent is left."""
        try:
            linux.rename_noreplace(self._directory.fd, hidden, name)
        except FileExistsError:
            self._journal.intent = 0  # before the removal, else it would count as handed over after a kill
            os.unlink(hidden, dir_fd=self._directory.fd)
            return False
        return True

    def _make_hidden(self, one: Run) -> tuple[int, bytes]:
        """Make the hidden file, and note its name first. Raises OSError."""
        for token in (0, int.from_bytes(os.urandom(4)) | 1):
            hidden = _hidden(one.epoch, one.first, token)
            if self._journal.cells[HIDDEN] != token:
                self._journal.cells[HIDDEN] = token  # first, so that a killed agent's file can be found and removed
            try:
                try:
                    fd = files.make_file(self._directory.fd, hidden, self._config.mode)
                except FileExistsError:  # left by an agent that was killed here
                    os.unlink(hidden, dir_fd=self._directory.fd)
                    fd = files.make_file(self._directory.fd, hidden, self._config.mode)
            except (FileExistsError, IsADirectoryError, PermissionError):
                if token:
                    raise
                continue
            return fd, hidden
        raise AssertionError("not reached")

    def _settle_taken_name(self, name: bytes, body: bytes) -> None:
        """Check a file that has the message's name. Raises Blocked unless it is the message."""
        if self._keeps_names:
            self._wait_for(name)
        where = shown(self._path + b"/" + name)
        if not self._is_ours(name, body):
            raise Blocked(f"{where} already exists, and nsbridge did not create it: remove it or move it away")
        self._host.log("warning", f"{where} already exists with the message's content: it counts as delivered")

    def _is_ours(self, name: bytes, body: bytes) -> bool:
        try:
            fd = self._tree.open_file(self._directory.fd, name, os.O_RDONLY)
            try:
                return os.fstat(fd).st_uid == os.geteuid() and files.read_up_to(fd, len(body)) == body
            finally:
                os.close(fd)
        except OSError:
            return False

    def _open(self) -> None:
        self._directory.open(DELETED | MOVED_OUT if self._keeps_names else 0, self._config.mode)
        self._settle()
        if error := refusal(self._directory.fd):
            raise blocked_by(error, shown(self._path))

    def _settle(self) -> None:
        """Find out whether the message that a killed agent was handing over into this directory has been."""
        cells, journal = self._journal.cells, self._journal
        place = min(os.fstat(self._directory.fd).st_ino + 1, _MOST)
        hidden = _hidden(journal.epoch, journal.handed + 1, cells[HIDDEN])
        if cells[PLACE] == place and journal.intent == journal.handed + 1 and not self._has_file(hidden):
            journal.hand(journal.intent)
            self._host.log("info", f"message {journal.handed} was handed over just before the agent was killed")
        journal.intent = 0  # before the removal, else the message would count as handed over after a kill
        cells[PLACE] = place
        if cells[HIDDEN]:
            with suppress(OSError):
                os.unlink(hidden, dir_fd=self._directory.fd)  # the next one has another name

    def _has_file(self, name: bytes) -> bool:
        """True if a regular file has this name; anything else is not ours."""
        try:
            about = os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(about.st_mode)


def _hidden(epoch: int, seq: int, token: int) -> bytes:
    return b".%016x-%020d%s.part" % (epoch, seq, b".%08x" % token if token else b"")
