"""Finds files of a spool that its program renamed after they were taken, by their inodes.

A very large directory takes some time: 0.1 s for 250,000 files. So a search may run in slices.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice

from nsbridge.agents.endpoints.spool.names import SpoolNames
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, identity_of

_ENTRIES = 1024  # of the directory in one slice: half a millisecond


class RenamedSearch:
    """One look at a directory for files of these inodes whose names were not taken. Close it in the end.

    ext4 reuses inode numbers at once, so a number is only a hint that saves examining all files.
    """

    def __init__(self, directory: int, inodes: Collection[int], names: SpoolNames) -> None:
        self.found: dict[SpoolFileId, bytes] = {}  # their names now
        self._directory = directory
        self._inodes = inodes
        self._names = names
        self._listing: Iterator[os.DirEntry[str]] | None = None  # None before the first step

    def close(self) -> None:
        """Stop."""
        if self._listing is not None:
            self._listing.close()  # type: ignore[attr-defined]  # scandir's iterator has it

    def step(self) -> bool:
        """Look at some more entries; return False if there are no more. Raises OSError."""
        listing = self._listing or self._begin()
        entries = list(islice(listing, _ENTRIES))
        for entry in entries:
            if entry.inode() in self._inodes:
                self._examine(os.fsencode(entry.name))
        return bool(entries)

    def _begin(self) -> Iterator[os.DirEntry[str]]:
        # A descriptor of its own: two listings of one descriptor would share their place.
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            self._listing = os.scandir(fd)
        finally:
            os.close(fd)
        return self._listing

    def _examine(self, name: bytes) -> None:
        if self._names.is_message(name) and not self._names.is_taken(name):
            with suppress(FileNotFoundError):
                self.found[identity_of(os.stat(name, dir_fd=self._directory, follow_symlinks=False))] = name


def find_renamed(directory: int, inodes: Collection[int], names: SpoolNames) -> dict[SpoolFileId, bytes]:
    """Return the new names of such files, after looking at the whole directory. Raises OSError."""
    search = RenamedSearch(directory, inodes, names)
    try:
        while search.step():
            pass
    finally:
        search.close()
    return search.found
