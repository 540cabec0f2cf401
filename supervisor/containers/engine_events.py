"""Reports which containers start, in lines that a child of the supervisor writes into a pipe.

A line is "+": from now on no start is missed; "ID NAME": that container has started or has that name now ("- NAME" if
its engine has no ids); "?": an unknown container has; "! TEXT": starts cannot be reported, with the reason, and the
child ends.

Some facts about the engines' events, and what they mean here:
* GET /events answers at once, then sends a line of JSON for each event, without end. So a stuck engine looks like a
  quiet one; it does not answer `locate` either.
* An event repeats all labels of its container, which may be long and are foreign. Only the id and the name are read,
  and the engine writes the name after the labels, so that no label can take its place.
* A paused container keeps running, and needs no event when it is resumed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.identity import escaped

WATCHING, SOMETHING, FAILED = b"+", b"?", b"! "
EVENT_LIMIT = 1 << 20  # bytes of one event; of a longer one only that it happened is known
ENDLESS = 16 << 20  # bytes without an end of line that are waited through
ID_PREFIX_AT_LEAST = 12  # characters of an id that may stand for a name: the short id that the engines show
_CHUNK = 64 << 10
_REST = 0.01  # seconds between full chunks: an engine that talks without end does not keep a core busy
_STARTED = re.compile(rb"(-|[0-9a-f]{12,64}) ([a-zA-Z0-9][a-zA-Z0-9_.-]{0,254})")


def parse_started(line: bytes) -> tuple[str, str] | None:
    """Return (id, name) of a line "ID NAME" or "- NAME"; None for any other line."""
    said = _STARTED.fullmatch(line)
    return (said[1].decode("ascii"), said[2].decode("ascii")) if said else None


def parse_event(line: bytes) -> bytes:
    """Return the line for an event of the engine's API: "ID NAME" or "?". Raises ValueError if it is no event."""
    try:
        event: Any = json.loads(line)
        actor = event["Actor"]
        started = f"{actor['ID']} {actor['Attributes']['name']}".encode(errors="replace")
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError("not an event") from None
    return started if parse_started(started) else SOMETHING


class EventParser:
    """Reads events from a stream in pieces, and never holds more than EVENT_LIMIT of one."""

    def __init__(self) -> None:
        self._line = b""
        self._skipped = 0  # bytes of the present line, once it is too long to be kept

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines to report. Raises ValueError if these are no events, or one does not end."""
        started = []
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line, skipped = self._line + end, self._skipped
            self._line, self._skipped = b"", 0
            if skipped:
                started.append(SOMETHING)
            elif line.strip():
                started.append(parse_event(line))
        if self._skipped or len(self._line) + len(rest) > EVENT_LIMIT:
            self._skipped += len(self._line) + len(rest)
            self._line = b""
        else:
            self._line += rest
        if self._skipped > ENDLESS:
            raise ValueError("an event without end")
        return started


def report_watching(writer: int) -> None:
    """Report that from now on no start is missed."""
    _write(writer, WATCHING)


def report_name(writer: int, name: bytes) -> None:
    """Report that the container of that name has started; of a name that no line can hold, that one has."""
    line = b"- " + name
    _write(writer, line if parse_started(line) else SOMETHING)


def run(follow: Callable[[int], object], writer: int) -> int:
    """Run the child: report starts, and why they cannot be reported any more. Returns the exit code."""
    try:
        follow(writer)
    except (NsbridgeError, Blocked) as error:
        _write(writer, FAILED + escaped(str(error)).encode())
    return 1


def report(stream: HTTPResponse, writer: int) -> None:
    """Report each event of an engine's API until the stream ends. Raises ValueError if these are no events."""
    report_watching(writer)
    events = EventParser()
    while piece := stream.read1(_CHUNK):
        for line in events.feed(piece):
            _write(writer, line)
        if len(piece) > _CHUNK // 2:
            time.sleep(_REST)


def _write(writer: int, line: bytes) -> None:
    os.write(writer, line + b"\n")  # whole: a pipe takes up to 4096 bytes at once or none (pipe(7))
