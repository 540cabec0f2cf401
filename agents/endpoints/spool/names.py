"""Keeps the names of a spool's directory that wait to be taken, in order. Reads no file.

Names wait in order of arrival, as events report it. Names that a scan finds are sorted, and precede those that arrived
during the scan.

Some facts about listings and events, and what they mean here:
* A listing of a directory may miss a file that came before another one which it has (ext4 lists by a hash of the name).
  But the kernel queues a file's event (created, renamed into) while it holds the directory's lock, and a listing takes
  that lock. So every name that came after the watch began has its event by the time that a listing shows it: the
  listing decides about the older names only, and the events about the newer ones. One listing is enough.
* A directory may be very large, so a scan runs in slices, and the rest of the agent runs between them.
* At most _MOST names wait in memory, as many as the kernel keeps events: the first by name. The next ones come from the
  list in the state directory (agents/journal/waitinglist.py), and another scan finds the rest. Until then events are
  dropped: those files came before them.
* Listing and sorting a very large directory may take longer than the time between two kills. So a new agent begins with
  the names of the list, and scans when they are taken, or after _SCAN_AFTER seconds. Until then it need not hear of
  every event, which also takes time (watch.py): those of new names are dropped.

A name may be set aside, because its file cannot be taken now (aside.py). It waits again when it is due, and at once
when an event names it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import AFTERWARDS, Blocked
from nsbridge.agents.endpoints.spool.aside import NamesAside
from nsbridge.agents.journal.waitinglist import WaitingList
from nsbridge.agents.loop import Loop

CLOSED, MOVED_IN, CREATED = watch.CLOSED, watch.MOVED_IN, watch.CREATED  # the event that brought a name
SCANNED = 0  # without an event: its writer may not have finished
_TAKEN, _ASIDE, LOOKED_AGAIN = -1, -2, -3  # taken; set aside; set aside, and looked at again

_MOST = 16384  # names that wait in memory, as many as the kernel's events (fs.inotify.max_queued_events)
_MOST_LISTED = 1 << 17  # names that one scan keeps for the list; 10 MB of memory until they are written
_WORTH_LISTING = 1024  # names; a scan finds fewer again in a few milliseconds
_SCAN_AFTER = 1.0  # seconds after the start until the first scan, if there is a list
_MOST_ARRIVED = 1 << 17  # names that arrive during one scan; with more of them it begins again
_SAMPLE, _LIKELY_NAME = 32, 24  # names whose length is averaged; bytes of a name where none is known
_SLICE = 0.005  # seconds of a scan until the rest of the agent has its turn
_ENTRIES = 256  # entries of a listing between two reads of the clock
_AGAIN_AFTER_ERROR = 1.0  # seconds until another scan, if a listing failed


@dataclass(slots=True)
class _Scan:
    listing: Iterator[os.DirEntry[str]]
    found: list[bytes]
    limit: bytes | None = None  # names beyond it are not kept
    is_cut: bool = False  # some were not kept


class Calls(NamedTuple):
    """Callbacks of SpoolNames."""

    more: Callable[[], None]  # when names wait
    odd: Callable[[bytes], None]  # for an entry that is no regular file
    listen: Callable[[], object]  # before a listing: from now on every event counts. Raises Blocked
    drain: Callable[[], bool]  # to read every event there is (`event` gets them); False: the directory was replaced


class SpoolNames:
    """The names of one directory at a time, between `open` and `close`."""

    def __init__(
        self,
        loop: Loop,
        is_message: Callable[[bytes], bool],
        calls: Calls,
        waiting: WaitingList | None = None,
    ) -> None:
        """Know no names yet; `waiting` is the list in the state directory, if there is one."""
        self._loop = loop
        self.is_message = is_message
        self._drain, self._listen = calls.drain, calls.listen
        self._more, self._odd = calls.more, calls.odd
        self._waiting = waiting
        self._listed = 0  # how many names at the start of the backlog are on that list
        self._directory = -1
        self._how: dict[bytes, int] = {}  # every known name: the event that brought it, _TAKEN or _ASIDE
        self._backlog: deque[bytes] = deque()  # to be taken, in this order
        self._has_more = False  # there are more, which a scan will find
        self._scan: _Scan | None = None
        self._arrived: dict[bytes, int] = {}  # during the scan
        self._again = False  # the running scan is incomplete: another one must follow
        self._aside = NamesAside(loop, self._return, calls.more)
        self._beyond = 0  # entries that are no regular file, and too many to be remembered

    def open(self, directory: int) -> None:
        """Begin with this directory: with an earlier agent's list, or to scan it.

        It must be watched already, for new names at least. The first slice of a scan runs at once.
        """
        self._directory = directory
        if self._waiting is not None and self._waiting.open(os.fstat(directory).st_ino):
            self._has_more = True
            self._loop.call_later(AFTERWARDS, self._more)  # what earlier agents took goes first
            self._loop.call_later(_SCAN_AFTER, self._scan_after_start)
        else:
            self.scan()

    def _scan_after_start(self) -> None:
        if self._directory >= 0 and self._has_more and self._scan is None:
            self.scan()

    def close(self) -> None:
        """Forget everything."""
        self._end_scan()
        self._directory = -1
        self._aside.clear()
        for names in (self._how, self._backlog, self._arrived):
            names.clear()
        self._has_more = self._again = False
        self._beyond = self._listed = 0

    def first(self) -> bytes | None:
        """Return the name whose turn it is; None if none waits now (a scan may still bring some)."""
        while self._backlog or self._read_list():
            if self._how.get(self._backlog[0], _ASIDE) not in (_TAKEN, _ASIDE):
                return self._backlog[0]
            self._pop()  # it was forgotten, or came again, while it waited
        if self._has_more and self._scan is None:
            self._loop.call_later(0, self._scan_for_more)
        return None

    def may_have_more(self) -> bool:
        """True if names wait, or the list or a scan would bring some."""
        return bool(self._backlog) or self._has_more or self._has_list()

    def estimated_count(self) -> int:
        """Return about how many names wait: those that are only in the list are estimated by its length in bytes."""
        count, left = len(self._backlog), self._waiting.bytes_left() if self._waiting is not None else 0
        if not left:
            return count
        sample = list(islice(self._backlog, _SAMPLE))
        each = sum(map(len, sample)) / len(sample) + 1 if sample else _LIKELY_NAME
        return count + round(left / each)

    def _has_list(self) -> bool:
        return self._waiting is not None and self._waiting.has_more()

    def _read_list(self) -> bool:
        """Let the next names of the list wait; False if there are none."""
        if self._waiting is None or not self._waiting.has_more():
            return False
        names = self._waiting.read()
        for name in filter(self.is_message, names):
            self._how.setdefault(name, SCANNED)
        self._backlog.extend(names)
        self._listed = len(names)
        return bool(names)

    def _pop(self) -> None:
        """Remove the first name of the backlog."""
        name = self._backlog.popleft()
        if self._listed and self._waiting is not None:
            self._listed -= 1
            self._waiting.passed(name)

    def how(self, name: bytes) -> int:
        """Return the event that brought a waiting name, or SCANNED."""
        return self._how.get(name, SCANNED)

    def take(self, name: bytes) -> None:
        """Note that the file was taken: its name does not wait again until `forget`."""
        self._remove(name)
        if name in self._aside.names:
            self._aside.drop(name)
        self._how[name] = _TAKEN

    def is_taken(self, name: bytes) -> bool:
        """True if the file of that name was taken and the name not forgotten since."""
        return self._how.get(name) == _TAKEN

    def forget(self, name: bytes) -> None:
        """Forget a name, because its file is gone or is a new one."""
        self._remove(name)
        self._how.pop(name, None)
        if name in self._aside.names:
            self._aside.drop(name)

    def _remove(self, name: bytes) -> None:
        if self._backlog and self._backlog[0] == name:
            self._pop()

    def event(self, name: bytes, how: int) -> None:
        """Add a name that an event brought; the name may lead to a different file by now."""
        if not self.is_message(name):
            return
        known = self._how.get(name)
        if known == _TAKEN:
            return
        if known is not None and known != _ASIDE:
            self._how[name] = how
            return
        if known is not None:
            del self._how[name]
            self._aside.drop(name)
        self._add(name, how)

    def _add(self, name: bytes, how: int) -> None:
        if self._scan is not None:
            if len(self._arrived) < _MOST_ARRIVED:
                self._arrived[name] = how
            else:
                self._again = True
        elif self._has_more or len(self._backlog) >= _MOST:
            self._has_more = True
        else:
            self._how[name] = how
            self._backlog.append(name)

    # -- names that cannot be taken now

    def set_aside(self, name: bytes, why: str = "", delay: float = 0.0) -> bool:
        """Set a name aside for at least `delay` seconds; return True if this reason is new for it."""
        self._remove(name)
        if self._aside.is_full and name not in self._aside:
            self.forget(self._aside.oldest())
        self._how[name] = _ASIDE
        return self._aside.add(name, why, delay)

    def refused(self) -> int:
        """Return how many names are set aside for a reason that the operator should know."""
        return self._aside.refused + self._beyond

    def look_again(self) -> None:
        """Look again at every name that only has to become ready."""
        self._aside.look_at_unready()

    def _return(self, name: bytes) -> None:
        self._how[name] = LOOKED_AGAIN
        self._backlog.append(name)

    # -- scans

    def scan(self) -> None:
        """Look at the whole directory: events were lost, or there are none."""
        if self._scan is not None:
            self._again = True
            return
        self._has_more = self._again = False
        self._beyond = 0
        try:
            self._listen()
            # A descriptor of its own: two listings of one descriptor would share their place.
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        except (Blocked, OSError):
            self._failed()
            return
        try:
            self._scan = _Scan(os.scandir(fd), [])
        finally:
            os.close(fd)
        self._step()

    def _scan_for_more(self) -> None:
        if self._directory >= 0 and self._has_more and not self._backlog and self._scan is None:
            self.scan()

    def _failed(self) -> None:
        """Scan again later: no descriptor was free, or the directory could not be read."""
        self._end_scan()
        self._has_more = True
        self._loop.call_later(_AGAIN_AFTER_ERROR, self._scan_for_more)

    def _end_scan(self) -> None:
        if self._scan is not None:
            self._scan.listing.close()  # type: ignore[attr-defined]  # scandir's iterator has it
            self._scan = None

    def _step(self) -> None:
        scan = self._scan
        if scan is None:
            return  # the directory was closed meanwhile
        until = self._loop.now() + _SLICE
        try:
            while entries := list(islice(scan.listing, _ENTRIES)):
                self._sift(scan, entries)
                if self._loop.now() >= until:
                    self._loop.call_later(0, self._step)
                    return
        except OSError:
            self._failed()
            return
        self._finish(scan)

    def _sift(self, scan: _Scan, entries: list[os.DirEntry[str]]) -> None:
        how, is_message, limit = self._how, self.is_message, scan.limit
        for entry in entries:
            name = os.fsencode(entry.name)
            if name in how or not is_message(name):
                continue
            if not entry.is_file(follow_symlinks=False):
                if len(self._aside) < _MOST:
                    self._odd(name)
                else:
                    self._beyond += 1
            elif limit is not None and name > limit:
                scan.is_cut = True
            else:
                scan.found.append(name)
        most = _MOST if self._waiting is None else _MOST_LISTED
        if len(scan.found) > most + _MOST:
            scan.found.sort()
            del scan.found[most:]
            scan.limit, scan.is_cut = scan.found[-1], True

    def _finish(self, scan: _Scan) -> None:
        if not self._drain() or self._scan is not scan:
            return  # the directory was replaced; a new scan has begun
        if self._again:
            # Events were lost while it ran. Of the names that it found, some came after names that events brought, and
            # nothing shows which. Every event up to now is read, so the next scan sees what was lost.
            self._arrived = {}
            self._end_scan()
            self.scan()
            return
        arrived = self._arrived
        found = sorted(name for name in scan.found if name not in arrived and name not in self._how)
        room = max(0, _MOST - len(self._backlog))
        self._has_more = scan.is_cut or len(found) > room
        self._list(found, min(room, len(found)))
        for name in found[:room]:
            self._how[name] = SCANNED
            self._backlog.append(name)
        self._arrived = {}
        self._end_scan()
        if not self._has_more:  # else they are found by the next scan, with what came before them
            for name, how in arrived.items():
                self._add(name, how)
        self._more()

    def _list(self, found: list[bytes], count: int) -> None:
        """List what waits and was found, for the next agent, and for this one behind the first `count` of `found`."""
        total = len(self._backlog) + len(found)
        if self._waiting is None or total < _WORTH_LISTING:
            return
        in_memory = len(self._backlog) + count
        inode = os.fstat(self._directory).st_ino
        self._listed = min(in_memory, self._waiting.write([*self._backlog, *found], in_memory, inode))
