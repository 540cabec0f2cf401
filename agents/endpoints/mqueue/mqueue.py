"""POSIX queues as the `mqueue` endpoint opens them.

Some facts about POSIX queues, and what they mean here:
* A queue is a descriptor: the loop waits for messages and for room, and no thread is needed.
* mq_open finds names in the ipc namespace of the caller. It needs no mount of the mqueue file system, but Landlock
  counts it as opening a file there (calls.all_queues).
* A queue that was unlinked lives on while it is open, like a file. Its name may lead to another queue by then, so an
  inotify watch on the open queue reports that it lost its name, or that its owner or mode changed.
* Permission is checked when a queue is opened, so a queue whose owner or mode changed is opened again.
* The limits of a queue (mq_maxmsg, mq_msgsize) are fixed when it is made. A receiver must have room for mq_msgsize.
* The owner is visible only after opening. So an agent cannot see the owner of a queue that it may not open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import AgentApi, Blocked, Denied
from nsbridge.agents.endpoints.mqueue import calls
from nsbridge.agents.endpoints.mqueue.calls import Attributes, attributes_of, mq_open
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, shown
from nsbridge.agents.loop import READABLE, Timer
from nsbridge.config.descriptors import closing

_DEFAULTS = Attributes(10, 8192)  # fs.mqueue.msg_default and msgsize_default, if only one of them is configured
_SETTLE = 0.02  # seconds from a change to the look at it, so that many changes cost one look
_PACE = 1.0  # seconds from one look to the next, without inotify


def owner(name: str) -> tuple[int, int] | None:
    """Return uid and gid of the queue of that name; None if there is none. Raises Denied if it may not be opened."""
    for access in (os.O_RDONLY, os.O_WRONLY):
        try:
            queue = mq_open(name, access)
        except PermissionError:
            continue
        except OSError:
            return None
        with closing(queue):
            about = os.fstat(queue)
        return about.st_uid, about.st_gid
    raise Denied(no_permission(name))


def no_permission(name: str) -> str:
    """Return the text that `status` shows when the kernel refuses permission."""
    return f"{shown(name)}: no permission for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or its mode)"


class MqueueOwner:
    """Notices that the first of the endpoint's queues belongs to another user than when the agent entered.

    The agent's user was decided then, so it has to enter again. It does so once: if nothing has changed since it
    entered, it would be refused again.
    """

    def __init__(self, host: AgentApi, names: Sequence[str], *, is_user_configured: bool) -> None:
        self._host = host
        self._names = names
        self._is_user_configured = is_user_configured
        self._at_entry = None if is_user_configured else self._first()

    def check_later(self) -> None:
        """Schedule a `check` in the loop, because the kernel refused the queue; its Gone ends the agent."""
        self._host.loop.call_later(0, self.check)

    def check(self) -> None:
        """Raise Gone if the agent would enter as another user now."""
        if self._is_user_configured:
            return
        now, queues = self._first(), " or ".join(map(shown, self._names))
        if now == self._at_entry:
            return
        if now == "denied":
            raise Gone(f"{queues}: no permission any more for uid {os.getuid()}; entering anew")
        if now not in (None, (os.getuid(), os.getgid())):
            raise Gone(
                f"{queues} now belongs to uid {now[0]} gid {now[1]}, and this agent is uid {os.getuid()} gid "
                f"{os.getgid()}: it enters anew"
            )

    def _first(self) -> tuple[int, int] | str | None:
        """Return the owner of the first queue that exists; "denied" if that may not be opened."""
        try:
            return next((found for name in self._names if (found := owner(name))), None)
        except Denied:
            return "denied"


class OpenQueue:
    """The queue of one side. It calls `changed` when its name may lead elsewhere, or its owner or mode was changed."""

    def __init__(
        self,
        host: AgentApi,
        config: MqueueEndpoint,
        side: str,
        owner: MqueueOwner,
        own_fds: int,
        changed: Callable[[], None],
    ) -> None:
        """Note what to open: the queue of the `out` or `in` side. `own_fds` is the host's /proc/self/fd."""
        end = config.out if side == "out" else config.in_
        assert end is not None  # noqa: S101  (made only for a configured side)
        self.fd = -1
        self.attributes = _DEFAULTS
        self.what = shown(end.name)
        self.made: int | None = None  # the inode of the queue that was made last, until it is reported (unused.py)
        self.moved = 0  # messages that the side has sent since then, minus those that it has received
        self._host = host
        self._name = end.name
        self._access = os.O_RDONLY if side == "out" else os.O_WRONLY
        self._config = config
        self._owner = owner
        self._own_fds = own_fds
        self._changed = changed
        self._watch: watch.OpenFileWatch | None = None
        self._timer: Timer | None = None
        self._about = (0, 0, 0, 0)

    def open(self) -> None:
        """Open the queue that the name leads to now; make it if it is missing and `create` is set. Raises Blocked."""
        self.close()
        self.fd = fd = self._opened()
        try:
            self.attributes = attributes_of(fd)
            self._about = _identity(fd)
            self._watch_changes()
        except OSError as error:
            self.close()
            raise Blocked(f"{self.what}: {os.strerror(error.errno or 0)}") from None

    def close(self) -> None:
        """Close it; the caller has taken it out of the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._host.loop.unwatch(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def is_removed(self) -> bool:
        """True if the queue has lost its name; it may still have messages."""
        return os.fstat(self.fd).st_nlink == 0

    def _opened(self) -> int:
        try:
            return mq_open(self._name, self._access)
        except FileNotFoundError:
            if not self._config.create:
                raise Blocked(
                    f"no {self.what} in {self._host.container}: is the name right, has the program started? "
                    "(create = true makes an empty one)"
                ) from None
        except PermissionError:
            self._owner.check_later()
            raise Blocked(no_permission(self._name)) from None
        except OSError as error:
            raise Blocked(f"{self.what}: {_reason(error)}") from None
        return self._made()

    def _made(self) -> int:
        config, attributes = self._config, None
        if config.max_messages is not None or config.max_message is not None:
            most, longest = config.max_messages, config.max_message
            attributes = Attributes(most or _DEFAULTS.max_messages, longest or _DEFAULTS.max_message)
        try:
            fd = mq_open(self._name, self._access | os.O_CREAT | os.O_EXCL, 0o600, attributes)
        except FileExistsError:
            raise Blocked(f"{self.what} appeared just now") from None
        except OSError as error:
            raise Blocked(f"{self.what} cannot be made: {_reason(error, attributes)}") from None
        self.made, self.moved = os.fstat(fd).st_ino, 0
        os.fchmod(fd, config.mode)  # the agent's umask takes away what others may
        made = f"mode {config.mode:04o}, owner {os.geteuid()}:{os.getegid()}"
        self._host.log("info", f"{self.what} was missing and is made (create = true), {made}")
        return fd

    def _watch_changes(self) -> None:
        try:
            self._watch = watch.OpenFileWatch(self._own_fds, self.fd)
        except Blocked:  # inotify is used up, or the queue may only be written
            self._timer = self._host.loop.call_later(_PACE, self._look)
        else:
            self._host.loop.watch(self._watch.fileno(), READABLE, self._seen)
            if self.is_removed:  # before anything watched it
                self._due()

    def _seen(self, _events: int) -> None:
        assert self._watch is not None  # noqa: S101  (else it is not in the loop)
        self._watch.read()
        self._due()

    def _due(self) -> None:
        if self._timer is None:
            self._timer = self._host.loop.call_later(_SETTLE, self._report)

    def _report(self) -> None:
        self._timer = None
        self._owner.check()
        self._changed()

    def _look(self) -> None:
        self._timer = self._host.loop.call_later(_PACE, self._look)
        try:
            now = mq_open(self._name, self._access)
        except OSError:
            is_same = False
        else:
            is_same = _identity(now) == self._about
            os.close(now)
        if not is_same:
            self._owner.check()
            self._changed()


def _identity(fd: int) -> tuple[int, int, int, int]:
    """Return which queue it is, and who may open it."""
    about = os.fstat(fd)
    return about.st_ino, about.st_uid, about.st_gid, about.st_mode


def _reason(error: OSError, attributes: calls.Attributes | None = None) -> str:
    """Return why a queue cannot be opened or made, with the limit that could be raised."""
    match error.errno:
        case errno.EINVAL if attributes is not None:
            return (
                f"max_messages = {attributes.max_messages} or max_message = {attributes.max_message} is more than "
                "fs.mqueue.msg_max or fs.mqueue.msgsize_max of its ipc namespace allows: raise them there "
                f"(docker run --sysctl fs.mqueue.msg_max={attributes.max_messages})"
            )
        case errno.ENOSPC:
            return "its ipc namespace has as many queues as fs.mqueue.queues_max allows: raise it there"
        case errno.EMFILE:
            return (
                f"uid {os.getuid()} has no bytes of POSIX queues left (RLIMIT_MSGQUEUE, ulimit -q), or no descriptors"
            )
        case number:
            return os.strerror(number or 0)
