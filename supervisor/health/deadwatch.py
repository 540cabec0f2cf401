"""Notices an agent that fills `state_dir` through its dead letters or its journals, and stops it.

An honest agent keeps to its quota (agents/dead/quota.py). A compromised agent holds the same descriptors and may write
there without limit. It cannot reach beyond them, but it can fill the file system. So:
* The supervisor reads the file system's usage with one statvfs at each health check. It measures the directories only
  if the usage has grown by GROWN bytes or inodes, and some agent has a file there. So an idle daemon measures nothing,
  and neither does a daemon without dead letters when other programs fill its disk.
* A child measures, because a directory can be so large that listing it takes minutes. It stops counting beyond any
  allowed number, and has a time limit.
* An honest agent never exceeds both its quota and the content at the daemon's start (the quota may have been larger).
  An agent that does is killed and FATAL. The operator inspects and removes the files, and starts it.
* A journal never has more bytes than its successor would accept. An agent that appends to a log has no RLIMIT_FSIZE,
  and could write behind the end of its journal. The successor cuts that off (agents/journal/journalfile.py).

It does not detect a file that was unlinked while the agent holds it open. An agent has at most 1,024 descriptors, and
for an agent with queues RLIMIT_FSIZE bounds each such file (agents/journal/state.py). Killing the agent frees them.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nsbridge.agents.dead.quota import shown_size
from nsbridge.agents.journal import state
from nsbridge.agents.loop import Timer
from nsbridge.agents.statefiles import WAITING, dead_letters, dead_retries, journal_path
from nsbridge.config.descriptors import closing
from nsbridge.config.schema import MAX_MESSAGE, DeadConfig
from nsbridge.supervisor.host.spawn import LineChild
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.roster import Roster

GROWN = (16 << 20, 1024)  # bytes and inodes of the file system
PATIENCE = 30.0  # seconds for the child
_LARGE = 1 << 20  # bytes of a directory in which it takes long to find the first name
_SPARE_FILES = 64  # beyond two for each letter: parts that kills left, files of the operator


class Content(NamedTuple):
    """The content of one agent's directories: number of files, their bytes, and an entry that no agent makes.

    `journals` is the number of bytes of its journals.
    """

    files: int
    bytes: int
    odd: str = ""
    journals: int = 0


class DeadWatch:
    """The watch of a daemon; call `look` regularly."""

    def __init__(self, services: Services, roster: Roster) -> None:
        self._loop = services.loop
        self._log = services.log
        self._state_dir = services.state_dir
        self._limits = services.dead
        self._roster = roster
        self._lowest: tuple[int, ...] = ()  # usage of the file system: the lowest since it was measured
        self._files, self._bytes = 0, 0  # the largest limits that this daemon had
        self._at_start: dict[str, Content] | None = None  # more than the limits, as the first look found it
        self._stopped: set[str] = set()  # stopped agents; watched again after a start
        self._child: LineChild | None = None
        self._limit: Timer | None = None
        self._found: dict[str, Content] = {}
        self._largest: dict[str, int] = {}  # bytes that the journals of each agent may have

    def look(self) -> None:
        """Start to measure the directories if they may have grown."""
        self._note_limits(self._limits.limits)
        try:
            usage = _usage(self._state_dir)
        except OSError:
            return
        lowest = self._lowest or usage
        grown = any(now - low >= enough for now, low, enough in zip(usage, lowest, GROWN, strict=True))
        again = any(agent.config.name in self._stopped and agent.pid for agent in self._roster.agents)
        self._lowest = tuple(map(min, usage, lowest))
        if self._child is None and (grown or again or self._at_start is None):
            self._lowest = usage
            self._measure()

    def _note_limits(self, limits: DeadConfig) -> None:
        self._files = max(self._files, 2 * limits.max_letters + _SPARE_FILES)
        self._bytes = max(self._bytes, limits.max_bytes + MAX_MESSAGE)

    def _measure(self) -> None:
        self._largest = {agent.config.name: _largest(agent) for agent in self._roster.agents}
        if not _has_any(self._state_dir, self._largest):
            self._at_start = self._at_start or {}
            return
        most = 2 * max([self._files, *(content.files for content in (self._at_start or {}).values())])
        self._found = {}
        try:
            self._child = LineChild(self._loop, partial(_measure, self._state_dir, self._largest, most), self)
        except OSError as error:
            self._log.warning("", f"dead letters cannot be measured: cannot fork: {error.strerror}")
            return
        self._limit = self._loop.call_later(PATIENCE, self._child.kill)

    def line_received(self, line: bytes) -> None:
        """See LineListener."""
        try:
            name, *content = json.loads(line)
        except ValueError:
            return
        self._found[name] = Content(*content)

    def child_ended(self, code: int) -> None:
        """See LineListener."""
        if self._limit is not None:
            self._limit.cancel()
        self._child = None
        if code:
            self._log.warning("", f"measuring the dead letters took more than {PATIENCE:g} s; it is retried")
            self._lowest = (0, 0)
            return
        is_first = self._at_start is None
        if self._at_start is None:
            self._at_start = {name: found for name, found in self._found.items() if self._excess(name, found)}
        for agent in self._roster.agents:
            found = self._found.get(agent.config.name)
            if found is not None and not is_first and (why := self._excess(agent.config.name, found)):
                self._stop(agent, why)

    def _excess(self, name: str, found: Content) -> str:
        """Return how the agent exceeds its limits; empty if it does not."""
        before = (self._at_start or {}).get(name, Content(0, 0))
        if found.odd and not before.odd:
            return f"its dead letters hold {found.odd}"
        if found.files > max(self._files, before.files):
            return f"its dead letters hold more than {max(self._files, before.files):,} files"
        if found.bytes > max(self._bytes, before.bytes):
            return f"its dead letters hold {shown_size(found.bytes)} of files"
        if found.journals > max(self._largest[name], before.journals):
            return f"its journals hold {shown_size(found.journals)}"
        return ""

    def _stop(self, agent: ManagedAgent, why: str) -> None:
        process = agent.process
        if process is None or agent.state not in (State.STARTING, State.RUNNING):
            return
        self._stopped.add(agent.config.name)
        box, given = _boxes(self._state_dir, agent.config.name)
        process.last_words = f"{why}, which no healthy agent writes"
        process.child.kill()
        agent.refuse(f"{process.last_words}: inspect {box} and {given}, and remove all that is not a dead letter")


def _usage(path: str) -> tuple[int, int]:
    """Return the bytes and inodes in use on the file system. Raises OSError."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def _largest(agent: ManagedAgent) -> int:
    return state.largest_journals(agent.config, agent.route.window)


