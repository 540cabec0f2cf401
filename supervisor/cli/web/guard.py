"""The server's connections, so that slow and many clients take no place from others.

uvicorn waits without a limit for the first byte of a request, for its end, and for a client that does not read. Here:
* A request must be there within REQUEST seconds of its connection or of its first byte, however slowly it comes.
* A client that reads nothing of an answer for STALL seconds is disconnected.
* There are MOST connections. One more takes the place of the oldest that has no request; if all have one, it is closed.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

REQUEST, STALL = 10.0, 10.0  # seconds
MOST = 128  # connections

_ages = itertools.count()


class Deadline:
    """A deadline of a connection, which is cut off when it passes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def set(self, transport: asyncio.Transport) -> None:
        """Begin, unless it has begun."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, transport.abort)

    def clear(self) -> None:
        """Have none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GuardedProtocol(H11Protocol):
    """One connection of a client. It does not change what uvicorn does; it only observes it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._request = Deadline(self.loop, REQUEST)
        self._stall = Deadline(self.loop, STALL)
        self._age = next(_ages)

    @property
    def is_busy(self) -> bool:
        """True while a request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._request.set(transport)
        self._make_room()

    def _make_room(self) -> None:
        """Close one connection if there are too many. One that is cut off stays listed until the next turn."""
        there = [other for other in self.connections if not other.transport.is_closing()]
        if len(there) > MOST:
            idle = [other for other in there if isinstance(other, GuardedProtocol) and not other.is_busy]
            min(idle, key=lambda other: other._age, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self.is_busy:
            self._request.clear()
        else:
            self._request.set(self.transport)

    def on_response_complete(self) -> None:
        """See H11Protocol: the next request has its time, also if its first bytes have been read already."""
        super().on_response_complete()
        if not self.is_busy:
            self._request.set(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._request.clear()
        self._stall.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the client does not read its answer."""
        self._stall.set(self.transport)
        super().pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stall.clear()
        super().resume_writing()
