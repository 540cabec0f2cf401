"""How a log's source hears of changes: of its directory, and of the file that is read; and when it stops listening."""

from __future__ import annotations

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import Host
from nsbridge.agents.endpoints.log_pace import Pace
from nsbridge.agents.loop import EventCallback

_EVENTS = watch.CREATED | watch.MOVED_IN | watch.MOVED_OUT | watch.DELETED
_FILE_EVENTS = watch.MODIFIED | watch.CLOSED
_STALLED = 0.05  # seconds without room after which single writes are not heard of any more
_NOTHING = -1


class Ear:
    """One inotify instance while the directory is open. `changed` is called when there is something to `read`."""

    def __init__(self, host: Host, own_fds: int, changed: EventCallback) -> None:
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
        """Return what happened since the last call."""
        assert self.watch is not None  # noqa: S101  (called only while it is watched)
        return self.watch.read()

    def follow(self, fd: int) -> None:
        """Hear of what is written into the open file. Raises Blocked."""
        assert self.watch is not None  # noqa: S101  (a file is opened in its directory)
        self.turn_away()
        self._file = self.watch.add_file(self._own_fds, fd, _FILE_EVENTS)
        self._fd = fd

    def turn_away(self) -> None:
        """Do not hear of the file any more."""
        if self.watch is not None and self._file != _NOTHING:
            self.watch.drop(self._file)
        self._file = _NOTHING

    def stall(self) -> None:
        """There is no room. After a while single writes are not heard of; what becomes of names always is."""
        now = self._loop.now()
        if not self._stalled_since:
            self._stalled_since = now
        elif now - self._stalled_since > _STALLED:
            self.turn_away()

    def resume(self) -> None:
        """There is room again. Raises Blocked."""
        self._stalled_since = 0.0
        if self._file == _NOTHING and self._fd >= 0 and self.watch is not None:
            self.follow(self._fd)

    def rest(self, begun: float) -> None:
        """Work since `begun` brought no message: if there was too much of that, be deaf for a while."""
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
