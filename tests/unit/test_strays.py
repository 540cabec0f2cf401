"""Orphans of agents and of others below the supervisor: which are killed, which are only reaped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from nsbridge.agents.confinement import entry
from nsbridge.agents.fork import fork as own_fork
from nsbridge.agents.fork import is_own_child
from nsbridge.agents.loop import Loop
from nsbridge.supervisor.host import strays
from nsbridge.supervisor.host.strays import Strays
from tests.child import LIMIT, in_child

NOBODY = 65534


class Log:
    """Collects the log lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, _name: str, text: str) -> None:
        self.lines.append(text)

    error = warning


def leave_orphan(*, agent: bool, generations: int = 1) -> int:
    """Fork a process that dies and leaves another; return the pid of the last of these, which waits."""
    reader, writer = os.pipe()

    def begin(more: int) -> None:
        """Be the first of so many that wait, each the parent of the next."""
        if more:
            if os.fork() == 0:
                begin(more - 1)
        else:
            os.write(writer, b"%d" % os.getpid())
        time.sleep(LIMIT)  # it lives until it is killed
        os._exit(0)

    def middle() -> int:
        if agent:
            entry.drop_privileges(NOBODY, NOBODY)
        if os.fork() == 0:
            begin(generations - 1)
        return 0

    child = own_fork(middle)
    os.close(writer)
    pid = int(os.read(reader, 100))
    os.close(reader)
    child.reap()
    return pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Watched:
    """A supervisor's loop that watches for orphans."""

    def __init__(self) -> None:
        self.loop, self.log = Loop(), Log()
        self.strays = Strays(self.loop, self.log)  # type: ignore[arg-type]
        self.strays.watch()

    def until_gone(self, pid: int) -> None:
        """Serve until that process has been reaped."""
        deadline = time.monotonic() + LIMIT
        while is_alive(pid):
            assert time.monotonic() < deadline, "it is still there"
            self.loop.run_once(0.05)


def outcome(body: Any) -> Any:
    """Return what `body` returns, run in a child that may become a subreaper."""
    return in_child(lambda: body(Watched()))


def test_what_an_agent_left_is_killed_and_reaped() -> None:
    def body(watched: Watched) -> list[str]:
        pid = leave_orphan(agent=True)
        watched.until_gone(pid)
        return [line.replace(str(pid), "PID") for line in watched.log.lines]

    assert outcome(body) == ["killed pid PID: an agent that has died had forked it"]


def test_a_chain_of_processes_is_killed_to_its_end() -> None:
    """Each becomes an orphan only when the one before it is dead."""

    def body(watched: Watched) -> int:
        watched.until_gone(leave_orphan(agent=True, generations=3))
        return len(watched.log.lines)

    assert outcome(body) == 3


def test_another_s_orphan_is_only_reaped() -> None:
    """A container engine's program leaves such a helper running."""

    def body(watched: Watched) -> list[object]:
        pid = leave_orphan(agent=False)
        watched.strays.look()
        watched.loop.run_once(0.05)
        lived = is_alive(pid)
        os.kill(pid, signal.SIGTERM)
        watched.until_gone(pid)
        return [lived, watched.log.lines]

    assert outcome(body) == [True, []]


def test_own_children_are_left_alone() -> None:
    """Agents, and what asks container engines; also one that has given up its power."""

    def body(watched: Watched) -> list[object]:
        def child() -> int:
            entry.drop_privileges(NOBODY, NOBODY)
            time.sleep(LIMIT)  # it lives until it is killed
            return 0

        own = own_fork(child)
        watched.strays.look()
        watched.loop.run_once(0.05)
        known = is_own_child(own.pid)
        own.kill()
        return [known, own.reap(), is_own_child(own.pid), watched.log.lines]

    assert outcome(body) == [True, -signal.SIGKILL, False, []]


def test_senders_that_die_with_their_agent_are_not_reported() -> None:
    """Their death signal is pending when the kernel gives them to the supervisor."""

    def body(watched: Watched) -> list[str]:
        reader, writer = os.pipe()

        def agent() -> int:
            entry.drop_privileges(NOBODY, NOBODY)
            me = os.getpid()

            def sender() -> int:
                entry.die_with_the_supervisor(me)
                os.write(writer, b"%d" % os.getpid())
                time.sleep(LIMIT)  # it lives until it is killed
                return 0

            own_fork(sender)
            time.sleep(LIMIT)  # it lives until it is killed
            return 0

        child = own_fork(agent)
        sender = int(os.read(reader, 100))
        child.kill()
        child.reap()
        watched.until_gone(sender)
        return watched.log.lines

    assert outcome(body) == []


MANY = 3 * strays.MOST


def leave_many() -> list[int]:
    """Do as an agent that forks while it can; return the pids."""
    reader, writer = os.pipe()

    def agent() -> int:
        entry.drop_privileges(NOBODY, NOBODY)
        for _ in range(MANY):
            if os.fork() == 0:
                os.write(writer, b"%d " % os.getpid())
                time.sleep(LIMIT)  # it lives until it is killed
                os._exit(0)
        return 0

    own_fork(agent).reap()
    os.close(writer)
    pids = b""
    while pids.count(b" ") < MANY:
        pids += os.read(reader, 4096)
    os.close(reader)
    return [int(pid) for pid in pids.split()]


def test_thousands_of_orphans_take_few_descriptors() -> None:
    def body(watched: Watched) -> list[object]:
        pids, most = leave_many(), 0
        deadline = time.monotonic() + LIMIT
        while any(map(is_alive, pids)):
            assert time.monotonic() < deadline
            watched.loop.run_once(0.05)
            most = max(most, len(watched.strays._held))
        return [most, len(watched.log.lines)]

    assert outcome(body) == [strays.MOST, MANY]


def test_all_that_is_left_is_killed_at_the_end() -> None:
    def body(watched: Watched) -> list[int]:
        pids = leave_many()
        watched.strays.close()
        return sorted({os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids})

    assert outcome(body) == [-signal.SIGKILL]


def test_orphan_that_is_dead_is_reaped_at_once() -> None:
    """It costs no descriptor, and the same look finds the child that it has left."""

    def body(watched: Watched) -> list[object]:
        first = leave_orphan(agent=False, generations=2)
        parent = strays._parent(first)
        os.kill(parent, signal.SIGKILL)
        os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
        watched.strays.look()
        return [is_alive(parent), list(watched.strays._held) == [first]]

    assert outcome(body) == [False, True]


def test_what_is_left_is_killed_at_the_end() -> None:
    def body(watched: Watched) -> int:
        pid = leave_orphan(agent=True)
        watched.strays.close()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert outcome(body) == -signal.SIGKILL


@pytest.mark.parametrize("list_children", [strays._children, strays._scan])
def test_children_are_found_with_and_without_the_kernel_s_list(list_children: Callable[[], list[int]]) -> None:
    """CONFIG_PROC_CHILDREN may be off."""

    def waits() -> int:
        time.sleep(LIMIT)  # it lives until it is killed
        return 0

    child = own_fork(waits)
    assert child.pid in list_children()
    child.kill()
    child.reap()
    assert child.pid not in list_children()
