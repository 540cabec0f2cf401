"""Reports to a service manager: systemd's protocol, sd_notify(3), if NOTIFY_SOCKET names a socket.

READY=1 when all that is to be started has been, STATUS= in a sentence whenever it changes, WATCHDOG=1 from the main
loop at half of the time that WATCHDOG_USEC allows, RELOADING=1 and READY=1 around a reload, STOPPING=1 once.

Some facts about that protocol, and what they mean here:
* A datagram that the manager has no room for is refused (EAGAIN). Nothing here waits: it is sent again a little later,
  and the loop continues.
* An address that begins with @ is in the abstract namespace, whose names begin with a NUL.
* WATCHDOG_PID names the watched process: not ours, if the manager started a process between itself and us.
* The variables are taken out of the environment: a child that found them there could speak for the daemon.
* With --daemon the process that the manager started ends, so READY=1 names the one that stays (MAINPID=); the
  manager listens to it if the unit says NotifyAccess=all.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass

from nsbridge.agents.loop import Loop
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events, Happening

SETTLE = 0.25  # seconds between a change and the sentence about it: at a start there are hundreds at once
_AGAIN = 0.1  # seconds until what the manager had no room for is sent again
_UNSENT = 16  # datagrams kept for that; the oldest are given up
_NAMED = 3  # agents that a sentence names
_SAID = {
    State.STARTING: "is being started",
    State.STOPPING: "is being stopped",
    State.STOPPED: "is stopped",
    State.BACKOFF: "has died and is tried again",
    State.WAITING: "waits for its container",
    State.FATAL: "needs a person",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Request of the manager. `address`: its socket, empty for none; `watchdog`: seconds, 0: none."""

    address: str = ""
    watchdog: float = 0.0


def take_from(environment: MutableMapping[str, str], pid: int) -> Wanted:
    """Take the request to the process `pid` out of `environment`. A malformed value counts as absent."""
    address = environment.pop("NOTIFY_SOCKET", "")
    usec, whose = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not address.startswith(("/", "@")):
        return Wanted()
    is_ours = whose in ("", str(pid))
    return Wanted(address, int(usec) / 1e6 if usec.isdecimal() and usec.isascii() and is_ours else 0.0)


def summary(agents: Iterable[tuple[str, State]]) -> str:
    """Return their states in one sentence: 3 of 4 agents running; orders:legacy waits for its container."""
    listed = list(agents)
    others = [(name, state) for name, state in listed if state is not State.RUNNING]
    parts = [f"{len(listed) - len(others)} of {len(listed)} agents running"]
    if others:
        parts.append(", ".join(f"{name} {_SAID[state]}" for name, state in others[:_NAMED]))
    if len(others) > _NAMED:
        parts[-1] += f", and {len(others) - _NAMED} more"
    return "; ".join(parts)


class Notifier:
    """Notifies the manager; `agents` gives every agent's name and state. Without an address it does nothing."""

    def __init__(
        self, wanted: Wanted, loop: Loop, events: Events, agents: Callable[[], Iterable[tuple[str, State]]]
    ) -> None:
        self._wanted = wanted
        self._loop = loop
        self._agents = agents
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT)
        self._waits = False  # for the manager to have room
        self._status = ""
        self._due = False  # the sentence
        if wanted.address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            events.ring.subscribe(self._happened)

    def ready(self) -> None:
        """Report that all that is to be started has been; feed the watchdog from now on."""
        self._status = summary(self._agents())
        self._notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={self._status}")
        if self._wanted.watchdog and self._socket is not None:
            self._feed_watchdog()

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _happened(self, event: Happening) -> None:
        if event.event == "state":
            self._sentence_due()
        elif event.event == "reload":
            self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={event.detail}")
            self._status = ""
            self._loop.call_later(0.0, self._reloaded)
        elif event.event == "daemon" and event.after == "stopping":
            self._notify("STOPPING=1")

    def _reloaded(self) -> None:
        """Report that the reload has done what could be done at once."""
        self._notify("READY=1")
        self._sentence_due()

    def _sentence_due(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(SETTLE, self._send_status)

    def _send_status(self) -> None:
        self._due = False
        status = summary(self._agents())
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={status}")

    def _feed_watchdog(self) -> None:
        self._notify("WATCHDOG=1")
        self._loop.call_later(self._wanted.watchdog / 2, self._feed_watchdog)

    def _notify(self, *assignments: str) -> None:
        self._unsent.append("\n".join(line.replace("\n", " ") for line in assignments).encode(errors="replace"))
        if not self._waits:
            self._send()

    def _send(self) -> None:
        self._waits = False
        address = self._wanted.address
        if address.startswith("@"):
            address = "\0" + address[1:]
        while self._unsent and self._socket is not None:
            try:
                self._socket.sendto(self._unsent[0], address)
            except BlockingIOError:
                self._waits = True
                self._loop.call_later(_AGAIN, self._send)
                return
            except OSError:
                pass  # no process listens (any more), so none would read a report
            self._unsent.popleft()
