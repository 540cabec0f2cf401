"""Watches a log's directory and the file that is read, and pauses the watch when changes are too frequent."""

from __future__ import annotations

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.log.pace import Pace
from nsbridge.agents.loop import EventCallback

_EVENTS = watch.CREATED | watch.MOVED_IN | watch.MOVED_OUT | watch.DELETED
_FILE_EVENTS = watch.MODIFIED | watch.CLOSED
_STALLED = 0.05  # seconds without room after which single writes are no longer watched
_NOTHING = -1


class Ear:
    """One inotify instance while the directory is open. Calls `changed` when there is something to `read`."""

    def __init__(self, host: AgentApi, own_fds: int, changed: EventCallback) -> None:
        self._host = host
        self._loop = host.loop
        self._own_fds = own_fds
        self._changed = changed
        self.watch: watch.AnyWatch | None = None
        self._file = _NOTHING
        self._fd = -1
        self._rests = False
        self._stalled_since = 0.0
        self.pace = Pace()

    def open(self, directory: int) -> None:
        """Watch a directory. Raises Blocked, OSError."""
        self.watch = watch.watch_directory(self._host, "out", directory, _EVENTS)
        self._loop.watch(self.watch.fileno(), 1, self._changed)

    @property
    def polls(self) -> bool:
        """True if inotify cannot be had: every look is at everything, and says that events were lost."""
        return self.watch is not None and self.watch.polls

    def read(self) -> watch.Changes:
        """Return the changes since the last call."""
        assert self.watch is not None  # noqa: S101  (called only while it is watched)
        return self.watch.read()

    def follow(self, fd: int) -> None:
        """Watch for writes into the open file. Raises Blocked."""
        assert self.watch is not None  # noqa: S101  (a file is opened in its directory)
        self.turn_away()
        self._file = self.watch.add_file(self._own_fds, fd, _FILE_EVENTS)
        self._fd = fd

    def turn_away(self) -> None:
        """Stop watching the file."""
        if self.watch is not None and self._file != _NOTHING:
            self.watch.drop(self._file)
        self._file = _NOTHING

    def stall(self) -> None:
        """Note that there is no room. After a while, stop watching single writes; names are always watched."""
        now = self._loop.now()
        if not self._stalled_since:
            self._stalled_since = now
        elif now - self._stalled_since > _STALLED:
            self.turn_away()

    def resume(self) -> None:
        """Note that there is room again, and watch writes. Raises Blocked."""
        self._stalled_since = 0.0
        if self._file == _NOTHING and self._fd >= 0 and self.watch is not None:
            self.follow(self._fd)

    def rest(self, begun: float) -> None:
        """Note that work since `begun` brought no message. After too much such work, pause the watch for a while."""
        seconds = self.pace.pause(begun, self._loop.now())
        if seconds and self.watch is not None and not self._rests:
            self._rests = True
            self._loop.unwatch(self.watch.fileno())
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._rests = False
        if self.watch is not None:
            self._loop.watch(self.watch.fileno(), 1, self._changed)

    def close(self) -> None:
        """Stop listening."""
        self.turn_away()
        self._fd = -1
        if self.watch is not None:
            self._loop.unwatch(self.watch.fileno())
            self.watch.close()
            self.watch = None
