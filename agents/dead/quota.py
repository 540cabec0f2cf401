"""Decides whether an agent may keep one more dead letter on the host. No I/O, no clock.

Why there is a quota: a container can make its messages undeliverable as fast as it can write them (newlines for a log
of lines: 64 MB in 0.4 s). Without a limit its letters fill `state_dir`, and then no route can keep a journal there.

The rules:
* A letter counts with the bytes of its two files, body and note. The file system's overhead (a block for each file) is
  not counted; `max_letters` bounds it.
* A letter fits if the agent then has at most `max_letters` letters and `max_bytes` bytes. The only letter of an agent
  always fits. Otherwise a message longer than `max_bytes` would block its route until the configuration changes.
* Letters never take the last eighth of the file system (64 MB of it, at most), nor of its inodes: a quota that is
  larger than `state_dir` would otherwise keep journals from being made.
* Full and `block`: the letter waits, and so does the route. Nothing is lost; `dead drop` and `dead retry` make room.
* Full and `drop-oldest`: as many of the oldest letters are dropped as the new one needs. If dropping all would not
  suffice (other files fill the file system), none is dropped and the letter waits.
* Older than `max_age`: the letter is dropped. Its age is measured by the caller's clock, from when it was written.

Letters that were given back (`dead retry`) no longer belong to the sink. They wait in a directory of the source's
agent. The supervisor checks the same quota there before it gives one back (supervisor/control/deadletters.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from nsbridge.config.schema import DeadConfig, WhenFull

_KEPT_FREE = 64_000_000  # bytes of the file system, at most
_INODES_KEPT_FREE = 4096
_SHARE = 8  # an eighth is kept free
_INODES = 2  # inodes of a letter
_UNITS = (("GB", 10**9), ("GiB", 1 << 30), ("MB", 10**6), ("MiB", 1 << 20), ("kB", 10**3), ("KiB", 1 << 10))


class FileSystem(NamedTuple):
    """Bytes and inodes of the letters' file system. Some file systems count no inodes: both are 0."""

    free: int
    size: int
    inodes_free: int = 0
    inodes: int = 0


class KeptLetter(NamedTuple):
    """A letter that is kept. `born` is the time when it was written, by the clock that `expired` is called with."""

    name: str
    bytes: int
    born: float


class Admission(NamedTuple):
    """The decision: drop these letters, then write the new one; or wait, if `full` says what is full."""

    drop: tuple[KeptLetter, ...] = ()
    full: str = ""
    is_disk: bool = False  # the file system is full, not the quota


class Quota:
    """The letters of one agent, oldest first, and its limits."""

    def __init__(self, limits: DeadConfig) -> None:
        self.limits = limits
        self.bytes = 0
        self._letters: dict[str, KeptLetter] = {}

    @property
    def count(self) -> int:
        """Return the number of letters."""
        return len(self._letters)

    def replace(self, letters: Iterable[KeptLetter]) -> None:
        """Replace all letters by these."""
        self._letters = {letter.name: letter for letter in sorted(letters, key=lambda one: (one.born, one.name))}
        self.bytes = sum(letter.bytes for letter in self._letters.values())

    def add(self, letter: KeptLetter) -> None:
        """Add a letter that was written; it is the youngest."""
        self.remove(letter.name)
        self._letters[letter.name] = letter
        self.bytes += letter.bytes

    def remove(self, name: str) -> None:
        """Forget a letter that is gone; harmless if it is unknown."""
        letter = self._letters.pop(name, None)
        if letter is not None:
            self.bytes -= letter.bytes

    def admit(self, size: int, room: FileSystem) -> Admission:
        """Decide about a new letter of `size` bytes."""
        full = self._obstacle(0, 0, size, room)
        if not full:
            return Admission()
        if self.limits.when_full is WhenFull.DROP_OLDEST:
            letters = tuple(self._letters.values())
            freed = accumulate(letter.bytes for letter in letters)
            for count, amount in enumerate(freed, 1):
                if not self._obstacle(count, amount, size, room):
                    return Admission(letters[:count])
        return Admission(full=full, is_disk=not self._excess(0, 0, size))

    def expired(self, now: float) -> Iterator[KeptLetter]:
        """Yield the letters that are older than `max_age`, oldest first."""
        if self.limits.max_age is not None:
            for letter in tuple(self._letters.values()):
                if letter.born + self.limits.max_age > now:
                    return
                yield letter

    def next_expiry(self) -> float | None:
        """Return the time when the oldest letter will be too old; None if there is none or no limit."""
        oldest = next(iter(self._letters.values()), None)
        return None if oldest is None or self.limits.max_age is None else oldest.born + self.limits.max_age

    def _obstacle(self, fewer: int, freed: int, size: int, room: FileSystem) -> str:
        """Return what would be full after dropping the `fewer` oldest, of `freed` bytes; empty if the letter fits."""
        if excess := self._excess(fewer, freed, size):
            return excess
        kept = min(room.size // _SHARE, _KEPT_FREE)
        if room.free + freed - size < kept:
            return f"state_dir has {shown_size(room.free)} left, {shown_size(kept)} are kept free"
        kept = min(room.inodes // _SHARE, _INODES_KEPT_FREE)
        if room.inodes and room.inodes_free + _INODES * fewer - _INODES < kept:
            return f"state_dir has {room.inodes_free:,} inodes left, {kept:,} are kept free"
        return ""

    def _excess(self, fewer: int, freed: int, size: int) -> str:
        """Return which of the quota's limits the letter would exceed; empty if none."""
        limits, count = self.limits, self.count - fewer
        if count >= limits.max_letters:
            return f"{limits.max_letters:,} letters"
        if count and self.bytes - freed + size > limits.max_bytes:
            return shown_size(limits.max_bytes)
        return ""


def shown_size(size: int) -> str:
    """Return a number of bytes in the form of a configuration: 64 MB, 4 MiB, 1.5 MB."""
    for unit, factor in _UNITS:
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    for unit, factor in _UNITS[::2]:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
