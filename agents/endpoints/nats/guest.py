"""Runs asyncio as a guest of the agent's own event loop, in the agent's one thread.

nats-py needs asyncio, and the agent has its own loop (agents/loop.py). The guest does one pass at a time, and never
waits: the agent's loop watches the guest's epoll instance, and sets a timer for the guest's next deadline.

* So there is no thread, no lock and no queue between the two. The agent's heartbeat covers both: if the guest hangs,
  the agent's loop hangs too, and the supervisor notices it.
* asyncio has no public call for one pass. `stop` before `run_forever` is documented to give one pass with a timeout
  of 0: it serves all that is ready, then returns.
* What one pass makes ready is served by the next. `call_soon` is the only way to it, so it reports that there is more.
* Names of servers are looked up before the agent is confined; `getaddrinfo` answers from that table. After that the
  agent opens no file and starts no thread for it.

Rejected: asyncio as the agent's main loop, because every other kind would pay for its memory and time; a thread,
because each message would then pass a lock and wait for the other thread's time slice.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import math
import selectors
from asyncio import selector_events
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from typing import Any, TypeVarTuple

from nsbridge.agents.loop import READABLE, Loop

Addresses = Mapping[str, Sequence[tuple[Any, ...]]]  # by name and port, as getaddrinfo returns them
_Ts = TypeVarTuple("_Ts")
# From Python 3.12 on, transports write by sendmsg where there is one. The agent may not: it could pass descriptors.
setattr(selector_events, "_HAS_SENDMSG", False)  # noqa: B010  (its stubs do not have it)
_PASSES = 64  # in a row; then the agent's loop serves others


class GuestLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop that the agent's own loop runs."""

    def __init__(self, addresses: Addresses) -> None:
        self._epoll = selectors.EpollSelector()
        self._host: Loop | None = None
        self._addresses = addresses
        self._has_more = False
        self._is_turning = False
        self._is_due = False  # a pass is due at once
        self._deadlines: list[float] = []  # of all timers; a heap
        self._next = math.inf  # for which of them the agent's loop has a timer
        self._failure: BaseException | None = None
        self.transports: list[asyncio.Transport] = []  # that were opened and not yet dropped
        super().__init__(self._epoll)
        self.set_exception_handler(self._failed)

    def attach(self, host: Loop) -> None:
        """Let this loop run it."""
        self._host = host
        self._set_timer()
        host.watch(self._epoll.fileno(), READABLE, lambda _events: self._turn())
        self._turn()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine. An error that it raises is raised in the agent's loop."""
        task = self.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def drop_transports(self) -> None:
        """Close all connections at once, without what is still to be sent."""
        for transport in self.transports:
            transport.abort()
        self.transports.clear()

    async def create_connection(self, *args: Any, **keywords: Any) -> Any:
        """See asyncio: remember the transport, so that it can be closed although its peer does not read."""
        transport, protocol = await super().create_connection(*args, **keywords)
        self.transports.append(transport)
        return transport, protocol

    async def getaddrinfo(self, host: Any, port: Any, **_how: Any) -> Any:
        """Return the addresses that were found before the agent was confined. Raises OSError."""
        found = self._addresses.get(f"{host}:{port}")
        if not found:
            raise OSError(errno.ENOENT, f"the address of {host} is not known")
        return list(found)

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        self._has_more = True
        if not self._is_turning and not self._is_due and self._host is not None:
            self._is_due = True
            self._host.call_later(0, self._turn)
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio: both loops have the monotonic clock."""
        heapq.heappush(self._deadlines, when)
        self._set_timer()
        return super().call_at(when, callback, *args, context=context)

    def _set_timer(self) -> None:
        """Let the agent's loop do a pass at the next deadline, also if its timer was cancelled since."""
        if self._host is not None and self._deadlines and self._deadlines[0] < self._next:
            self._next = self._deadlines[0]
            self._host.call_at(self._next, self._deadline)

    def _deadline(self) -> None:
        now = self.time()
        while self._deadlines and self._deadlines[0] <= now:
            heapq.heappop(self._deadlines)
        self._next = math.inf
        self._set_timer()
        self._turn()

    def _turn(self) -> None:
        """Do passes until nothing is ready. Raises what a coroutine of `begin` has raised."""
        self._is_due, self._is_turning = False, True
        try:
            for _ in range(_PASSES):
                super().call_soon(self.stop)
                self._has_more = False
                self.run_forever()
                if self._failure is not None or not self._has_more:
                    break
        finally:
            self._is_turning = False
        if self._failure is not None:
            raise self._failure
        if self._has_more and self._host is not None:
            self._is_due = True
            self._host.call_later(0, self._turn)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def _failed(self, _loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        """Ignore an error in a task of nats-py: those of our own coroutines are raised by `_ended`."""
