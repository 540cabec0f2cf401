"""Moves the files that a spool's source can never take into the `error` directory, each with its reason beside it.

A file keeps its name if that and NAME.reason are free; otherwise a number is added. Nothing is overwritten.

* The reason is there first, whole, by rename; then the file is moved. So a kill in between leaves a reason without its
  file. The next agent refuses the file again, with the same words, and uses the reason that is there.
* Between the look at a file and its move, a program may put another file in its place. So the moved file is compared:
  if it is not the one that was refused, it is moved back.
"""

from __future__ import annotations

import os
from contextlib import suppress

from nsbridge.agents import linux
from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.spool.sidedirectory import NAME_MAX, SideDirectory, fitting
from nsbridge.agents.identity.walk import shown

_REASON = b".reason"


class ErrorDirectory(SideDirectory):
    """The `error` directory of one source; `agent` is the agent's name."""

    def __init__(self, tree: Tree, path: str, mode: int, agent: str) -> None:
        super().__init__(tree, "error", path, mode)
        self._part = os.fsencode(f".{agent}.reason.part")  # several agents may have one directory

    def move(self, source: int, where: bytes, name: bytes, inode: int, reason: str, number: int) -> bytes:
        """Move the file of that inode there, and return its path; empty if it has been replaced by now.

        `number` makes a name unique if its own is taken. Raises OSError, Blocked.
        """
        self.open(source, where)  # it may have been removed or replaced
        text = reason.encode("utf-8", "backslashreplace") + b"\n"
        for suffix in (b"", b".%d" % number, b".%d-%d" % (number, inode)):
            target = fitting(name, suffix, NAME_MAX - len(_REASON))
            if self._exists(target) or not self._put_reason(target + _REASON, text):
                continue
            try:
                self._rename(source, where, name, target)
            except FileExistsError:
                self._remove_reason(target)
                continue
            except (OSError, Blocked):
                self._remove_reason(target)
                raise
            if self._is_inode(target, inode):
                return self._path + b"/" + target
            self._remove_reason(target)
            linux.rename_noreplace(self._directory, target, name, source)
            return b""
        raise Blocked(f"{shown(self._path)} has other files under every name for {shown(name)}: remove them")

    def _put_reason(self, name: bytes, text: bytes) -> bool:
        """Write the file with the reason; False if another file has the name. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._directory)  # left by an agent that was killed
        fd = files.make_file(self._directory, self._part, self._mode)
        try:
            files.write_all(fd, text)
        finally:
            os.close(fd)
        try:
            linux.rename_noreplace(self._directory, self._part, name)
        except FileExistsError:
            os.unlink(self._part, dir_fd=self._directory)
            return self._has_text(name, text)
        return True

    def _has_text(self, name: bytes, text: bytes) -> bool:
        """True if our user made that file with exactly this text, as an agent does that is killed before the move."""
        try:
            fd = self._tree.open_file(self._directory, name, os.O_RDONLY)
            try:
                return os.fstat(fd).st_uid == os.geteuid() and files.read_up_to(fd, len(text)) == text
            finally:
                os.close(fd)
        except OSError:
            return False

    def _remove_reason(self, target: bytes) -> None:
        with suppress(OSError):
            os.unlink(target + _REASON, dir_fd=self._directory)

    def _exists(self, name: bytes) -> bool:
        try:
            os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _is_inode(self, name: bytes, inode: int) -> bool:
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino == inode
