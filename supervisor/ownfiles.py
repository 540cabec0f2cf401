"""Notices the removal of a running daemon's files: control socket, pid file, journals.

inotify reports a change of these names (containers/places.py); without inotify they are polled every LOOK_EVERY
seconds. The control socket and the pid file are made again. Journals cannot be: the agents hold the removed files open
and continue, so the log explains what to do before they end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.control.server import ControlServer
from nsbridge.supervisor.host.pidfile import PidFile
from nsbridge.supervisor.log.log import Log

LOOK_EVERY = 5.0  # seconds between polls without inotify, and between retries
GAP = 0.1  # seconds, to let a removal of many files finish


class OwnFiles:
    """Runs in the daemon's loop from `start` on. `journals` returns the paths of the journals that agents have open."""

    def __init__(self, loop: Loop, log: Log, state_dir: str, journals: Callable[[], Iterable[str]]) -> None:
        self._loop = loop
        self._log = log
        self._state_dir = state_dir
        self._journals = journals
        self._pidfile: PidFile | None = None
        self._control: ControlServer | None = None
        self._timer: Timer | None = None
        self._is_watched = True
        self._complaint = ""
        self._are_gone = False  # journals are gone, and the log has it

    def start(self, arrivals: Arrivals, pidfile: PidFile | None, control: ControlServer | None) -> None:
        """Start to watch the files that exist; call it once."""
        self._pidfile, self._control = pidfile, control
        names = [str(Path(self._state_dir, "journal"))]
        names += [pidfile.path] if pidfile else []
        names += [control.config.path] if control else []
        self._is_watched = not [name for name in names if not arrivals.watch(name, partial(self._again, GAP))]
        self._look()

    def _again(self, delay: float) -> None:
        if self._timer is None or self._timer.due > self._loop.now() + delay:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        complaint = self._restored()
        if complaint and complaint != self._complaint:
            self._log.error("", complaint)
        self._complaint = complaint
        self._look_at_journals()
        if complaint or not self._is_watched:
            self._again(LOOK_EVERY)

    def _restored(self) -> str:
        """Make missing files again; return the problem if that fails, else an empty string."""
        try:
            if self._pidfile is not None and self._pidfile.restore():
                self._log.warning("", f"{self._pidfile.path} was removed while the daemon runs: created again")
            if self._control is not None and self._control.restore():
                path = self._control.config.path
                self._log.warning("", f"{path} was removed while the daemon runs: created again")
        except NsbridgeError as error:
            return f"cannot create again what was removed while the daemon runs: {error}"
        return ""

    def _look_at_journals(self) -> None:
        gone = [path for path in self._journals() if not os.path.lexists(path)]
        if gone and not self._are_gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            self._log.error(
                "",
                f"{gone[0]}{more}: removed while agents have it open; they continue, but what is in flight is lost "
                "if they are killed: run nsbridgectl shutdown, which hands it over, then start nsbridged",
            )
        self._are_gone = bool(gone)
