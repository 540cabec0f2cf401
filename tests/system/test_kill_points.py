"""Exactly-once under SIGKILL at every system call that moves a message: just before it runs, and just after.

A route between a spool (or a log) and a queue, with messages both ways all the time; strace kills the real process at
its first, second, … call of that kind (tampering.py). Between two kills messages must arrive again in both directions;
at the end storm.py's audit counts. What lies between two system calls is in shared memory, and is for test_journal*.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system import storm
from tests.system.room import wait_dead, wait_until
from tests.system.storm import Storm
from tests.system.storm_outcome import AT_LEAST_ONCE, EXACTLY_ONCE, Plan
from tests.system.tampering import Moment, Tampering

SPOOL = LOG = "r:a"
QUEUE, SENDER = "r:b", "r:b/"
LIGHT, FULL = 1000, 0  # microseconds between messages: each is waited for, or all that is possible


class Point(NamedTuple):
    """The process that is killed, at which call, and at how many in a row."""

    process: str
    call: str
    times: int
    pause: int = LIGHT
    files: str = "spool"  # the endpoint of `r:a`

    @property
    def plan(self) -> Plan:
        """Return a plan of no strikes but these."""
        return Plan((self.files, "queue"), EXACTLY_ONCE, 0, pause=self.pause)

    def __str__(self) -> str:
        process = self.process.replace(SPOOL, self.files).replace(QUEUE, "queue").replace("/", "-sender")
        return f"{process}-{self.call}-{'light' if self.pause else 'full'}"


POINTS = [
    # Taking from a queue: wait (size 0), look (MSG_COPY), receive, look again
    Point(QUEUE, "msgrcv", 5),
    Point(QUEUE, "msgrcv", 3, FULL),
    # Handing to a queue: offer (eventfd), send, wake the other sender and notify the agent (eventfds), collect
    Point(QUEUE, "write", 2),
    Point(SENDER, "msgsnd", 3),
    Point(SENDER, "msgsnd", 3, FULL),
    Point(SENDER, "write", 4),
    Point(SENDER, "read", 2),
    Point(SENDER, "sched_yield", 2, FULL),
    Point(QUEUE, "read", 2),
    # Taking from a spool
    Point(SPOOL, "openat2", 2),
    Point(SPOOL, "newfstatat", 3),
    Point(SPOOL, "fcntl", 2),
    Point(SPOOL, "read", 3),
    Point(SPOOL, "close", 4),
    # The socket, of both
    Point(SPOOL, "sendto", 2),
    Point(SPOOL, "recvfrom", 2),
    Point(QUEUE, "sendto", 2),
    Point(QUEUE, "recvfrom", 2),
    Point(QUEUE, "epoll_wait", 1),
    # Confirming
    Point(SPOOL, "unlinkat", 3),
    Point(SPOOL, "unlinkat", 2, FULL),
    # Handing to a spool
    Point(SPOOL, "openat", 2),
    Point(SPOOL, "fchmod", 1),
    Point(SPOOL, "write", 2),
    Point(SPOOL, "renameat2", 3),
    Point(SPOOL, "renameat2", 2, FULL),
    # Taking from a log, also through its rotations (every 5,000 messages); appending to one
    Point(LOG, "pread64", 3, files="log"),
    Point(LOG, "pread64", 2, FULL, "log"),
    Point(LOG, "openat2", 1, FULL, "log"),
    Point(LOG, "inotify_rm_watch", 1, FULL, "log"),
    Point(LOG, "write", 3, files="log"),
    Point(LOG, "write", 2, FULL, "log"),
]


@contextmanager
def a_storm(directory: Path, plan: Plan) -> Iterator[Storm]:
    """Run a storm in two new containers."""
    directory.chmod(0o711)
    with storm.containers("unshare", directory) as pair:
        yield Storm(plan, directory, pair)


def check(running: Storm, strikes: Callable[[], None]) -> None:
    """Assert that nothing is lost, repeated, out of order or counted wrongly."""
    outcome = running.run(strikes)
    print(outcome)
    assert outcome.problems() == []


def kill_at(running: Storm, point: Point, directory: Path) -> None:
    """Kill at each of the point's calls, before and after; in between all continues."""
    for number in range(1, point.times + 1):
        for moment in Moment:
            running.wait_for_arrivals()
            victim = running.process(point.process)
            Tampering(victim.pid, point.call, number, moment, directory).wait_killed()
            wait_dead(victim.pid)
            running.killed(victim)
    running.wait_for_arrivals()


# With the counter: send; receive, the first message by a thread that waits, then while there are more; the socket
COUNTED = [
    Point(QUEUE, "msgsnd", 4),
    Point(QUEUE, "msgsnd", 3, FULL),
    Point(QUEUE, "msgrcv", 5),
    Point(QUEUE, "msgrcv", 3, FULL),
    Point(QUEUE, "sendto", 2),
    Point(QUEUE, "recvfrom", 2),
    Point(QUEUE, "epoll_wait", 1),
]


WITH_SENDERS = [pytest.param(point, id=f"{point}-senders", marks=pytest.mark.senders) for point in POINTS]
WITH_COUNTER = [pytest.param(point, id=str(point), marks=pytest.mark.counter) for point in COUNTED]


@pytest.mark.parametrize("point", [*WITH_SENDERS, *WITH_COUNTER])
def test_a_kill_around_a_system_call_loses_and_repeats_nothing(tmp_path: Path, point: Point) -> None:
    """Nothing is in doubt either."""
    with a_storm(tmp_path, point.plan) as running:
        check(running, lambda: kill_at(running, point, tmp_path))