def _measure(state_dir: str, largest: Mapping[str, int], most: int, writer: int) -> int:
    """Report, as the child, the content of each agent's directories; omit agents without files."""
    os.nice(10)
    for name in largest:
        found = _content(_boxes(state_dir, name), most)._replace(journals=_journals(state_dir, name))
        if found.files or found.odd or found.journals > largest[name]:
            line = json.dumps([name, *found]).encode() + b"\n"
            while line:
                line = line[os.write(writer, line) :]
    return 0


def _content(boxes: Sequence[Path], most: int) -> Content:
    """Count the files in these directories, up to `most`. Names are never read, links never followed."""
    files = size = 0
    odd = ""
    for box in boxes:
        try:
            fd = os.open(box, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            return Content(files, size, f"something that is not a directory ({error.strerror})")
        with closing(fd):
            found = _count(fd, most - files)
        files, size, odd = files + found.files, size + found.bytes, odd or found.odd
    return Content(files, size, odd)


def _count(box: int, most: int) -> Content:
    files = size = 0
    odd = ""
    with os.scandir(box) as entries:
        for entry in itertools.islice(entries, most + 1):
            with suppress(OSError):  # it has just gone
                about = entry.stat(follow_symlinks=False)
                files += 1
                size += min(about.st_size, about.st_blocks * 512)
                odd = "a directory" if stat.S_ISDIR(about.st_mode) else odd
    return Content(files, size, odd)


def _journals(state_dir: str, name: str) -> int:
    """Return the bytes of an agent's journals, and of its list of names that wait."""
    size = 0
    for side in ("in", "out", WAITING):
        with suppress(OSError):
            size += journal_path(state_dir, name, side).lstat().st_blocks * 512
    return size


def _has_any(state_dir: str, largest: Mapping[str, int]) -> bool:
    """True if some agent may have a file, or a journal that is too long."""
    if any(_journals(state_dir, name) > largest[name] for name in largest):
        return True
    for box in itertools.chain.from_iterable(_boxes(state_dir, name) for name in largest):
        try:
            if box.lstat().st_size > _LARGE:
                return True
            with os.scandir(box) as entries:
                if next(entries, None) is not None:
                    return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def _boxes(state_dir: str, name: str) -> tuple[Path, Path]:
    return dead_letters(state_dir, name), dead_retries(state_dir, name)
