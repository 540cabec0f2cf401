"""The directory that one side of an endpoint keeps open and watches, and opens anew when another takes its place."""

from __future__ import annotations

import os
from abc import abstractmethod

from nsbridge.agents.endpoints.base import AgentApi, Blocked, Sink, Waiter
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.watch import AnyWatch, Changes, watch_directory
from nsbridge.agents.loop import EventCallback
from nsbridge.agents.wire import Run


class WatchedDirectory:
    """The directory of one side: `fd` while it is open, `watch` while changes in it are reported.

    At every heartbeat it checks whether the path still leads to the watched directory, because a move of a directory
    above it sends no event. If it does not, `changed` is called, as if the directory itself were gone.
    """

    def __init__(self, host: AgentApi, tree: Tree, side: str, path: bytes, changed: EventCallback) -> None:
        self._host = host
        self._tree = tree
        self._side = side
        self._path = path
        self._changed = changed
        self.fd = -1
        self.watch: AnyWatch | None = None
        host.vouch(self._keep_place)

    @property
    def polls(self) -> bool:
        """True if inotify cannot be had: every look is at everything, and says that events were lost."""
        return self.watch is not None and self.watch.polls

    def open(self, mask: int = 0, mode: int | None = None) -> None:
        """Open the directory and watch it (with `mode`, make it if it is missing). Raises Blocked."""
        self.find(mode)
        self.listen(mask)

    def find(self, mode: int | None = None) -> None:
        """Open the directory and do nothing else. Raises Blocked."""
        self.fd = self._tree.open_directory(self._path, mode)

    def listen(self, mask: int) -> None:
        """Watch it, now that it is open. Raises Blocked."""
        self.watch = watch_directory(self._host, self._side, self.fd, mask)
        self._host.loop.watch(self.watch.fileno(), 1, self._changed)

    def listen_for(self, mask: int) -> bool:
        """Watch it for these events too; return False if it is already. Raises Blocked."""
        assert self.watch is not None  # noqa: S101  (called only while it is watched)
        return self.watch.add(mask)

    def read(self, *, hidden: bool = True) -> Changes:
        """Return the changes since the last call, for `changed`."""
        assert self.watch is not None  # noqa: S101  (called only while it is watched)
        return self.watch.read(hidden=hidden)

    def close(self) -> None:
        """Close what is open."""
        if self.watch is not None:
            self._host.loop.unwatch(self.watch.fileno())
            self.watch.close()
            self.watch = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _keep_place(self) -> float:
        if self.watch is not None and self.watch.has_left(lambda fd: self._tree.leads_to(self._path, fd)):
            self._changed(0)
        return self._host.loop.now()


class Undeliverable(Exception):
    """Raised for a message that can never be handed over: `where`, and `str()` for why."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(why)
        self.where = where


class NameTaken(Blocked):
    """Another file has the message's name; the directory itself is all right."""


class DirectorySink(Sink):
    """A sink that hands over one message at a time into a directory, and opens it anew when it can be had again."""

    def __init__(self, host: AgentApi, tree: Tree, path: bytes) -> None:
        self._host = host
        self._tree = tree
        self._directory = WatchedDirectory(host, tree, "in", path, self._changed)
        self._waiter = Waiter(host, "in", self._again)

    @abstractmethod
    def _open(self) -> None:
        """Open the directory and prepare it for messages. Raises Blocked."""

    @abstractmethod
    def _write(self, one: Run) -> None:
        """Hand over the one message, unless it has been. Raises Blocked, Undeliverable."""

    def descriptor(self) -> int:
        """See Sink."""
        return self._directory.fd

    def start(self) -> None:
        """Make what is missing, so that a program can watch it before the first message."""
        try:
            self._open()
        except Blocked as reason:
            self._directory.close()
            self._waiter.wait(reason)
        else:
            self._waiter.done()

    def put(self, run: Run) -> int:
        """Hand over each message."""
        for count in range(len(run.bodies)):
            one = run.one(count)
            try:
                if self._directory.watch is None:
                    self._open()
                self._write(one)
            except Undeliverable as error:
                if not self._host.dead(one, error.where, str(error)):
                    return count
                self._waiter.done()
                continue
            except NameTaken as reason:
                self._waiter.wait(reason)
                return count
            except Blocked as reason:
                self._directory.close()
                self._waiter.wait(reason)
                return count
            self._waiter.done()
            self._host.handed(one)
        return len(run.bodies)

    def _again(self) -> None:
        if self._directory.watch is None:
            self.start()
        self._host.sink_ready()

    def _changed(self, _events: int) -> None:
        """Open what is at the path now, before the next message, if the directory itself was removed or replaced."""
        changes = self._directory.read()
        if changes.gone:
            self._directory.close()
            self.start()
        else:
            self._files_changed(changes)

    def _files_changed(self, changes: Changes) -> None:
        """Handle changes of files, if the directory is watched for them."""