@pytest.mark.senders
def test_at_least_once_repeats_only_what_was_sent_and_not_noted(tmp_path: Path) -> None:
    """The agent sends itself: killed after msgsnd it sends that message again, killed before it does not."""
    plan = Plan(("spool", "queue"), AT_LEAST_ONCE, 0, pause=LIGHT)
    with a_storm(tmp_path, plan) as running:
        outcome = running.run(lambda: kill_at(running, Point(QUEUE, "msgsnd", 3), tmp_path))
    assert outcome.problems() == []
    assert [direction.audit["repeated"] for direction in outcome.directions] == [3, 0]


OPENING = [("flock", 2), ("fallocate", 2), ("ftruncate", 1), ("pwrite64", 1), ("rename", 1), ("setns", 1)]


@pytest.mark.parametrize("agent", [SPOOL, QUEUE])
@pytest.mark.parametrize(("call", "count"), OPENING)
def test_a_kill_while_an_agent_opens_its_journals(tmp_path: Path, agent: str, call: str, count: int) -> None:
    """New ones are made, since the old ones are removed while nothing is under way; the programs continue meanwhile."""

    def strikes() -> None:
        for number in range(1, count + 1):
            for moment in Moment:
                running.wait_for_arrivals()
                running.daemon.call("stop", names=["r"], wait=True)
                for file in (tmp_path / "state/journal/r").iterdir():
                    file.unlink()
                tampering = Tampering(running.daemon.pid, call, number, moment, tmp_path)
                running.daemon.call("start", names=[agent])
                tampering.wait_killed()
                running.daemon.call("start", names=["r"])
        running.wait_for_arrivals()

    plan = Plan(("spool", "queue"), EXACTLY_ONCE, 0, pause=LIGHT)
    with a_storm(tmp_path, plan) as running:
        running.journals_stay = False
        outcome = running.run(strikes)
    assert [fault for direction in outcome.directions for fault in direction.faults()] == []
    assert outcome.internal_errors == []


RECOVERING = [
    Point(LOG, "pread64", 2, files="log"),
    Point(LOG, "pread64", 2, FULL, "log"),
    Point(LOG, "openat2", 2, files="log"),
    Point(SPOOL, "setns", 1),
    Point(SPOOL, "flock", 2),
    Point(SPOOL, "openat2", 3),
    Point(SPOOL, "getdents64", 2, FULL),
    Point(SPOOL, "inotify_add_watch", 2),
    Point(SPOOL, "fcntl", 4, FULL),  # the lease on a file that a scan found; before it, descriptors are moved
    Point(QUEUE, "setns", 1),
    Point(QUEUE, "flock", 2),
    Point(QUEUE, "msgget", 2),
    Point(QUEUE, "msgctl", 2),
    Point(QUEUE, "capset", 1),
    Point(QUEUE, "fallocate", 1),
]


@pytest.mark.parametrize("point", RECOVERING, ids=str)
def test_a_second_kill_while_an_agent_recovers_from_the_first(tmp_path: Path, point: Point) -> None:
    """Messages that the first left undecided are still there for the third."""

    def strikes() -> None:
        for number in range(1, point.times + 1):
            for moment in Moment:
                running.wait_for_arrivals()
                victim = running.process(point.process)
                tampering = Tampering(running.daemon.pid, point.call, number, moment, tmp_path)
                os.kill(victim.pid, signal.SIGKILL)
                tampering.wait_killed()
                # It died before it was ready, and its delay would grow.
                running.daemon.call("start", names=["r"])
        running.wait_for_arrivals()

    with a_storm(tmp_path, point.plan) as running:
        check(running, strikes)


# Who waits in which call (its number on x86-64, on arm64) when which program is held: for a message, for room in the
# queue, for the other sender.
WAITING = [
    pytest.param(QUEUE, "msgrcv", (70, 188), "produce-1", id="msgrcv"),
    pytest.param(QUEUE, "msgsnd", (69, 189), "consume-1", id="msgsnd"),
    pytest.param(SENDER, "msgsnd", (69, 189), "consume-1", id="sender-msgsnd", marks=pytest.mark.senders),
    pytest.param(SENDER, "read", (0, 63), "produce-0", id="sender-read", marks=pytest.mark.senders),
]


@pytest.mark.parametrize(("process", "call", "numbers", "held"), WAITING)
def test_a_kill_of_a_process_that_waits_in_the_kernel(
    tmp_path: Path, process: str, call: str, numbers: tuple[int, int], held: str
) -> None:
    """Neither a call that has not returned is lost, nor is one noted that had no effect."""

    def in_kernel() -> list[storm.Victim]:
        named = [victim for victim in running.processes() if victim.name.startswith(process)]
        return [victim for victim in named if calls_of(victim.pid) & set(numbers)]

    def strikes() -> None:
        for _ in range(3):
            running.wait_for_arrivals()
            program = running.programs[held]
            program.send_signal(signal.SIGSTOP)
            wait_until(in_kernel, f"{process} waits in {call}")
            victim = in_kernel()[0]
            os.kill(victim.pid, signal.SIGKILL)
            running.killed(victim)
            program.send_signal(signal.SIGCONT)
        running.wait_for_arrivals()

    plan = Plan(("spool", "queue"), EXACTLY_ONCE, 0, pause=LIGHT)
    with a_storm(tmp_path, plan) as running:
        check(running, strikes)


def calls_of(pid: int) -> set[int]:
    """Return the numbers of the system calls in which its threads wait."""
    said = [
        Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()[0] for thread in os.listdir(f"/proc/{pid}/task")
    ]
    return {int(number) for number in said if number.isdigit()}
