"""Removes the files that a spool's source has delivered: deletes them, or moves them to `done`.

New messages need not wait for that, so it is done in slices, in the order in which the files were taken. Until a file
is removed its note stays in the journal (SourceJournal.hold): so the next agent does not take the file again.

A file may be missing. Then its program has renamed or removed it, or an agent was killed just after it removed it. So
the directory is searched for its inode, beside the rest of the agent's work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import AFTERWARDS, Blocked
from nsbridge.agents.endpoints.files import Tree, blocked_by
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.done import DoneDirectory
from nsbridge.agents.endpoints.spool.names import CLOSED, SpoolNames
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, Taken, has_identity
from nsbridge.agents.endpoints.spool.search import RenamedSearch
from nsbridge.agents.endpoints.spool.taken import TakenFiles
from nsbridge.agents.identity.walk import shown
from nsbridge.agents.loop import Loop, Timer


class DeliveredFiles:
    """Removes the files of one directory at a time, between `open` and `close`."""

    def __init__(
        self,
        tree: Tree,
        config: SpoolEndpoint,
        taken: TakenFiles,
        names: SpoolNames,
        loop: Loop,
        again: Callable[[], None],
    ) -> None:
        """Remove nothing yet; `again` is called when `remove` should be called again."""
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self.is_blocked = False  # True if `remove` raised Blocked the last time
        self._again = again
        self._tree = tree
        self._path = os.fsencode(config.out)
        self._max_message = config.max_message
        self._done = DoneDirectory(tree, "done", config.done, config.mode) if config.done is not None else None
        self._taken = taken
        self._names = names
        self._loop = loop
        self._directory = -1
        self._timer: Timer | None = None
        self._search: RenamedSearch | None = None  # while one is due or runs
        self._failed: OSError | None = None  # what ended it
        self._missing: set[int] = set()  # messages whose files were missing when the last search began
        self._found: dict[SpoolFileId, bytes] = {}  # by that search: their names now

    def open(self, directory: int) -> None:
        """Begin in this directory; `done` is opened and checked. Raises Blocked."""
        self._directory = directory
        if self._done is not None:
            self._done.open(directory, self._path)

    def close(self) -> None:
        """Stop."""
        self._directory = -1
        self.is_blocked = False
        self._missing.clear()
        self._failed = None
        self._stop_search()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._done is not None:
            self._done.close()

    def remove(self, most: int) -> None:
        """Remove up to `most` of the delivered files. If there are more, `again` is called soon. Raises Blocked."""
        self.is_blocked = True
        if self._failed is not None:
            error, self._failed = self._failed, None
            raise self._cannot_search(error)
        for _ in range(max(most, len(self._missing))):  # what a search has found may be renamed again soon
            first = self._taken.delivered()
            if first is None or self._search is not None:
                break
            self._remove_first(first)
        self.is_blocked = False
        if self._taken.delivered() is None:
            self._taken.all_removed()
        elif self._search is None and self._timer is None:
            self._timer = self._loop.call_later(0, self._due)

    def _due(self) -> None:
        self._timer = None
        self._again()

    def _remove_first(self, first: Taken) -> None:
        """Remove the file of the first message, or begin to search for it. Raises Blocked."""
        try:
            try:
                self._remove(first)
            except FileNotFoundError:
                if first.seq not in self._missing:
                    self._search = RenamedSearch(self._directory, self._taken.inodes, self._names)
                    self._timer = self._loop.call_later(AFTERWARDS, self._begin_search)
                    return
                self._remove_renamed(first)
        except OSError as error:
            reason = blocked_by(error, shown(self._path + b"/" + first.name))
            raise Blocked(f"delivered, but cannot be removed: {reason}") from None
        except Blocked as reason:
            raise Blocked(f"delivered, but cannot be moved away: {reason}") from None
        self._missing.discard(first.seq)
        self._taken.drop_first()

    def _remove_renamed(self, taken: Taken) -> None:
        """Remove a file that was missing, if the search has found it. Raises OSError, Blocked."""
        self._names.forget(taken.name)
        if name := self._found.get(taken.identity):
            with suppress(FileNotFoundError):  # its program was faster
                self._remove(taken._replace(name=name))

    def _remove(self, taken: Taken) -> None:
        """Remove the file, unless its program has replaced it by another message. Raises OSError, Blocked."""
        _, name, identity, _ = taken
        now = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        is_same = has_identity(now, identity) or self._has_same_content(taken, now)
        if is_same and self._done is not None:
            self._done.move(self._directory, self._path, name, (self._taken.epoch, taken.seq))
        elif is_same:
            os.unlink(name, dir_fd=self._directory)
        self._names.forget(name)
        if not is_same:
            self._names.event(name, CLOSED)

    def _has_same_content(self, taken: Taken, now: os.stat_result) -> bool:
        """True if only the file's time has changed, as by touch(1)."""
        if taken.body is None or (now.st_ino, now.st_size) != (taken.identity.inode, taken.identity.size):
            return False
        fd = self._tree.open_file(self._directory, taken.name, os.O_RDONLY)
        try:
            return files.read_up_to(fd, self._max_message) == taken.body
        finally:
            os.close(fd)

    # -- the search for missing files

    def _begin_search(self) -> None:
        try:
            self._missing = {taken.seq for taken in self._taken.all_delivered() if self._is_missing(taken)}
        except OSError as error:
            self._end_search(error)
        else:
            self._go_on()

    def _is_missing(self, taken: Taken) -> bool:
        """True if it has no file of its name. Raises OSError."""
        try:
            os.stat(taken.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def _go_on(self) -> None:
        assert self._search is not None  # noqa: S101  (`close` cancels the timer)
        try:
            if self._search.step():
                self._timer = self._loop.call_later(0, self._go_on)
                return
        except OSError as error:
            self._end_search(error)
        else:
            self._end_search(None)

    def _end_search(self, failed: OSError | None) -> None:
        self._timer, self._failed = None, failed
        if failed is not None:
            self._missing.clear()
        self._stop_search()
        self._again()

    def _stop_search(self) -> None:
        if self._search is not None:
            self._found = self._search.found
            self._search.close()
            self._search = None

    def _cannot_search(self, error: OSError) -> Blocked:
        return Blocked(f"delivered, but cannot be removed: {blocked_by(error, shown(self._path))}")
