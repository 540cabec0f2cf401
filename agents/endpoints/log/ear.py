"""Watches a log's directory and the file that is read, and pauses the watch when changes are too frequent."""

from __future__ import annotations

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.directory import WatchedDirectory
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log.pace import Pace
from nsbridge.agents.loop import EventCallback

_FILE_EVENTS = watch.MODIFIED | watch.CLOSED
_STALLED = 0.05  # seconds without room after which single writes are no longer watched
_NOTHING = -1


class Ear(WatchedDirectory):
    """One inotify instance while the directory is open. Calls `changed` when there is something to `read`."""

    def __init__(self, host: AgentApi, tree: Tree, path: bytes, changed: EventCallback) -> None:
        super().__init__(host, tree, "out", path, changed)
        self._file = _NOTHING
        self._followed = -1  # the open file
        self._rests = False
        self._stalled_since = 0.0
        self.pace = Pace()

    def follow(self, fd: int) -> None:
        """Watch for writes into the open file. Raises Blocked."""
        assert self.watch is not None  # noqa: S101  (a file is opened in its directory)
        self.turn_away()
        self._file = self.watch.add_file(self._tree.own_fds, fd, _FILE_EVENTS)
        self._followed = fd

    def turn_away(self) -> None:
        """Stop watching the file."""
        if self.watch is not None and self._file != _NOTHING:
            self.watch.drop(self._file)
        self._file = _NOTHING

    def stall(self) -> None:
        """Note that there is no room. After a while, stop watching single writes; names are always watched."""
        now = self._host.loop.now()
        if not self._stalled_since:
            self._stalled_since = now
        elif now - self._stalled_since > _STALLED:
            self.turn_away()

    def resume(self) -> None:
        """Note that there is room again, and watch writes. Raises Blocked."""
        self._stalled_since = 0.0
        if self._file == _NOTHING and self._followed >= 0 and self.watch is not None:
            self.follow(self._followed)

    def rest(self, begun: float) -> None:
        """Note that work since `begun` brought no message. After too much such work, pause the watch for a while."""
        seconds = self.pace.pause(begun, self._host.loop.now())
        if seconds and self.watch is not None and not self._rests:
            self._rests = True
            self._host.loop.unwatch(self.watch.fileno())
            self._host.loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._rests = False
        if self.watch is not None:
            self._host.loop.watch(self.watch.fileno(), 1, self._changed)

    def close(self) -> None:
        """Stop listening."""
        self.turn_away()
        self._followed = -1
        super().close()
