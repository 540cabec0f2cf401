"""Moves the files that a spool's source has delivered into the `done` directory.

A file keeps its name if that is free. Otherwise its number is added, and then its journal's epoch, so that a number
that is reused after a lost journal does not block. A name that would be too long is cut before the suffix.
"""

from __future__ import annotations

import errno
import os

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.identity.walk import shown

_NAME_MAX = 255  # bytes
_PROBE = b".nsbridge-no-such-file"


class DoneDirectory:
    """The directory at `path`, made with `mode` if it is missing."""

    def __init__(self, tree: Tree, path: str, mode: int) -> None:
        self._tree = tree
        self._path = os.fsencode(path)
        self._mode = mode
        self._directory = -1

    def open(self, source: int, where: bytes) -> None:
        """Open the directory, for files of the open directory `source`, whose path is `where`. Raises Blocked."""
        self.close()
        self._directory = self._tree.open_directory(self._path, self._mode)
        try:
            # The kernel compares the mounts before it looks up the file, so a missing file gives EXDEV too.
            linux.rename_noreplace(source, _PROBE, _PROBE, self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            self.close()
            if error.errno == errno.EXDEV:
                raise Blocked(
                    f"{shown(self._path)} is on another file system or mount than {shown(where)}, and files cannot be "
                    "moved there: choose a done directory on the same mount"
                ) from None
            raise blocked_by(error, shown(self._path)) from None

    def close(self) -> None:
        """Close it; harmless if it is not open."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def move(self, source: int, where: bytes, name: bytes, number: tuple[int, int]) -> None:
        """Move a file there; `number` is its message's (epoch, seq). The directory is made again if it is gone.

        Raises OSError, Blocked.
        """
        if self._directory < 0:
            self.open(source, where)
        epoch, seq = number
        for suffix in (b"", b".%d" % seq, b".%016x-%d" % (epoch, seq)):
            try:
                self._rename(source, where, name, _fitting(name, suffix))
            except FileExistsError:
                continue
            return
        raise Blocked(f"{shown(self._path)} has other files under every name for {shown(name)}: remove them")

    def _rename(self, source: int, where: bytes, name: bytes, target: bytes) -> None:
        try:
            linux.rename_noreplace(source, name, target, self._directory)
        except FileNotFoundError:
            os.stat(name, dir_fd=source, follow_symlinks=False)  # raises if the file is gone, not the directory
            self.open(source, where)
            linux.rename_noreplace(source, name, target, self._directory)


def _fitting(name: bytes, suffix: bytes) -> bytes:
    """Return both together, the name cut at a character's beginning if it would be too long."""
    length = min(len(name), _NAME_MAX - len(suffix))
    while length < len(name) and name[length] & 0xC0 == 0x80:  # noqa: PLR2004  (inside a UTF-8 character)
        length -= 1
    return name[:length] + suffix
