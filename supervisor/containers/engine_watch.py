"""Calls back when a container of an engine with events starts: holds the child that reads them (engine_events.py).

The child exists only while an agent waits for a container of that engine, and LINGER longer. When it ends (the engine
was stopped, or does not answer) another one is started, with exponential backoff. All waiting agents look again when a
start may have been missed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nsbridge.agents import limits
from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.identity import escaped
from nsbridge.supervisor.host.spawn import LineChild
from nsbridge.supervisor.log.log import Log

LINGER = 30.0  # seconds that a child stays when no agent waits: a restarted container is gone for a moment only
AGAIN = (0.1, 2.0)  # seconds until a new child starts: the first delay, the longest

ANY = ""  # in place of a name: each start of any container

Follow = Callable[[int], object]  # see Engine.follow


class Awaited:
    """One caller that waits for a container (name, id, or ANY). `callback` is called for each reason to look."""

    def __init__(self, watch: EngineWatch, name: str, callback: Callable[[], None]) -> None:
        self.name = name
        self.callback = callback
        self._watch = watch

    @property
    def is_watched(self) -> bool:
        """True if its start is reported; otherwise it must be polled."""
        return self._watch.is_watching

    def cancel(self) -> None:
        """Stop waiting. Harmless when done before."""
        self._watch.forget(self)


class EngineWatch:
    """Watches the events of one engine, and calls back those who wait."""

    def __init__(self, loop: Loop, log: Log, kind: ContainerKind, follow: Follow) -> None:
        self.is_watching = False
        self._loop = loop
        self._log = log
        self._kind = kind
        self._follow = follow
        self._awaited: dict[str, list[Awaited]] = {}
        self._child: LineChild | None = None
        self._timer: Timer | None = None  # for the next child, or for the end of this one
        self._delay = AGAIN[0]
        self._reason = ""  # why the child ends, as it reported
        self._complained = False

    def expect(self, name: str, callback: Callable[[], None]) -> Awaited:
        """Wait for a container; `callback` is called first as soon as no start can be missed."""
        awaited = Awaited(self, name, callback)
        self._awaited.setdefault(name, []).append(awaited)
        if self._child is not None:
            self._cancel_timer()
            if self.is_watching:
                self._loop.call_later(0, callback)
        elif self._timer is None:
            self._start()
        return awaited

    def forget(self, awaited: Awaited) -> None:
        """See Awaited.cancel."""
        same = self._awaited.get(awaited.name, [])
        if awaited not in same:
            return
        same.remove(awaited)
        if not same:
            del self._awaited[awaited.name]
        if not self._awaited:
            self._cancel_timer()
            if self._child is not None:
                self._timer = self._loop.call_later(LINGER, self.close)

    def close(self) -> None:
        """End the child."""
        self._cancel_timer()
        if self._child is not None:
            self._child.abandon()
            self._child = None
        self.is_watching = False

    def line_received(self, line: bytes) -> None:
        """See LineListener."""
        if line == engine_events.WATCHING:
            self._reason, self._delay, self.is_watching = "", AGAIN[0], True
            if self._complained:
                self._complained = False
                self._log.info("", f"{self._kind} is watched again: its containers are seen as soon as they start")
            self._notify_all()
        elif line == engine_events.SOMETHING:
            self._notify_all()
        elif line.startswith(engine_events.FAILED):
            self._reason = escaped(line.removeprefix(engine_events.FAILED).decode("utf-8", "backslashreplace"))
        elif started := engine_events.parse_started(line):
            self._notify(*started)
        else:
            self._reason = f"its events are not understood: {escaped(line.decode('utf-8', 'backslashreplace'))}"
            assert self._child is not None  # noqa: S101  (it says this)
            self._child.kill()

    def child_ended(self, code: int) -> None:
        """See LineListener."""
        self._child = None
        self.is_watching = False
        self._cancel_timer()
        if self._awaited:
            self._complain(self._reason or f"the child that reads its events ended with {code}")
            self._again()
            self._notify_all()  # nothing reports what has started since then

    def _start(self) -> None:
        self._timer = None
        self._reason = ""
        try:
            self._child = LineChild(self._loop, partial(engine_events.run, self._follow), self)
        except OSError as error:
            self._complain(f"cannot fork: {limits.explained(error)}")
            self._again()

    def _again(self) -> None:
        self._timer = self._loop.call_later(self._delay, self._start)
        self._delay = min(self._delay * 2, AGAIN[1])

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._log.warning(
                "",
                f"{self._kind} cannot be watched ({reason}): its containers are polled meanwhile",
            )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify(self, container_id: str, name: str) -> None:
        prefixes = (container_id[:length] for length in range(engine_events.ID_PREFIX_AT_LEAST, len(container_id) + 1))
        for known_as in (ANY, name, *prefixes):
            for awaited in tuple(self._awaited.get(known_as, ())):
                awaited.callback()

    def _notify_all(self) -> None:
        for awaited in [each for same in self._awaited.values() for each in same]:
            awaited.callback()
