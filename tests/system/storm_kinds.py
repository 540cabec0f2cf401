"""The endpoints of a storm as the containers' own programs use them (storm_program.py)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import sysv_ipc

from tests.posix_queue import PosixQueue

_ROTATE = 5000  # messages of a log
TYPES = 5  # of messages, in a queue


class Got(NamedTuple):
    """A message as a consumer got it."""

    type: int
    body: bytes


class Kind(Protocol):
    """An endpoint as the container's own program uses it."""

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Leave a message for nsbridge; False if stopped before."""
        ...

    def get(self) -> list[Got]:
        """Return what has come, waiting a moment for it; empty if nothing has."""
        ...

    def sent_type(self, seq: int) -> int:
        """Return the type that this message is sent with; 0 where messages have none."""
        ...

    def expected_type(self, sent: int) -> int:
        """Return the type that a message must arrive with."""
        ...


class Stop:
    """SIGTERM has come. A timer interrupts a call that waits, so that it is seen."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGTERM, self._request)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def _request(self, *_: object) -> None:
        self.requested = True

    def close(self) -> None:
        """Stop the timer, which would kill an interpreter that is ending."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class Spool:
    """A directory of files."""

    toml = 'spool = { out = "/srv/out", in = "/srv/in" }'
    out, in_ = "srv/out", "srv/in"

    def __init__(self, place: str, stop: Stop) -> None:
        self._directory = Path(place)
        self._directory.mkdir(exist_ok=True)

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a file there by rename."""
        hidden = self._directory / ".next"
        hidden.write_bytes(body)
        hidden.rename(self._directory / f"{seq:012d}")
        return True

    def get(self) -> list[Got]:
        """Return all files by name, then delete them.

        A listing may miss a file that came before another one which it has; a second one, made after, has both.
        """
        last = max(self._names(), default="")
        names = sorted(name for name in self._names() if name <= last)
        messages = []
        for name in names:
            file = self._directory / name
            messages.append(Got(int(name.rpartition(".")[2]), file.read_bytes()))
            file.unlink()
        if not messages:
            time.sleep(0.002)  # polls
        return messages

    def sent_type(self, seq: int) -> int:
        """Return 0: files have no type."""
        return 0

    def expected_type(self, sent: int) -> int:
        """Return the type in the suffix."""
        return sent

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self._directory) if not name.startswith(".")]


class Queue:
    """A SysV queue; the program runs in the container's ipc namespace."""

    toml = "queue = { in = { key = 0x51 }, out = { key = 0x52 }, create = true }"
    out, in_ = "0x52", "0x51"

    def __init__(self, place: str, stop: Stop) -> None:
        self._queue = sysv_ipc.MessageQueue(int(place, 0), sysv_ipc.IPC_CREAT, 0o666, 1 << 16)
        self._stop = stop

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a message; wait while the queue is full."""
        while not self._stop.requested:
            try:
                self._queue.send(body, True, mtype)
            except sysv_ipc.Error as error:
                if type(error) is not sysv_ipc.Error:
                    raise  # the plain class is EINTR
            else:
                return True
        return False

    def get(self) -> list[Got]:
        """Return the first message, and what is there besides it."""
        messages: list[Got] = []
        try:
            while len(messages) < 100:
                body, mtype = self._queue.receive(not messages, 0)
                messages.append(Got(mtype, body))
        except sysv_ipc.BusyError:
            pass
        except sysv_ipc.Error as error:
            if type(error) is not sysv_ipc.Error:
                raise
        return messages

    def sent_type(self, seq: int) -> int:
        """Return the types in turn."""
        return 1 + seq % TYPES

    def expected_type(self, sent: int) -> int:
        """Return the type it came with; 1 if it came with none."""
        return sent or 1


class Log:
    """A file that is only appended to, a line for each message."""

    toml = 'log = { out = "/srv/out.log", in = "/srv/in.log" }'
    out, in_ = "srv/out.log", "srv/in.log"

    def __init__(self, place: str, stop: Stop) -> None:
        self._path = Path(place)
        self._file = self._open()
        self._line = b""  # what has come of the next one

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Append a line, with rotation by rename."""
        if seq % _ROTATE == 0:
            self.close()
            self._path.rename(f"{self._path}.{seq}")
            self._file = self._open()
        self._file.write(body + b"\n")
        return True

    def get(self) -> list[Got]:
        """Return the lines that are complete."""
        data = self._file.read(1 << 20)
        if not data:
            time.sleep(0.002)  # polls
        *lines, self._line = (self._line + data).split(b"\n")
        return [Got(0, line) for line in lines]

    def sent_type(self, seq: int) -> int:
        """Return 0: lines have no type."""
        return 0

    def expected_type(self, sent: int) -> int:
        """Return the type of a message whose own is not kept."""
        return 0

    def close(self) -> None:
        """Do nothing more."""
        self._file.close()

    def _open(self) -> FileIO:
        return FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o660), "r+")


class Mqueue:
    """A POSIX queue; the program runs in the container's ipc namespace."""

    toml = 'mqueue = { in = { name = "/storm-in" }, out = { name = "/storm-out" } }'
    out, in_ = "/storm-out", "/storm-in"

    def __init__(self, place: str, stop: Stop) -> None:
        self._queue = PosixQueue(place)
        self._stop = stop

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a message; wait while the queue is full."""
        while not self._stop.requested:
            with suppress(InterruptedError):
                self._queue.send(body, mtype)
                return True
        return False

    def get(self) -> list[Got]:
        """Return the next message."""
        try:
            body, priority = self._queue.receive()
        except InterruptedError:
            return []
        return [Got(priority, body)]

    def sent_type(self, seq: int) -> int:
        """Return the priorities in turn."""
        return seq % TYPES

    def expected_type(self, sent: int) -> int:
        """Return the type or priority it came with; 0 if it came with none."""
        return sent


KINDS: dict[str, type[Spool | Queue | Log | Mqueue]] = {"spool": Spool, "queue": Queue, "log": Log, "mqueue": Mqueue}
