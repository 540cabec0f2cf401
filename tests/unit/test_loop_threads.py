"""The event loop beside threads: deadlines that a thread sets, and the lock under which it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from nsbridge.agents.loop import Loop
from tests.unit.test_loop import LIMIT, note, wait_until_main_sleeps


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_a_deadline_set_by_a_thread_ends_the_loop_s_sleep(loop: Loop) -> None:
    for _ in range(50):
        called = threading.Event()

        def set_deadline(called: threading.Event = called) -> None:
            wait_until_main_sleeps()
            with loop.lock:
                loop.call_later(0.0, called.set)

        thread = threading.Thread(target=set_deadline)
        thread.start()
        while not called.is_set():
            started = time.monotonic()
            loop.run_once(LIMIT)
            assert time.monotonic() - started < LIMIT / 2
        thread.join()


def test_a_later_deadline_does_not_disturb_the_order(loop: Loop) -> None:
    calls: list[str] = []
    loop.call_later(0.05, note(calls, "early"))

    def set_deadline() -> None:
        with loop.lock:
            loop.call_later(0.1, note(calls, "late"))

    thread = threading.Thread(target=set_deadline)
    thread.start()
    while len(calls) < 2:
        loop.run_once(LIMIT)
    thread.join()
    assert calls == ["early", "late"]


def test_timers_are_only_looked_at_under_the_lock() -> None:
    """A thread may set a deadline while the loop decides how long to sleep, if it does so without the lock."""
    locked: list[bool] = []

    def observed() -> float:
        locked.append(watched.lock.locked())
        return time.monotonic()

    watched = Loop(observed)
    watched.call_at(time.monotonic() + 0.01, note([], ""))
    watched.run_once(LIMIT)
    watched.close()
    assert locked
    assert all(locked)


def test_no_deadline_of_a_thread_is_lost(loop: Loop) -> None:
    """Deadlines that are set and cancelled by a thread as fast as it can, while the loop goes to sleep and wakes up."""
    called: list[int] = []

    def set_deadlines() -> None:
        for number in range(3000):
            with loop.lock:
                loop.call_later(0.0, note([], "never")).cancel()
                loop.call_later(0.0, lambda number=number: called.append(number))  # type: ignore[misc]
        with loop.lock:
            loop.call_later(0.0, loop.stop)

    thread = threading.Thread(target=set_deadlines)
    thread.start()
    loop.run()
    thread.join()
    assert sorted(called) == list(range(3000))
