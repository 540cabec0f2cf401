"""Memory that an agent writes and its supervisor reads: counters, heartbeat, why it is blocked. A page, and the tap's.

Made before the fork, so it outlives the agent and its successor counts on. Reading it wakes no process, and `status` is
always fresh. The agent may be compromised: the reader takes numbers as they are and texts as hostile bytes.

The page is shared, so every process that inherits it can write into it. The kernel keeps it out of children
(MADV_DONTFORK). `lent` makes one exception: the agent that owns the page, and its children (the senders). In any other
child the page's address is unmapped, or maps the child's own memory.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nsbridge.agents import tap

_SIZE = mmap.PAGESIZE
_CELLS = 24
_REASON_SIZE = 1000
_REASONS = 1024
_REASON_AT = {"out": _REASONS, "in": _REASONS + _REASON_SIZE}
_NOTICE_SIZE = 400
_NOTICES = 3100
_NOTICE_AT = {"out": _NOTICES, "in": _NOTICES + _NOTICE_SIZE}
_ALIKE = 3  # words of a reason, at least, if it is joined with another

BEAT = 0  # the loop's last sign of life, in ns of CLOCK_MONOTONIC (heartbeat.py)
TAKEN = 1  # messages taken out of the container
PENDING = 2  # of these, not yet confirmed by the other agent
HANDED = 3  # messages handed over into the container
HANDED_BYTES = 4
REPEATS_DROPPED = 5
IN_DOUBT = 6
DEAD = 7
SENDERS = 8  # two cells: pids of the processes that send into a queue, 0 where there are none
PROGRESS = 10  # when what runs beside the loop last owed nothing, in ns of CLOCK_MONOTONIC; 0: there is nothing
REFUSED = 11  # files in a spool that cannot be taken now
MISSED = 12  # files that a source could not read, or not whole
MISSED_BYTES = 13  # of these, at least
DEAD_DROPPED = 15  # of the dead letters, those that the agent has dropped itself
OLDEST = 16  # since when the oldest pending message has been, in ns of CLOCK_MONOTONIC; 0: there is none (pending.py)
BLOCKED = 17  # since when the agent has had a reason to wait, in ns of CLOCK_MONOTONIC; 0: it has none
REFUSED_TOTAL = 18  # files that a source refused since its journal was made
TAPPED = 19  # how many taps the agent copies messages for (tap.py); the supervisor writes it
WAITING_FILES = 20  # about how many files wait in a source's directory


class Scoreboard:
    """One agent's page. `cells[NAME]` is a u64."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _SIZE + tap.SIZE)
        self._page.madvise(mmap.MADV_DONTFORK)
        self.cells = memoryview(self._page)[:_SIZE].cast("Q")[:_CELLS]
        self.tap = memoryview(self._page)[_SIZE:]  # of copies of messages (tap.py); no memory before it is used

    def begin(self) -> None:
        """Begin a new agent, which owes a sign of life from now on."""
        self.cells[PROGRESS] = self.cells[REFUSED] = self.cells[WAITING_FILES] = 0
        for side in _REASON_AT:
            self.set_reason(side, "")
            self.set_notice(side, "")
        self.cells[BEAT] = time.monotonic_ns()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let a child that is forked in this context inherit the page."""
        self._page.madvise(mmap.MADV_DOFORK)
        try:
            yield
        finally:
            self._page.madvise(mmap.MADV_DONTFORK)

    def wipe_tap(self) -> None:
        """Give back the memory of the copies; they are gone."""
        self._page.madvise(mmap.MADV_REMOVE, _SIZE, tap.SIZE)

    def last_sign(self) -> float:
        """Return when the agent last gave a sign of life, its threads and processes too; seconds of CLOCK_MONOTONIC."""
        beat, progress = self.cells[BEAT], self.cells[PROGRESS]
        return min(beat, progress or beat) / 1e9

    def set_reason(self, side: str, reason: str) -> None:
        """Say why the `out` or `in` side waits; empty when it does not."""
        self._set_text(_REASON_AT[side], _REASON_SIZE, reason)
        if not any(self._page[at] for at in _REASON_AT.values()):
            self.cells[BLOCKED] = 0
        elif not self.cells[BLOCKED]:
            self.cells[BLOCKED] = time.monotonic_ns()

    def reason(self, side: str) -> str:
        """Return the last text of `set_reason`; bytes that are no UTF-8 become escapes."""
        return self._text(_REASON_AT[side], _REASON_SIZE)

    def set_notice(self, side: str, text: str) -> None:
        """Publish a notice about the `out` or `in` side, which does not wait; empty for none."""
        self._set_text(_NOTICE_AT[side], _NOTICE_SIZE, text)

    def notices(self) -> list[str]:
        """Return the last notices, each text once."""
        return list(dict.fromkeys(text for at in _NOTICE_AT.values() if (text := self._text(at, _NOTICE_SIZE))))

    def _set_text(self, start: int, size: int, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")[: size - 1]
        self._page[start : start + len(data) + 1] = data + b"\0"

    def _text(self, start: int, size: int) -> str:
        return self._page[start : start + size].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def has_texts(self) -> bool:
        """True if there is any reason or notice: nearly never, and this costs less than to read them."""
        page = self._page
        return any((page[_REASONS], page[_REASONS + _REASON_SIZE], page[_NOTICES], page[_NOTICES + _NOTICE_SIZE]))

    def reasons(self) -> list[str]:
        """Return why it waits, what both sides have in common once; empty if it does not."""
        found = list(dict.fromkeys(reason for side in _REASON_AT if (reason := self.reason(side))))
        both = joined(*found) if len(found) == len(_REASON_AT) else None
        return found if both is None else [both]

    def senders(self) -> list[int]:
        """Return the processes that, by the agent's report, send for it."""
        return [self.cells[SENDERS], self.cells[SENDERS + 1]]


def joined(one: str, other: str) -> str | None:
    """Return two reasons that differ in one word only as one: `no queue 0x1 and 0x2 in docker:a`; None for others."""
    words, others = one.split(" "), other.split(" ")
    if len(words) != len(others):
        return None
    different = [number for number, pair in enumerate(zip(words, others, strict=True)) if pair[0] != pair[1]]
    if len(different) != 1 or len(words) < _ALIKE:
        return None
    (at,) = different
    first, second = words[at], others[at]
    if first.endswith(":") and second.endswith(":"):
        first = first[:-1]
    return " ".join([*words[:at], first, "and", second, *words[at + 1 :]])
