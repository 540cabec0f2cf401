"""Waiting in the demo: signals end the demo only here.

A signal handler only queues (agents/loop.py), and `Interrupted` is raised out of a wait and out of nothing else. So
no signal falls between the start of something and the note that it must be stopped, and none cuts a cleanup short.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import NoReturn

from nsbridge.agents.loop import READABLE, Loop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """`signum` asks the demo to end."""

    def __init__(self, signum: signal.Signals) -> None:
        self.signum = signum
        super().__init__(signum.name)


class Waits:
    """Waits for descriptors and for time; a context manager that puts the signal handlers back."""

    def __init__(self) -> None:
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._loop = Loop()
        for signum in SIGNALS:
            self._loop.on_signal(signum, partial(_interrupt, signum))

    def __enter__(self) -> Waits:
        return self

    def __exit__(self, *_exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._loop.close()

    def now(self) -> float:
        """Return seconds of the monotonic clock."""
        return self._loop.now()

    def pause(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.readable(None, seconds)

    def readable(self, fd: int | None, seconds: float | None) -> bool:
        """True if `fd` has something to read (or is at its end) within `seconds`; None waits indefinitely."""
        ready: list[int] = []
        deadline = None if seconds is None else self.now() + seconds
        if fd is not None:
            self._loop.watch(fd, READABLE, ready.append)
        try:
            while not ready and (deadline is None or self.now() < deadline):
                self._loop.run_once(None if deadline is None else max(0.0, deadline - self.now()))
        finally:
            if fd is not None:
                self._loop.unwatch(fd)
        return bool(ready)


class Lines:
    """The lines that come out of a pipe or a terminal; `fd` stays the caller's to close."""

    def __init__(self, fd: int, waits: Waits) -> None:
        self._fd = fd
        self._waits = waits
        self._received = b""
        self._ended = False

    def next(self, seconds: float | None) -> bytes | None:
        """Return the next line without its newline; None at the end. Raises TimeoutError after `seconds`."""
        deadline = None if seconds is None else self._waits.now() + seconds
        while b"\n" not in self._received and not self._ended:
            if not self._waits.readable(self._fd, None if deadline is None else deadline - self._waits.now()):
                raise TimeoutError
            chunk = os.read(self._fd, 65536)
            self._received += chunk
            self._ended = not chunk
        if self._ended and not self._received:
            return None
        line, _, self._received = self._received.partition(b"\n")
        return line


def _interrupt(signum: signal.Signals) -> NoReturn:
    raise Interrupted(signum)
