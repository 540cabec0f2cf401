"""Writes log records to stderr or a rotated file. Nothing here raises, and nothing waits for a reader.

Some facts about stderr, and what they mean here:
* O_NONBLOCK belongs to the open file description, which the shell and other programs share. So a pipe and a terminal
  are opened again through /proc, and a socket (systemd's journal) is asked with MSG_DONTWAIT.
* Where it cannot be opened again (a terminal of another user, after su), poll(2) is asked first: a pipe that is
  writable takes PIPE_BUF bytes at once, a terminal that was stopped (Ctrl-S) is not writable.
* A pipe takes up to PIPE_BUF bytes whole or not at all. It may take a part of a longer record; then the rest must be
  written before any other record.

Records that are not taken wait in a bounded backlog, which the loop flushes as soon as it can. Records without room are
dropped and counted, and the count is logged when writing works again.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

from nsbridge.agents.loop import WRITABLE, Loop
from nsbridge.config import trusted

BACKLOG = 256 << 10  # bytes that wait for a reader
AT_END = 0.2  # seconds to wait at the end for the last records
_MODE = 0o640  # of a log file, under any umask: not every user may read which containers talk


class LogHandler(logging.Handler):
    """Counts the records that it cannot write. It does not raise, or complain to a stderr that may be broken."""

    lost = 0  # records since one could last be written
    reason = ""  # why
    recovered: Callable[[int, str], None] = staticmethod(lambda _lost, _reason: None)  # called when writing works again

    def attach(self, loop: Loop | None) -> None:
        """Use this loop from now on, or none."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  (logging's name)
        """Count it."""
        self.lost += 1
        error = sys.exc_info()[1]
        self.reason = (error.strerror if isinstance(error, OSError) else None) or str(error)


class RotatingLogFile(LogHandler, RotatingFileHandler):
    """Writes to a file that is rotated by size, opened by config/trusted.py."""

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, after a rotation if one is due."""
        before = self.lost
        super().emit(record)
        if self.lost == before:
            self.lost = 0

    def close(self) -> None:
        """Write out what is buffered."""
        try:
            super().close()
        except OSError as error:
            self.reason = error.strerror or str(error)

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND
        fd = trusted.open_file(self.baseFilename, flags, create=_MODE, group_dir=True)
        return os.fdopen(fd, "a", encoding="utf-8")


class StreamSink(LogHandler):
    """Writes to stderr's descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._loop: Loop | None = None
        self._backlog = bytearray()
        self._writer = _writer(fd)

    def attach(self, loop: Loop | None) -> None:
        """See LogHandler."""
        if self._loop is not None:
            self._loop.unwatch(self._writer.fd)
        self._loop = loop
        self._watch()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or put it into the backlog, or drop it."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            if len(self._backlog) + len(line) > BACKLOG:
                self._write_out()
            if len(self._backlog) + len(line) > BACKLOG:
                raise BlockingIOError(errno.EAGAIN, "nobody reads stderr")
            self._backlog += line
            self._write_out()
            if not self._backlog:
                self.lost = 0
        except Exception:  # noqa: BLE001  (any failure costs only this record)
            self.handleError(record)
        self._watch()

    def close(self) -> None:
        """Flush the backlog, if it is read soon."""
        self.attach(None)
        try:
            while self._backlog and self._writer.is_writable(AT_END):
                before = len(self._backlog)
                self._write_out()
                if len(self._backlog) == before:
                    break
        except OSError:
            pass
        self._writer.close()
        super().close()

    def _write_out(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: self._writer.write(bytes(self._backlog))]
        except BlockingIOError:
            pass
        except OSError:
            self._backlog.clear()
            raise

    def _watch(self) -> None:
        if self._loop is None:
            return
        if self._backlog:
            self._loop.watch(self._writer.fd, WRITABLE, self._writable)
        else:
            self._loop.unwatch(self._writer.fd)

    def _writable(self, _events: int) -> None:
        try:
            self._write_out()
        except OSError as error:
            self.lost, self.reason = self.lost + 1, error.strerror or str(error)
        self._watch()
        if not self._backlog and self.lost:
            lost, self.lost = self.lost, 0
            self.recovered(lost, self.reason)


class _Writer:
    """Writes to its own non-blocking descriptor, or to a file's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, data: bytes) -> int:
        """Write a part of `data`. Raises BlockingIOError if nothing is taken now, OSError."""
        return os.write(self.fd, data)

    def is_writable(self, timeout: float) -> bool:
        """True if it takes data within `timeout` seconds."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(timeout * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class _SocketWriter(_Writer):
    """Writes to a socket, which cannot be opened again."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(None)

    def write(self, data: bytes) -> int:
        """See _Writer."""
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """See _Writer."""
        self._socket.close()


class _AskingWriter(_Writer):
    """Writes to a pipe or terminal that cannot be opened again: polls it before each write."""

    def write(self, data: bytes) -> int:
        """See _Writer."""
        if not self.is_writable(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data[: select.PIPE_BUF])


def _writer(fd: int) -> _Writer:
    """Return the writer for `fd`, whose own flags stay unchanged."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISSOCK(kind):
        return _SocketWriter(_duplicate(fd))
    if not stat.S_ISFIFO(kind) and not os.isatty(fd):
        return _Writer(_duplicate(fd))
    try:
        return _Writer(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # another user's; a pipe without a reader
        return _AskingWriter(_duplicate(fd))


def _duplicate(fd: int) -> int:
    copy = os.dup(fd)
    os.set_inheritable(copy, False)
    return copy


class TextSink(LogHandler):
    """Writes to a stream without a descriptor, as a test runner's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  (as above)
            self.handleError(record)


def stderr_sink() -> LogHandler:
    """Return the sink for stderr."""
    try:
        return StreamSink(sys.stderr.fileno())
    except (io.UnsupportedOperation, OSError, ValueError):
        return TextSink()
