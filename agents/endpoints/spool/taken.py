"""Finds and removes the files that a spool's source has taken and not yet removed.

A file is identified by its inode, its mtime and its size. Its program may rename it while it waits for confirmation. It
stays the same message under its new name, also for the next agent, whose notes have the old name.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.done import DoneDirectory
from nsbridge.agents.endpoints.spool.names import CLOSED, SpoolNames
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, Taken, has_identity, identity_of
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.journal.store import NoteStore


class TakenFiles:
    """The taken files of one directory at a time, between `open` and `close`, in the order in which they were taken."""

    def __init__(self, tree: Tree, config: SpoolEndpoint, store: NoteStore, names: SpoolNames) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._tree = tree
        self._store = store
        self._names = names
        self._path = os.fsencode(config.out)
        self._max_message = config.max_message
        self._done = DoneDirectory(tree, "done", config.done, config.mode) if config.done is not None else None
        self._directory = -1
        self._taken: deque[Taken] = deque()
        self._inodes: set[int] = set()  # theirs

    def open(self, directory: int) -> None:
        """Begin in this directory; `done` is opened and checked. Raises Blocked."""
        self._directory = directory
        if self._done is not None:
            self._done.open(directory, self._path)

    def close(self) -> None:
        """Forget everything."""
        self._directory = -1
        if self._done is not None:
            self._done.close()
        self._taken.clear()
        self._inodes.clear()

    def add(self, taken: Taken) -> None:
        """Note a file that was taken, after all earlier ones."""
        self._names.take(taken.name)
        self._taken.append(taken)
        self._inodes.add(taken.identity.inode)

    def has_up_to(self, seq: int) -> bool:
        """True if a message up to `seq` still has a file to remove."""
        return bool(self._taken) and self._taken[0].seq <= seq

    def remove_up_to(self, seq: int) -> None:
        """Delete the files of the messages up to `seq`, or move them to `done`; each is noted. Raises Blocked."""
        renamed: dict[SpoolFileId, bytes] | None = None
        while self._taken and (taken := self._taken[0]).seq <= seq:
            try:
                try:
                    self._remove(taken)
                except FileNotFoundError:
                    if renamed is None:
                        renamed = self._renamed()
                    self._names.forget(taken.name)
                    if name := renamed.get(taken.identity):
                        self._remove(taken._replace(name=name))
            except FileNotFoundError:
                pass  # its program was faster
            except OSError as error:
                reason = blocked_by(error, shown(self._path + b"/" + taken.name))
                raise Blocked(f"delivered, but cannot be removed: {reason}") from None
            except Blocked as reason:
                raise Blocked(f"delivered, but cannot be moved away: {reason}") from None
            self._taken.popleft()
            self._inodes.discard(taken.identity.inode)
            self._store.journal.released = taken.seq

    def is_renamed(self, name: bytes, identity: SpoolFileId) -> bool:
        """True if this file was taken under another name, and now has this one. Raises OSError.

        A further hard link is a further message: the name by which it was taken is still there.
        """
        if identity.inode not in self._inodes:
            return False
        for index, taken in enumerate(self._taken):
            if taken.identity == identity and not self._leads_to(taken.name, identity.inode):
                self._names.forget(taken.name)
                self._names.take(name)
                self._taken[index] = taken._replace(name=name)
                return True
        return False

    def load(self, identity: SpoolFileId, name: bytes) -> bytes | None:
        """Return a file's content, under any name; None if it has changed. Raises OSError."""
        try:
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
        except FileNotFoundError:
            name = self._renamed().get(identity, name)
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
        try:
            body = files.read_up_to(fd, self._max_message)
            return body if identity_of(os.fstat(fd)) == identity else None
        finally:
            os.close(fd)

    def _remove(self, taken: Taken) -> None:
        """Remove the file, unless its program has replaced it by another message. Raises OSError, Blocked."""
        _, name, identity, _ = taken
        now = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        is_same = has_identity(now, identity) or self._has_same_content(taken, now)
        if is_same and self._done is not None:
            self._done.move(self._directory, self._path, name, (self._store.epoch, taken.seq))
        elif is_same:
            os.unlink(name, dir_fd=self._directory)
        self._names.forget(name)
        if not is_same:
            self._names.event(name, CLOSED)

    def _has_same_content(self, taken: Taken, now: os.stat_result) -> bool:
        """True if only the file's time has changed, as by touch(1)."""
        if taken.body is None or (now.st_ino, now.st_size) != (taken.identity.inode, taken.identity.size):
            return False
        fd = self._tree.open_file(self._directory, taken.name, os.O_RDONLY)
        try:
            return files.read_up_to(fd, self._max_message) == taken.body
        finally:
            os.close(fd)

    def _renamed(self) -> dict[SpoolFileId, bytes]:
        """Return the new names of files that were taken under another name. Raises OSError.

        ext4 reuses inode numbers at once, so a number is only a hint that saves examining all files.
        """
        names, found = self._names, {}
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.inode() in self._inodes and names.is_message(name) and not names.is_taken(name):
                        with suppress(FileNotFoundError):
                            found[identity_of(os.stat(name, dir_fd=self._directory, follow_symlinks=False))] = name
        finally:
            os.close(fd)
        return found

    def _leads_to(self, name: bytes, inode: int) -> bool:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino == inode
        except FileNotFoundError:
            return False
