r"""The daemon's log: one line a record to stderr or a rotated file, and the last records in memory for `tail`.

Whatever is not printable is escaped before a record goes anywhere (\x1b, \n, \udc80): containers choose names and
messages. Nothing here raises or waits once the log is open (sinks.py): a full disk, or a stderr that no process reads,
costs records, never the daemon. They are counted and reported when writing works again. A text that repeats
is counted instead (repeats.py).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import LogConfig
from nsbridge.config.text import escape
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.log.repeats import WINDOW, LogText, Repeats
from nsbridge.supervisor.log.ring import Ring, concerns
from nsbridge.supervisor.log.sinks import LogHandler, RotatingLogFile, stderr_sink

KEPT = 1000  # records in memory
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: wall time in seconds, level in capitals, the agent's name ("" is the daemon), escaped text."""

    time: float
    level: str
    name: str
    message: str

    def item(self) -> dict[str, str]:
        """Return the JSON object for the log and for `tail`; the time is UTC, ISO 8601, to the millisecond."""
        return {"time": timestamp(self.time), "level": self.level, "name": self.name, "message": self.message}

    def matches(self, name: str) -> bool:
        """True if it is about `name`: a route, an agent, or "" for everything."""
        return concerns(self.name, name)


class Log:
    """The open log. `name` is the agent a record is about (orders:web), "" for the daemon itself.

    `ring` has the last KEPT records, for `tail`.
    """

    def __init__(self, config: LogConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._loop: Loop | None = None
        self._repeats = Repeats()
        self._logger = logging.getLogger("nsbridge")
        self._logger.setLevel(LEVELS[config.level])
        self._logger.propagate = False
        self.ring: Ring[Entry] = Ring(KEPT, Entry)
        self._remember = _Remember(self.ring)
        self._sink = self._open_sink(config)
        self._logger.addHandler(self._remember)
        self._logger.addHandler(self._sink)

    def debug(self, name: str, message: str) -> None:
        """Log a detail for developers."""
        self._write(logging.DEBUG, name, message)

    def info(self, name: str, message: str) -> None:
        """Log an ordinary event."""
        self._write(logging.INFO, name, message)

    def warning(self, name: str, message: str) -> None:
        """Log a problem that may need a person if it persists."""
        self._write(logging.WARNING, name, message)

    def error(self, name: str, message: str) -> None:
        """Log a problem that needs a person."""
        self._write(logging.ERROR, name, message)

    def attach(self, loop: Loop | None) -> None:
        """Let this loop flush the backlog from now on; None before the loop is closed."""
        self._loop = loop
        self._sink.attach(loop)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed (USR1). If that fails, log the failure and keep the old one."""
        try:
            self.reconfigure(self._config)
        except NsbridgeError as error:
            self.error("", f"the log stays in its old file: {error}")

    def reconfigure(self, config: LogConfig) -> None:
        """Apply `config`. NsbridgeError if its file cannot be opened; then all stays as it was."""
        sink = self._open_sink(config)
        self._logger.removeHandler(self._sink)
        self._sink.close()
        self._config, self._sink = config, sink
        self._logger.addHandler(sink)
        self._logger.setLevel(LEVELS[config.level])

    @property
    def lost(self) -> int:
        """Return the number of records lost since the last one that was written."""
        return self._sink.lost

    def log_repeats(self) -> None:
        """Log how often each held-back text was repeated; every record does that too."""
        for line, count in self._repeats.over(self._clock()):
            self._log_repeated(line, count)

    def close(self) -> None:
        """Write out and close the file."""
        for line, count in self._repeats.over():
            self._log_repeated(line, count)
        for handler in (self._remember, self._sink):
            self._logger.removeHandler(handler)
            handler.close()

    def _write(self, level: int, name: str, message: str) -> None:
        if not self._logger.isEnabledFor(level):
            return
        self.log_repeats()
        if self._repeats.admit(LogText(level, name, message), self._clock()):
            self._put(level, name, message)

    def _log_repeated(self, line: LogText, count: int) -> None:
        self._put(line.level, line.name, f"{count:,} times more within {WINDOW:g} s: {line.text}")

    def _put(self, level: int, name: str, message: str) -> None:
        lost = self._sink.lost
        self._logger.log(level, "%s", escape(message), extra={"agent": escape(name)})
        if lost and not self._sink.lost:
            self._log_lost(lost, self._sink.reason)

    def _log_lost(self, lost: int, reason: str) -> None:
        self.warning("", f"up to {lost} records before this could not be written: {reason}")

    def _open_sink(self, config: LogConfig) -> LogHandler:
        if config.file is None:
            sink = stderr_sink()
        else:
            try:
                sink = RotatingLogFile(config.file, config.max_bytes, config.backups)
            except UntrustedError as error:
                raise NsbridgeError(f"daemon.log.file: {error}") from None
            except OSError as error:
                raise NsbridgeError(f"daemon.log.file: cannot open {config.file}: {error.strerror}") from None
            except ValueError as error:
                raise NsbridgeError(f"daemon.log.file: {config.file} {error}; leave it out to log to stderr") from None
        sink.recovered = self._log_lost
        sink.attach(self._loop)
        sink.setFormatter(_JsonFormatter() if config.format == "json" else _TextFormatter())
        return sink


def open_log(config: LogConfig, clock: Callable[[], float] = time.monotonic) -> Log:
    """Open the log that `config` describes. NsbridgeError if its file cannot be opened."""
    return Log(config, clock)


class _TextFormatter(logging.Formatter):
    """2026-11-23T19:00:00.123Z INFO orders:web message."""

    def format(self, record: logging.LogRecord) -> str:
        entry = _entry(record)
        return f"{timestamp(entry.time)} {entry.level} {entry.name or 'nsbridged'} {entry.message}"


class _JsonFormatter(logging.Formatter):
    """One object a line: time, level, name, message."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_entry(record).item(), ensure_ascii=False)


class _Remember(logging.Handler):
    """Keeps the last records for `tail`."""

    def __init__(self, ring: Ring[Entry]) -> None:
        super().__init__()
        self._ring = ring

    def emit(self, record: logging.LogRecord) -> None:
        self._ring.add(_entry(record))


def _entry(record: logging.LogRecord) -> Entry:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    return Entry(record.created, record.levelname, escape(getattr(record, "agent", "")), escape(message))


def timestamp(seconds: float) -> str:
    """Return wall time as the log has it: UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
