"""Keeps the web process's data about the daemon, for all readers: one poll, two streams, and the live readers.

* The daemon is asked once for all readers: an answer, or a failure, is used for MAX_AGE seconds.
* It is asked every IDLE seconds for the plots, every LIVE seconds while a page is open, and at once after an event.
* A reader of the live stream that does not keep up is dropped. Its browser connects again, and gets everything anew.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.web import view
from nsbridge.supervisor.cli.web.daemon import Daemon
from nsbridge.supervisor.cli.web.history import History
from nsbridge.supervisor.cli.web.snapshot import Snapshot, parse

MAX_AGE = 1.0  # seconds
IDLE, LIVE = 5.0, 1.0  # seconds between two polls
AFTER_EVENT = 0.2  # seconds between two polls that events ask for
RETRY = 1.0  # seconds until a daemon that is away is asked again
KEPT = 200  # events, and lines of the log
_AT_FIRST = 100  # of them, asked for when a stream begins
BACKLOG = 500  # messages that a live reader may be behind


class Viewer:
    """One live reader: the messages that it has not had yet. `behind` is True once it was dropped."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue(BACKLOG)
        self.behind = False

    def put(self, kind: str, data: dict[str, Any]) -> None:
        """Add a message; if there is no room, drop the reader."""
        if self.behind:
            return
        try:
            self.queue.put_nowait((kind, data))
        except asyncio.QueueFull:
            self.drop()

    def drop(self) -> None:
        """End its stream: None instead of the messages that wait."""
        self.behind = True
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Feed:
    """The data, kept up to date inside `running`. `now` is a monotonic clock."""

    def __init__(self, daemon: Daemon, now: Callable[[], float] = time.monotonic) -> None:
        self.daemon = daemon
        self.history = History()
        self.rows: dict[str, view.Row] = {}
        self.snapshot: Snapshot | None = None  # None while the daemon does not answer
        self.reason = "nsbridged was not asked yet"  # why there is none
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.log: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._now = now
        self._since = ""  # when the daemon was started
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._asking_status = asyncio.Lock()
        self._status: tuple[float, Any] = (float("-inf"), None)
        self._wanted = asyncio.Event()  # poll soon
        self._viewers: set[Viewer] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll and follow in this context."""
        works = (self._poll(), self._follow("events", self.events, "event"), self._follow("tail", self.log, "log"))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            self.end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end(self) -> None:
        """End all live streams: the process is to stop."""
        for viewer in self._viewers:
            viewer.drop()

    async def fresh(self) -> Snapshot | None:
        """Return a snapshot that is at most MAX_AGE old; None if the daemon does not answer (see `reason`)."""
        if self._now() - self._asked_at > MAX_AGE:
            await self._ask()
        return self.snapshot

    async def status(self) -> Any:
        """Return the daemon's full status, at most MAX_AGE old. Raises NsbridgeError."""
        async with self._asking_status:
            kept_at, document = self._status
            if document is None or self._now() - kept_at > MAX_AGE:
                document = await self.daemon.call("status")
                self._status = (self._now(), document)
            return document

    @property
    def sees_pids(self) -> bool:
        """True if the daemon's processes have the numbers here that it names, so that /proc shows them.

        They have others if the two processes are in different pid namespaces, as in a container.
        """
        return self.snapshot is not None and self.snapshot.daemon["pid"] == self.daemon.pid

    @asynccontextmanager
    async def viewed(self) -> AsyncIterator[Viewer]:
        """Count as a live reader in this context; its first message says whether the daemon is there."""
        viewer = Viewer()
        viewer.put("daemon", self.state())
        viewer.put("rows", {**view.changes({}, self.rows), "all": True})
        self._viewers.add(viewer)
        self._wanted.set()
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    def state(self) -> dict[str, Any]:
        """Return the state of the daemon itself."""
        if self.snapshot is None:
            return {"up": False, "reason": self.reason, "counts": None, "version": "", "since": "", "pid": None}
        about = self.snapshot.daemon
        return {
            "up": True,
            "reason": "",
            "counts": view.counts(self.rows.values()),
            "version": about["version"],
            "since": self._since,
            "pid": about["pid"],
        }

    async def _poll(self) -> None:
        while True:
            await self._ask()
            pause = RETRY if self.snapshot is None else LIVE if self._viewers else IDLE
            try:
                await asyncio.wait_for(self._wanted.wait(), pause)
            except TimeoutError:
                continue
            await asyncio.sleep(max(0.0, self._asked_at + AFTER_EVENT - self._now()))
            self._wanted.clear()

    async def _ask(self) -> None:
        """Ask the daemon once for all that wait."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look())
        await asyncio.shield(self._asking)

    async def _look(self) -> None:
        before = self.state()
        try:
            snapshot = parse(await self.daemon.call("overview"))
        except NsbridgeError as error:
            self.snapshot, self.reason = None, str(error)
        else:
            if self.snapshot is None or self.snapshot.daemon["pid"] != snapshot.daemon["pid"]:
                started = time.gmtime(time.time() - snapshot.daemon["uptime_s"])
                self._since = time.strftime("%Y-%m-%d %H:%M:%S UTC", started)
            self.snapshot = snapshot
            self.history.see(self._now(), snapshot)
            self._show(view.rows(snapshot, self.history))
        self._asked_at = self._now()
        if self.state() != before:
            self._publish("daemon", self.state())

    def _show(self, rows: dict[str, view.Row]) -> None:
        before, self.rows = self.rows, rows
        if self._viewers and (changes := view.changes(before, rows)) and (changes["rows"] or changes["gone"]):
            self._publish("rows", {**changes, "all": False})

    async def _follow(self, method: str, kept: deque[dict[str, Any]], kind: str) -> None:
        """Keep the items of a stream of the daemon, also over its restarts."""
        while True:
            known = {json.dumps(item) for item in kept}  # the stream begins with its last ones
            try:
                async for item in self.daemon.follow(method, {"count": _AT_FIRST}):
                    if known and json.dumps(item) in known:
                        continue
                    kept.append(item)
                    self._publish(kind, item)
                    if kind == "event":
                        self._wanted.set()
            except NsbridgeError:
                self._wanted.set()  # it has ended: report that at once
            await asyncio.sleep(RETRY)

    def _publish(self, kind: str, data: dict[str, Any]) -> None:
        for viewer in self._viewers:
            viewer.put(kind, data)
