"""The directory beside a spool's `out` into which its source moves files (`done`, `error`): opened, checked, kept open.

Files are moved by rename only, so it must be on the mount of `out`. That is checked when it is opened: a copy would not
be atomic, and the kernel could kill the agent in its middle.
"""

from __future__ import annotations

import errno
import os

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.identity.walk import shown

NAME_MAX = 255  # bytes
_PROBE = b".nsbridge-no-such-file"


class SideDirectory:
    """The directory at `path`, made with `mode` if it is missing. `key` is its key in the configuration."""

    def __init__(self, tree: Tree, key: str, path: str, mode: int) -> None:
        self._tree = tree
        self._key = key
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
                    f"moved there: choose a directory on the same mount for {self._key}"
                ) from None
            raise blocked_by(error, shown(self._path)) from None

    def close(self) -> None:
        """Close it; harmless if it is not open."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _rename(self, source: int, where: bytes, name: bytes, target: bytes) -> None:
        """Move a file of `source` there; the directory is made again if it is gone. Raises OSError, Blocked."""
        try:
            linux.rename_noreplace(source, name, target, self._directory)
        except FileNotFoundError:
            os.stat(name, dir_fd=source, follow_symlinks=False)  # raises if the file is gone, not the directory
            self.open(source, where)
            linux.rename_noreplace(source, name, target, self._directory)


def fitting(name: bytes, suffix: bytes, longest: int = NAME_MAX) -> bytes:
    """Return both together, the name cut at a character's beginning if it would be too long."""
    length = min(len(name), longest - len(suffix))
    while length < len(name) and name[length] & 0xC0 == 0x80:  # noqa: PLR2004  (inside a UTF-8 character)
        length -= 1
    return name[:length] + suffix
