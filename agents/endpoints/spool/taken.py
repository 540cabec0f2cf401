"""Finds the files that a spool's source has taken and not yet removed (delivered.py).

A file is identified by its inode, its mtime and its size. Its program may rename it while it waits for confirmation. It
stays the same message under its new name, also for the next agent, whose notes have the old name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.names import SpoolNames
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, Taken, identity_of
from nsbridge.agents.endpoints.spool.search import find_renamed
from nsbridge.agents.journal.store import NoteStore


class TakenFiles:
    """The taken files of one directory at a time, between `open` and `close`, in the order in which they were taken."""

    def __init__(self, tree: Tree, config: SpoolEndpoint, store: NoteStore, names: SpoolNames) -> None:
        self._tree = tree
        self._store = store
        self._names = names
        self._max_message = config.max_message
        self._directory = -1
        self._taken: deque[Taken] = deque()
        self.inodes: set[int] = set()  # theirs

    def open(self, directory: int) -> None:
        """Begin in this directory."""
        self._directory = directory

    def close(self) -> None:
        """Forget everything."""
        self._directory = -1
        self._taken.clear()
        self.inodes.clear()

    def add(self, taken: Taken) -> None:
        """Note a file that was taken, after all earlier ones."""
        self._names.take(taken.name)
        self._taken.append(taken)
        self.inodes.add(taken.identity.inode)

    @property
    def epoch(self) -> int:
        """Return the epoch of the messages."""
        return self._store.epoch

    def delivered(self) -> Taken | None:
        """Return the first file if the other side has confirmed it; None otherwise."""
        return self._taken[0] if self._taken and self._taken[0].seq <= self._store.confirmed else None

    def all_delivered(self) -> Iterator[Taken]:
        """Return all files that the other side has confirmed."""
        confirmed = self._store.confirmed
        return takewhile(lambda taken: taken.seq <= confirmed, self._taken)

    def drop_first(self) -> None:
        """Forget the first file, which is removed."""
        taken = self._taken.popleft()
        self.inodes.discard(taken.identity.inode)
        self._store.journal.released = taken.seq

    def all_removed(self) -> None:
        """Note that no confirmed message has a file: those behind the last file are dead letters."""
        self._store.journal.released = self._store.confirmed  # or `_resume` would go too far back

    def is_renamed(self, name: bytes, identity: SpoolFileId) -> bool:
        """True if this file was taken under another name, and now has this one. Raises OSError.

        A further hard link is a further message: the name by which it was taken is still there.
        """
        if identity.inode not in self.inodes:
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
            name = find_renamed(self._directory, self.inodes, self._names).get(identity, name)
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
        try:
            body = files.read_up_to(fd, self._max_message)
            return body if identity_of(os.fstat(fd)) == identity else None
        finally:
            os.close(fd)

    def _leads_to(self, name: bytes, inode: int) -> bool:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino == inode
        except FileNotFoundError:
            return False
