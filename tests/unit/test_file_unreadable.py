"""A file whose content cannot be read (EIO) is waited for with a reason, and read when it can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.files import KeptFile, Tree
from tests.unit.test_blocked_reasons import Source, passes, waits


class Unreadable(KeptFile):
    """A file for which read(2) fails with EISDIR while `fails` is set."""

    fails = True

    def __init__(self, tree: Tree, name: bytes, directory: Path) -> None:
        super().__init__(tree, name)
        self._other = directory

    def lease(self, directory: int) -> bool | None:
        """Open a directory instead."""
        if self.fails and self.fd < 0:
            self.fd = os.open(self._other, os.O_RDONLY)
        return None if self.fails else super().lease(directory)

    def named(self, directory: int) -> os.stat_result | None:
        """Let the name lead to that."""
        return os.fstat(self.fd) if self.fails else super().named(directory)


def test_file_that_cannot_be_read_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    source = Source("file", tmp_path)
    kept = source.side._file = Unreadable(source.host.tree, b"place", tmp_path)
    source.start()
    source.leave()
    waits(source, "Is a directory")
    kept.fails = False
    passes(source)
    source.host.lose(source.side._directory.watch)
