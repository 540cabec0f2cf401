"""Binds the socket that a source receives from to its path in the container, and notices when the path is lost.

Some facts about Unix sockets, and what they mean here:
* A socket can be bound once. Its file then leads to it until the file is removed, and stays when the socket is closed:
  such a file is stale, and bind(2) refuses its name.
* The supervisor made the socket, and holds it beyond the life of an agent (supervisor/lifecycle/heldsocket.py). So the
  next agent finds it bound, with what programs have sent meanwhile.
* bind(2) and connect(2) follow links. So the socket is bound under a hidden name in the open directory, gets its mode,
  and is renamed: it appears whole. What is at the path is looked at through its own descriptor.
* A stale file is moved aside first, and looked at once more, so that no other file can be replaced.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress

from nsbridge.agents import linux
from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.endpoints.directory import WatchedDirectory
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.socket.cells import BOUND_BORN, BOUND_INODE
from nsbridge.agents.endpoints.socket.config import SocketEndpoint
from nsbridge.agents.identity.walk import shown
from nsbridge.config.descriptors import closing

_EVENTS = watch.CREATED | watch.MOVED_IN | watch.MOVED_OUT | watch.DELETED


class LostPathError(Exception):
    """The socket is bound, and its path does not lead to it any more."""


class SocketBinding:
    """The path of one source's socket. It calls `changed` when something at the path may have changed."""

    def __init__(
        self,
        host: AgentApi,
        tree: Tree,
        config: SocketEndpoint,
        held: socket.socket,
        cells: memoryview[int],
        changed: Callable[[], None],
    ) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._tree = tree
        self._config = config
        self._held = held
        self._cells = cells
        self._changed = changed
        self.path = os.fsencode(config.out)
        directory, self._name = os.path.split(self.path)
        number = zlib.crc32(self._name)
        self._hidden, self._aside = (b".nsbridge-%08x.%s" % (number, what) for what in (b"new", b"old"))
        self._directory = WatchedDirectory(host, tree, "out", directory, self._seen)

    def open(self) -> None:
        """Bind the socket to the path, unless it is bound already. Raises Blocked, LostPathError, Gone."""
        self.close()
        try:
            self._directory.open(_EVENTS)
            if not self._held.getsockname():
                self._bind()
            elif not self.is_there():
                raise LostPathError
        except OSError as error:
            raise blocked_by(error, shown(self.path)) from None

    def close(self) -> None:
        """Close the directory; the socket stays bound."""
        self._directory.close()

    def is_there(self) -> bool:
        """True if the path leads to the socket that was bound last."""
        try:
            found = linux.birth(self._directory.fd, self._name)
        except OSError:
            return False
        return found == (self._cells[BOUND_INODE], self._cells[BOUND_BORN])

    def _seen(self, _events: int) -> None:
        changes = self._directory.read(hidden=False)
        if changes.gone or changes.lost or any(change.name == self._name for change in changes.files):
            self._changed()

    def _bind(self) -> None:
        self._move_stale_aside()
        directory = self._directory.fd
        with suppress(FileNotFoundError):
            os.unlink(self._hidden, dir_fd=directory)
        try:
            os.fchdir(directory)
            self._held.bind(self._hidden)
        finally:
            os.chdir("/")
        with closing(os.open(self._hidden, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as fd:
            os.chmod(str(fd), self._config.mode, dir_fd=self._tree.own_fds)
        self._cells[BOUND_INODE], self._cells[BOUND_BORN] = linux.birth(directory, self._hidden)
        if self._config.held_socket != socket.SOCK_DGRAM:
            self._held.listen(socket.SOMAXCONN)
        linux.rename_noreplace(directory, self._hidden, self._name)
        with suppress(FileNotFoundError):
            os.unlink(self._aside, dir_fd=directory)

    def _move_stale_aside(self) -> None:
        """Move a stale file away from the path. Raises Blocked if what is there is in use, or no socket of ours."""
        directory = self._directory.fd
        try:
            fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return
        with closing(fd):
            before = os.fstat(fd)
            if why := self._not_ours(fd, before):
                raise Blocked(f"{shown(self.path)} {why}: the agent waits until that is removed")
        with suppress(FileNotFoundError):
            os.unlink(self._aside, dir_fd=directory)
        linux.rename_noreplace(directory, self._name, self._aside)
        if not os.path.samestat(before, os.stat(self._aside, dir_fd=directory, follow_symlinks=False)):
            linux.rename_noreplace(directory, self._aside, self._name)  # another one came meanwhile
            raise Blocked(f"{shown(self.path)} was replaced just now")

    def _not_ours(self, fd: int, about: os.stat_result) -> str:
        """Return why the open file must not be replaced; empty if it is stale and belongs to the agent's user."""
        if not stat.S_ISSOCK(about.st_mode):
            return "is no socket"
        if about.st_uid != os.getuid():
            return f"is a socket of uid {about.st_uid}"
        with socket.socket(socket.AF_UNIX, self._config.type.number) as probe:
            probe.setblocking(False)
            number = connect(probe, self._tree.own_fds, fd)
        return "" if number == errno.ECONNREFUSED else "is a socket that a program uses"


def connect(sock: socket.socket, own_fds: int, fd: int) -> int:
    """Connect to the socket of an open file, and to no other. Return 0 or errno."""
    try:
        os.fchdir(own_fds)
        return sock.connect_ex(str(fd))
    finally:
        os.chdir("/")
