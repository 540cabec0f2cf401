"""The `in` side of the `spool` endpoint: each message becomes a file that appears whole.

A hidden temporary name is written, the intent noted, then the file renamed. After a kill the hidden name tells: still
there, it was not handed over; gone, it was, even if the reader has taken and deleted the file since.
"""

from __future__ import annotations

import os

from nsbridge.agents import linux
from nsbridge.agents.endpoints import files, watch
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.files import Tree, blocked_by, shown
from nsbridge.agents.sinkjournal import PLACE, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import SpoolEndpoint


class SpoolSink:
    """Puts each message into a file of its own, named EPOCH-SEQ.TYPE, whose order by name is the messages' order."""

    def __init__(self, host: Host, tree: Tree, config: SpoolEndpoint, journal: SinkJournal) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._journal = journal
        self._host = host
        self._tree = tree
        self._config = config
        self._path = os.fsencode(config.in_)
        self._directory = -1
        self._watch: watch.AnyWatch | None = None
        self._waiter = Waiter(host, "in", self._again)
        watch.keep_place(host, lambda fd: tree.leads_to(self._path, fd), lambda: self._watch, self._changed)

    def descriptor(self) -> int:
        """See Sink."""
        return self._directory

    def start(self) -> None:
        """Make the directory if it is missing, so that a program can watch it before the first message."""
        try:
            self._open()
        except Blocked as reason:
            self._close()
            self._waiter.wait(reason)
        else:
            self._waiter.done()

    def _again(self) -> None:
        if self._watch is None:
            self.start()
        self._host.sink_ready()

    def put(self, run: Run) -> int:
        """Write each as a file under a hidden name and rename it."""
        for count in range(len(run.bodies)):
            one = run.one(count)
            try:
                if self._watch is None:
                    self._open()
                if one.epoch != self._journal.epoch or one.first > self._journal.handed:
                    self._write(one)
            except Blocked as reason:
                self._close()
                self._waiter.wait(reason)
                return count
            self._waiter.done()
            self._host.handed(one)
        return len(run.bodies)

    def _write(self, one: Run) -> None:
        hidden, name = _hidden(one.epoch, one.first), b"%016x-%020d.%d" % (one.epoch, one.first, one.type)
        try:
            try:
                fd = files.make_file(self._directory, hidden, self._config.mode)
            except FileExistsError:  # left by an agent that was killed here
                os.unlink(hidden, dir_fd=self._directory)
                fd = files.make_file(self._directory, hidden, self._config.mode)
            try:
                files.write_all(fd, one.bodies[0])
            finally:
                os.close(fd)
            self._journal.intent = one.first if one.epoch == self._journal.epoch else 0
            linux.rename_noreplace(self._directory, hidden, name)
        except FileExistsError:
            os.unlink(hidden, dir_fd=self._directory)  # handed over before, by an agent that was killed just after
        except OSError as error:
            raise blocked_by(error, shown(self._path)) from None

    def _open(self) -> None:
        self._directory = self._tree.open_directory(self._path, self._config.mode)
        self._watch = watch.watch_directory(self._host, "in", self._directory, 0)
        self._host.loop.watch(self._watch.fileno(), 1, self._changed)
        self._settle()

    def _settle(self) -> None:
        """Find out whether the message that a killed agent was handing over into this directory has been."""
        cells, journal = self._journal.cells, self._journal
        place = os.fstat(self._directory).st_ino + 1
        if cells[PLACE] == place and journal.intent == journal.handed + 1:
            try:
                os.stat(_hidden(journal.epoch, journal.intent), dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                journal.hand(journal.intent)
                self._host.log("info", f"message {journal.handed} was handed over just before the agent was killed")
        journal.intent = 0
        cells[PLACE] = place

    def _changed(self, _events: int) -> None:
        """The directory itself was removed or replaced: open what is at its path now, before the next message."""
        assert self._watch is not None  # noqa: S101  (called only while it is watched)
        if self._watch.read().gone:
            self._close()
            self.start()

    def _close(self) -> None:
        if self._watch is not None:
            self._host.loop.unwatch(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def _hidden(epoch: int, seq: int) -> bytes:
    return b".%016x-%020d.part" % (epoch, seq)
