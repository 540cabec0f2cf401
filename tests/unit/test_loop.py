"""The event loop with real descriptors and real signals; only some clocks are pretended."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.loop import HUNG_UP, READABLE, WRITABLE, Loop
from tests.descriptors import open_descriptors

LIMIT = 10.0  # seconds for what happens at once


class FakeClock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def still(clock: FakeClock) -> Iterator[Loop]:
    """Yield a loop on a clock that stands still."""
    made = Loop(clock)
    yield made
    made.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of the signals that tests use."""
    signums = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(signum) for signum in signums]
    yield
    for signum, handler in zip(signums, before, strict=True):
        signal.signal(signum, handler)


def readable_pair() -> tuple[socket.socket, socket.socket]:
    reader, writer = socket.socketpair()
    writer.send(b"x")
    return reader, writer


def note(calls: list[str], name: str) -> Callable[..., None]:
    return lambda *_: calls.append(name)


def wait_until_main_sleeps() -> None:
    """Return when the main thread sleeps in a system call (proc(5): the state after the name in stat)."""
    stat = Path(f"/proc/self/task/{os.getpid()}/stat")
    deadline = time.monotonic() + LIMIT
    while stat.read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline


# -- timers


def test_timers_due_at_the_same_instant_keep_their_order(still: Loop) -> None:
    calls: list[str] = []
    for name in "abcdefgh":
        still.call_at(1000.0, note(calls, name))
    still.run_once(0)
    assert "".join(calls) == "abcdefgh"


def test_timers_are_called_in_the_order_of_their_deadlines(still: Loop, clock: FakeClock) -> None:
    calls: list[str] = []
    for name, delay in (("c", 3.0), ("a", 1.0), ("d", 4.0), ("b", 2.0)):
        still.call_later(delay, note(calls, name))
    still.run_once(0)
    assert calls == []
    clock.time += 3
    still.run_once(0)
    assert calls == ["a", "b", "c"]
    clock.time += 1
    still.run_once(0)
    assert calls == ["a", "b", "c", "d"]


def test_a_timer_is_called_once(still: Loop) -> None:
    calls: list[str] = []
    timer = still.call_later(0, note(calls, "a"))
    still.run_once(0)
    still.run_once(0)
    timer.cancel()
    assert calls == ["a"]


def test_a_cancelled_timer_is_not_called(still: Loop) -> None:
    calls: list[str] = []
    still.call_later(0, note(calls, "a")).cancel()
    second = still.call_later(0, note(calls, "b"))
    still.call_later(0, note(calls, "c"))
    still.call_at(999.0, second.cancel)  # is served just before it
    still.run_once(0)
    assert calls == ["c"]


def test_a_cancelled_timer_wakes_nobody(loop: Loop) -> None:
    loop.call_later(0.0, note([], "never")).cancel()
    started = time.monotonic()
    loop.run_once(0.2)
    assert time.monotonic() - started >= 0.2


def test_a_timer_is_never_early(loop: Loop) -> None:
    late: list[float] = []
    for number in range(20):
        due = time.monotonic() + number * 0.0013
        loop.call_at(due, lambda due=due: late.append(time.monotonic() - due))  # type: ignore[misc]
    while len(late) < 20:
        loop.run_once()
    assert min(late) >= 0


def test_a_deadline_is_kept_while_descriptors_are_busy(loop: Loop) -> None:
    reader, writer = readable_pair()
    with reader, writer:
        loop.watch(reader.fileno(), READABLE, lambda _events: None)  # never read: always readable
        loop.call_later(0.02, loop.stop)
        loop.run()
        loop.unwatch(reader.fileno())


# -- descriptors


