"""The event loop of every nsbridge process: descriptors, deadlines and signals, one at a time, in one thread.

Some facts about epoll, signals and clocks, and what they mean here:
* The loop sleeps until the next deadline or event and has no tick, so an idle process makes no wake-up.
* A signal handler only makes the wake-up descriptor readable; the callback runs in the loop like any other, so
  nothing is ever interrupted half-way. `signal.set_wakeup_fd` belongs to the process, so a forked child that makes
  its own loop must not write into its parent's: `spawn.fork` blocks signals until the child has reset them.
* Deadlines are on the monotonic clock, in seconds, because wall time can be stepped.
* A queue agent has threads that block in msgrcv and msgsnd, which no descriptor can replace. `lock` is held while
  callbacks are served and released while the loop sleeps, so such a thread takes it and then does as a callback does.
  A deadline that it sets while the loop sleeps wakes the loop up, which then sleeps less.
* A callback may unwatch any descriptor, also one whose event is already in the batch being served, and its number
  may belong to another descriptor by then: an event is served only if its watch is still the one it came for.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HUNG_UP = select.EPOLLHUP | select.EPOLLERR  # always reported, also when not asked for

Clock = Callable[[], float]
EventCallback = Callable[[int], None]  # called with the mask of what happened
Callback = Callable[[], None]


_AT_ONCE = 32  # events of one pass; the others come in the next one


class Timer:
    """A call that is due at a time; `cancel()` is harmless when it has already been made."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Make sure that it is not called any more."""
        self.callback = None


class _WatchedDescriptor:
    """One call of `watch`; its identity shows if a descriptor's number has been reused since."""

    __slots__ = ("callback",)

    def __init__(self, callback: EventCallback) -> None:
        self.callback = callback


class Loop:
    """Serves callbacks until `stop`; one in a process."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.now = clock
        self.lock = threading.Lock()
        self._epoll = select.epoll()
        self._watched: dict[int, _WatchedDescriptor] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # timers due at the same instant keep the order they were asked in
        self._signals: dict[int, Callback] = {}
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._running = False
        self._asleep = False
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._kick, READABLE, self._kicked)

    def watch(self, fd: int, mask: int, callback: EventCallback) -> None:
        """Call `callback(events)` whenever `fd` has an event of `mask`; a second call for `fd` replaces the first."""
        if fd in self._watched:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._watched[fd] = _WatchedDescriptor(callback)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; to be called before it is closed. Harmless if it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, due: float, callback: Callback) -> Timer:
        """Call `callback` once, at `due` (seconds of the loop's clock) or as soon after as possible."""
        timer = Timer(due, callback)
        heapq.heappush(self._timers, (due, next(self._order), timer))
        if self._asleep:
            os.eventfd_write(self._kick, 1)
        return timer

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call `callback` once, `delay` seconds from now."""
        return self.call_at(self.now() + delay, callback)

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call `callback` in the loop for each time that `signum` was seen (bursts may come as one)."""
        if self._wake is None:
            self._wake = socket.socketpair()
            for end in self._wake:
                end.setblocking(False)
            signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
            self.watch(self._wake[0].fileno(), READABLE, self._read_signals)
        self._signals[signum] = callback
        signal.signal(signum, _queued)

    def run(self) -> None:
        """Serve until `stop` is called."""
        self._running = True
        with self.lock:
            timeout = self._time_to_sleep(self.now())
            while self._running:
                timeout = self._pass(timeout)

    def stop(self) -> None:
        """Make `run` return once all that is due now has been served."""
        self._running = False

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for the next event or deadline (`timeout` seconds at most) and serve all that is due then."""
        with self.lock:
            left = self._time_to_sleep(self.now())
            self._pass(left if timeout is None or (left is not None and left < timeout) else timeout)

    def _pass(self, timeout: float | None) -> float | None:
        """Serve what happens within `timeout` seconds; return the seconds until the next deadline.

        The lock is held, but for the wait.
        """
        self._asleep = True  # a deadline that is set from now on ends the sleep
        self.lock.release()
        try:
            ready = self._epoll.poll(timeout, _AT_ONCE)
        finally:
            self.lock.acquire()
            self._asleep = False
        if len(ready) == 1:
            fd, events = ready[0]
            watch = self._watched.get(fd)
            if watch is not None:
                watch.callback(events)
        elif ready:
            self._serve(ready)
        return self._call_timers()

    def _serve(self, ready: list[tuple[int, int]]) -> None:
        """Serve events, each of which may end the watch of a later one."""
        batch = [(fd, events, self._watched.get(fd)) for fd, events in ready]
        for fd, events, watch in batch:
            if watch is not None and self._watched.get(fd) is watch:
                watch.callback(events)

    def close(self) -> None:
        """Give back the loop's own descriptors and the process's wake-up descriptor."""
        if self._wake is not None:
            signal.set_wakeup_fd(-1)
            for end in self._wake:
                end.close()
            self._wake = None
        self._epoll.close()
        os.close(self._kick)
        self._watched.clear()

    def _time_to_sleep(self, now: float) -> float | None:
        timers = self._timers
        while timers:
            due, _, timer = timers[0]
            if timer.callback is not None:
                return due - now if due > now else 0.0
            heapq.heappop(timers)
        return None

    def _call_timers(self) -> float | None:
        """Call what is due; return the seconds until the next deadline."""
        now, timers, has_called = self.now(), self._timers, False
        if timers and timers[0][0] > now and timers[0][2].callback is not None:
            return timers[0][0] - now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                has_called = True
        return self._time_to_sleep(self.now() if has_called else now)

    def _kicked(self, _events: int) -> None:
        os.eventfd_read(self._kick)

    def _read_signals(self, _events: int) -> None:
        assert self._wake is not None  # noqa: S101  (only ever watched while it is there)
        for signum in set(self._wake[0].recv(4096)):
            if signum in self._signals:
                self._signals[signum]()


def _queued(_signum: int, _frame: object) -> None:
    """Do nothing: as a signal's handler, Python has already written its number to the wake-up descriptor."""
