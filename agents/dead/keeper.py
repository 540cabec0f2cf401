"""Handles an agent's dead letters in its loop: writes them, retries while there is no room, drops old ones.

A sink calls `put` for the message that is next in order. If there is no room, the sink accepts no more messages, and
this side offers the message again: with exponential backoff, or at once when the supervisor reports removed letters.
So no sink needs its own timer. `status` shows the reason until a message is handed over or written as a letter.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from nsbridge.agents.dead.letters import DeadLetters, NoRoomError, NoSpaceError
from nsbridge.agents.dead.quota import KeptLetter, shown_size
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.loop import Loop, Timer
from nsbridge.agents.wire import Run
from nsbridge.config.schema import DeadConfig

_FIRST_DELAY = 0.05  # seconds
_MAX_DELAY = 1.0
_LOG_EVERY = 1.0  # seconds between two lines about letters that were dropped
_FIRST_LOOK = 1.0  # seconds after the start: counting the letters must not delay the first message
_LONGEST_SLEEP = 7 * 86400.0  # seconds: epoll takes no more than 24 days


class LetterHost(Protocol):
    """The agent, as this part of it sees it (endpoints/base.py)."""

    loop: Loop
    name: str
    state_dir: str

    def log(self, level: str, text: str) -> None:
        """See base.Host."""

    def sink_ready(self) -> None:
        """See base.Host."""

    def show_blocked(self) -> None:
        """Show `reason` beside the sink's other reasons."""

    def show_counters(self) -> None:
        """Show the counters in the journal."""


class DeadLetterKeeper:
    """The dead letters of one agent. `sync` writes them to the disk if `fsync` is configured."""

    def __init__(
        self,
        host: LetterHost,
        directory: int,
        journal: SinkJournal | None,
        limits: DeadConfig,
        sync: Callable[[], None] | None,
    ) -> None:
        self.reason = ""  # why a letter waits; empty if none does
        self._host = host
        self._sync = sync
        self._letters = DeadLetters(directory, journal, limits, host.loop.now, self._note_dropped)
        self._delay = _FIRST_DELAY
        self._timer: Timer | None = None
        self._expiry: Timer | None = None
        self._dropped = self._dropped_bytes = 0  # since the last line about it
        self._why_dropped = self._last_dropped = ""
        self._log_from = 0.0  # when the next line may be logged
        self._ages = limits.max_age is not None

    def start(self) -> None:
        """Start dropping letters that are too old."""
        if self._ages:
            self._look_at(self._host.loop.now() + _FIRST_LOOK)

    def put(self, one: Run, where: str, why: str) -> bool | None:
        """Write a letter. True: written now. False: it existed already. None: not now; `sink_ready` follows."""
        try:
            is_new = self._add(one, where, why)
        except NoSpaceError as full:
            left = str(full).replace("state_dir", "it", 1)
            self._wait(self._no_space(one, where, why, f" ({left}; nsbridgectl dead list shows what is set aside)"))
            return None
        except NoRoomError as full:
            self._wait(
                f"dead letters of {self._host.name} are full ({full}): "
                f"nsbridgectl dead list shows them, dead retry or dead drop makes room"
            )
            return None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._wait(self._no_space(one, where, why))
            else:
                self._wait(f"cannot write a dead letter of {self._host.name} in state_dir: {error.strerror}")
            return None
        self.clear()
        if self._ages and self._expiry is None:
            self._expire()
        return is_new

    def clear(self) -> None:
        """Stop waiting for room, because a message was handed over or written as a letter."""
        self._delay = _FIRST_DELAY
        if self.reason:
            self.reason = ""
            self._host.show_blocked()

    def adopt(self, limits: DeadConfig) -> None:
        """Use other limits from now on."""
        self._letters.adopt(limits)
        self._ages = limits.max_age is not None
        if self._ages:
            self._look_at(self._host.loop.now())
        self.offer_again()

    def changed(self) -> None:
        """Note that letters were removed, so there may be room again."""
        self._letters.changed()
        self.offer_again()

    def offer_again(self) -> None:
        """Offer the waiting letter again, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.reason:
            self._host.sink_ready()
            self._offer_later()

    def _add(self, one: Run, where: str, why: str) -> bool:
        self._why_dropped = "to make room (drop-oldest)"
        is_new = self._letters.add(one, where, why)
        if is_new and self._sync is not None:
            self._sync()
        return is_new

    def _no_space(self, one: Run, where: str, why: str, more: str = "") -> str:
        """Return the reason that there is no space for the letter, and which message it is."""
        size = len(one.bodies[0])
        message = f"a message for {where} ({size:,} B, {why})"
        if why.startswith(f"{size} bytes are more than"):
            message = f"a message too long for {where} ({size:,} B)"
        return f"state_dir {self._host.state_dir} is full, so {message} cannot be set aside: free space there{more}"

    def _wait(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            self._host.show_blocked()
        self._offer_later()

    def _offer_later(self) -> None:
        """Offer it again later, even if the sink has accepted the message: no other event ends its wait."""
        if self.reason and self._timer is None:
            self._timer = self._host.loop.call_later(self._delay, self.offer_again)
            self._delay = min(self._delay * 2, _MAX_DELAY)

    # Too old, or in the way

    def _expire(self) -> None:
        self._expiry = None
        self._why_dropped = "for age (max_age)"
        try:
            due = self._letters.expire()
        except OSError as error:
            self._host.log("error", f"cannot drop old dead letters: {error.strerror}")
            due = self._host.loop.now() + _MAX_DELAY
        if due is not None:
            self._look_at(due)
        if self._dropped:
            self._host.show_counters()
            self.offer_again()

    def _look_at(self, due: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._host.loop.call_at(min(due, self._host.loop.now() + _LONGEST_SLEEP), self._expire)

    def _note_dropped(self, letter: KeptLetter) -> None:
        if not self._dropped:
            self._host.loop.call_at(self._log_from, self._log_dropped)
        self._dropped += 1
        self._dropped_bytes += letter.bytes
        self._last_dropped = letter.name

    def _log_dropped(self) -> None:
        """Log all that were dropped since the last line, which is at least a second ago."""
        what = "1 dead letter was" if self._dropped == 1 else f"{self._dropped:,} dead letters were"
        size = shown_size(self._dropped_bytes)
        self._host.log("warning", f"{what} dropped {self._why_dropped}: {size}, the last was {self._last_dropped}")
        self._dropped = self._dropped_bytes = 0
        self._log_from = self._host.loop.now() + _LOG_EVERY
