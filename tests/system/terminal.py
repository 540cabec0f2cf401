"""A person at a terminal: a program whose controlling terminal is a pty that the test types into and reads."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence

from tests.system.room import LIMIT


class Terminal:
    """`command` at a terminal of `size` (columns, rows) that is its controlling one. `env` comes on top of ours."""

    def __init__(self, command: Sequence[str], size: tuple[int, int] = (80, 24), **env: str) -> None:
        self.keyboard, theirs = pty.openpty()
        self.shown = ""
        self._seen = 0
        self.resize(*size)
        self.settings = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            env={**os.environ, "TERM": "xterm", **env},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def resize(self, columns: int, rows: int) -> None:
        """Resize, as dragging a window's corner does: the program gets SIGWINCH."""
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        """Type, as from a keyboard."""
        os.write(self.keyboard, text)

    def see(self, text: str) -> None:
        """Read on until `text` has come, after what was last seen: one read may bring what several calls look for."""
        deadline = time.monotonic() + LIMIT
        while (found := self.shown.find(text, self._seen)) < 0:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.keyboard], [], [], left)[0], f"no {text!r} in:\n{self.shown}"
            try:
                self.shown += os.read(self.keyboard, 65536).decode()
            except OSError:  # EIO: nobody has the other side any more
                raise AssertionError(f"it ended without {text!r}:\n{self.shown}") from None
        self._seen = found + len(text)

    def end(self) -> int:
        """Read the rest; the exit code."""
        try:
            while select.select([self.keyboard], [], [], LIMIT)[0]:
                self.shown += os.read(self.keyboard, 65536).decode()
        except OSError:  # EIO
            pass
        return self.process.wait(LIMIT)

    def close(self) -> None:
        """Hang up, and wait for what that ends."""
        os.close(self.keyboard)
        self.process.wait(LIMIT)
