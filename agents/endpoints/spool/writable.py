"""Finds out at the start whether files can be made in a spool's directory, not only when the first message comes.

A file without a name (O_TMPFILE) needs the rights of any new file, and no program of the container sees it. Not every
file system has such files, and Landlock might refuse them. So only where the kernel refuses one, a hidden file is made
and removed, and its error counts.
"""

from __future__ import annotations

import errno
import os

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.files import blocked_by

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_PROBE = b".nsbridge-may-write.part"


def refusal(directory: int) -> OSError | None:
    """Return the error if no file can be made in the open directory because the agent may not write there."""
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
    except OSError as error:
        return _refusal_of_a_name(directory) if error.errno in _REFUSED else None
    return None


def _refusal_of_a_name(directory: int) -> OSError | None:
    try:
        os.close(files.make_file(directory, _PROBE, 0o600))
    except OSError as error:
        return error if error.errno in _REFUSED else None
    try:
        os.unlink(_PROBE, dir_fd=directory)
    except OSError as error:
        return error
    return None


class RemovalNotice:
    """Shows that delivered files cannot be removed from `out`, until they can: messages are taken all the same."""

    def __init__(self, host: AgentApi, path: str) -> None:
        self._host = host
        self._path = path
        self._directory = -1
        self._is_shown = False
        host.vouch(self._look_again)

    def look(self, directory: int) -> None:
        """Look at the directory that was opened; -1 if it was closed."""
        self._directory = directory
        error = refusal(directory) if directory >= 0 else None
        if error is None:
            if self._is_shown:
                self._is_shown = False
                self._host.notice("out", "")
            return
        text = f"{blocked_by(error, self._path)}: files cannot be removed after their delivery"
        if not self._is_shown:
            self._host.log("warning", text)
        self._is_shown = True
        self._host.notice("out", text)

    def _look_again(self) -> float:
        if self._is_shown:
            self.look(self._directory)
        return self._host.loop.now()