def test_events_say_what_happened(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seen: list[int] = []
        loop.watch(ours.fileno(), READABLE | WRITABLE, seen.append)
        loop.run_once(LIMIT)
        assert seen == [WRITABLE]
        loop.watch(ours.fileno(), READABLE, seen.append)
        theirs.send(b"x")
        loop.run_once(LIMIT)
        assert seen[1:] == [READABLE]
        theirs.close()
        loop.run_once(LIMIT)
        assert seen[2] & HUNG_UP
        loop.unwatch(ours.fileno())


def test_a_second_watch_replaces_the_first(loop: Loop) -> None:
    reader, writer = readable_pair()
    with reader, writer:
        calls: list[str] = []
        loop.watch(reader.fileno(), READABLE, note(calls, "first"))
        loop.watch(reader.fileno(), READABLE, note(calls, "second"))
        loop.run_once(LIMIT)
        assert calls == ["second"]
        loop.unwatch(reader.fileno())
        loop.unwatch(reader.fileno())
        loop.run_once(0)
        assert calls == ["second"]


def test_what_was_unwatched_in_this_batch_is_not_served(loop: Loop) -> None:
    pairs = [readable_pair() for _ in range(2)]
    calls: list[int] = []

    def serve(index: int) -> None:
        calls.append(index)
        loop.unwatch(pairs[1 - index][0].fileno())

    for index, (reader, _) in enumerate(pairs):
        loop.watch(reader.fileno(), READABLE, lambda _events, index=index: serve(index))  # type: ignore[misc]
    loop.run_once(LIMIT)
    assert len(calls) == 1
    for end in pairs[0] + pairs[1]:
        loop.unwatch(end.fileno())
        end.close()


def test_an_event_of_a_closed_descriptor_misses_its_successor(loop: Loop) -> None:
    pairs = [readable_pair() for _ in range(2)]
    fresh: list[tuple[socket.socket, socket.socket]] = []
    calls: list[str] = []

    def serve(index: int) -> None:
        calls.append("served")
        other = pairs[1 - index][0]
        number = other.fileno()
        loop.unwatch(number)
        other.close()
        fresh.append(socket.socketpair())
        assert number in [end.fileno() for end in fresh[0]]
        loop.watch(number, READABLE, note(calls, "nothing to read"))

    for index, (reader, _) in enumerate(pairs):
        loop.watch(reader.fileno(), READABLE, lambda _events, index=index: serve(index))  # type: ignore[misc]
    loop.run_once(LIMIT)
    assert calls == ["served"]
    for end in pairs[0] + pairs[1] + fresh[0]:
        loop.unwatch(end.fileno())
        end.close()


# -- run and stop


def test_stop_ends_run_and_run_can_be_called_again(loop: Loop) -> None:
    for _ in range(2):
        loop.call_later(0, loop.stop)
        loop.run()


def test_run_once_returns_after_its_timeout(loop: Loop) -> None:
    loop.call_later(100, note([], "never"))
    started = time.monotonic()
    loop.run_once(0.05)
    assert 0.05 <= time.monotonic() - started < LIMIT


def test_an_idle_loop_sleeps() -> None:
    looks = 0

    def counted() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic()

    loop = Loop(counted)
    reader, writer = socket.socketpair()
    with reader, writer:
        loop.watch(reader.fileno(), READABLE, note([], "never"))
        loop.call_later(0.5, loop.stop)
        loop.run()
        loop.close()
    assert looks <= 6  # two for each pass; one pass is enough, rounding may make it two


def test_a_closed_loop_holds_nothing(handlers: None) -> None:
    before = open_descriptors()
    loop = Loop()
    loop.on_signal(signal.SIGUSR1, note([], "never"))
    loop.close()
    assert open_descriptors() == before
    assert signal.set_wakeup_fd(-1) == -1


# -- signals


def test_a_signal_is_served_in_the_loop(loop: Loop, handlers: None) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, note(calls, "usr1"))
    loop.on_signal(signal.SIGUSR2, note(calls, "usr2"))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert calls == []
    loop.run_once(LIMIT)
    assert calls == ["usr1"]
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.run_once(LIMIT)
    assert set(calls[1:]) == {"usr1", "usr2"}
    loop.run_once(0)
    assert len(calls) <= 7


def test_a_signal_ends_the_loop_s_sleep(loop: Loop, handlers: None) -> None:
    loop.on_signal(signal.SIGUSR1, loop.stop)

    def send() -> None:
        wait_until_main_sleeps()
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    loop.run()
    thread.join()


def test_a_storm_of_signals_does_not_hide_the_next(loop: Loop, handlers: None) -> None:
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, note(calls, "usr1"))
    loop.on_signal(signal.SIGUSR2, note(calls, "usr2"))
    for _ in range(20_000):
        os.kill(os.getpid(), signal.SIGUSR1)
    while "usr1" not in calls:
        loop.run_once(LIMIT)
    calls.clear()
    os.kill(os.getpid(), signal.SIGUSR2)
    while "usr2" not in calls:
        loop.run_once(LIMIT)
