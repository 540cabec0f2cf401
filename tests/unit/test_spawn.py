"""One fork, and children that report in lines: real children, real signals, every descriptor counted."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest

from nsbridge.agents.fork import EXIT_AGAIN, fork
from nsbridge.agents.loop import Loop
from nsbridge.supervisor.host.spawn import LINE_LIMIT, LineChild
from tests.child import LIMIT, be_subreaper, ended, exit_code
from tests.descriptors import open_descriptors
from tests.full_epoll import FullEpoll

NOTHING: list[object] = []


def hang() -> int:
    """Hang until the process is killed; end at last, so that a failing test leaves nothing behind."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    signal.pause()
    return 96


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Assert that neither a descriptor nor a child, dead or alive, is left."""
    before, had = open_descriptors(), children()
    yield
    assert open_descriptors() == before
    assert children() == had


def children() -> set[int]:
    """Return the children that this process has not waited for; the session's container engines may be among them."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def loop(nothing_is_left_behind: None) -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def run(main: Callable[[], int]) -> int:
    child = fork(main)
    assert ended(child.pidfd)
    return child.reap()


def send_to_itself(signum: int) -> int:
    os.kill(os.getpid(), signum)
    return 0


def few_descriptors(spare: int) -> Callable[[], None]:
    """Let this process open `spare` more descriptors; returns what takes the limit back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.open("/dev/null", os.O_RDONLY) for _ in range(spare + 1)]
    highest = probes[-1]
    for fd in probes:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- fork


@pytest.mark.parametrize("code", [0, 1, 75, 78])
def test_a_child_ends_with_the_result_of_its_main(code: int) -> None:
    assert run(lambda: code) == code


def test_a_child_that_raises_reports_one_line_and_never_returns(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise ValueError("no \udcff")

    assert run(main) == EXIT_AGAIN
    assert capfd.readouterr().err == "nsbridged: child: ValueError: no \\udcff\n"


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_a_child_never_returns_whatever_it_raises(error: BaseException) -> None:
    def main() -> int:
        raise error

    assert run(main) == EXIT_AGAIN


def test_a_killed_child_is_reaped_with_the_signal_s_number() -> None:
    child = fork(hang)
    child.kill()
    assert ended(child.pidfd)
    child.kill()  # harmless now
    assert child.reap() == -signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_a_child_is_not_seen_by_its_parent(loop: Loop, signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    seen = list(NOTHING)
    try:
        loop.on_signal(signum, lambda: seen.append(signum))
        assert run(partial(send_to_itself, signum)) == -signum
        loop.run_once(0)
        assert not seen
    finally:
        signal.signal(signum, before)


def test_a_signal_that_a_child_handles_does_not_wake_its_parent(loop: Loop) -> None:
    """The wake-up descriptor is inherited too."""
    before = signal.getsignal(signal.SIGUSR1)

    def main() -> int:
        seen: list[int] = []
        signal.signal(signal.SIGUSR1, lambda signum, _frame: seen.append(signum))
        os.kill(os.getpid(), signal.SIGUSR1)
        return len(seen)

    seen = list(NOTHING)
    try:
        loop.on_signal(signal.SIGUSR1, lambda: seen.append("in the parent"))
        assert run(main) == 1
        loop.run_once(0)
        assert not seen
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_are_blocked_in_neither_child_nor_parent() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        assert run(lambda: len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))) == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_without_a_descriptor_for_it_there_is_no_child() -> None:
    """An agent that nobody holds would use the route's socket beside its successor."""
    restore = few_descriptors(0)
    try:
        with pytest.raises(OSError, match="Too many open files"):
            fork(hang)
    finally:
        restore()


def test_a_failed_fork_is_an_error_and_signals_are_as_before() -> None:
    """Runs as a user whose processes are used up: root has no such limit."""

    def main() -> int:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setresuid(54321, 54321, 54321)
        try:
            fork(lambda: 0)
        except BlockingIOError:  # EAGAIN
            return len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return 97

    assert exit_code(main) == 0


# -- line children


class Heard:
    """A LineListener that keeps it all."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.code: int | None = None

    def line_received(self, line: bytes) -> None:
        assert self.code is None
        self.lines.append(line)

    def child_ended(self, code: int) -> None:
        assert self.code is None
        self.code = code


def says(*chunks: bytes, code: int = 0) -> Callable[[int], int]:
    """Return the main function of a child that writes these chunks."""

    def main(writer: int) -> int:
        for chunk in chunks:
            left = chunk
            while left:
                left = left[os.write(writer, left) :]
        return code

    return main


def hear(loop: Loop, main: Callable[[int], int], meanwhile: Callable[[LineChild, Heard], None] | None = None) -> Heard:
    """Return all that it wrote, when it has ended."""
    heard = Heard()
    child = LineChild(loop, main, heard)
    deadline = time.monotonic() + 2 * LIMIT
    while heard.code is None:
        loop.run_once(1)
        if meanwhile is not None:
            meanwhile(child, heard)
        assert time.monotonic() < deadline
    return heard


def test_a_child_s_lines_come_one_by_one_in_order(loop: Loop) -> None:
    heard = hear(loop, says(b"one\ntw", b"o\n\n\xff\0\n", b"cut off", code=7))
    assert (heard.lines, heard.code) == ([b"one", b"two", b"", b"\xff\0"], 7)


def test_a_million_lines_come_all_and_slowly(loop: Loop) -> None:
    """Output without end waits in the pipe: the loop has time for others meanwhile."""
    count = 100_000
    others: list[float] = []
    heard = hear(loop, says(b"0123456789\n" * count), lambda *_: others.append(time.monotonic()))
    assert len(heard.lines) == count
    assert len(others) > count * 11 // (1 << 16)


@pytest.mark.parametrize("line", [b"x" * (LINE_LIMIT + 1), b"x" * 10_000_000, b"x" * (LINE_LIMIT + 1) + b"\n"])
def test_a_line_that_is_too_long_kills_the_child(loop: Loop, line: bytes) -> None:
    heard = hear(loop, lambda writer: says(b"before\n", line)(writer) or hang())
    assert heard.lines in ([b"before"], [])
    assert heard.code == -signal.SIGKILL


def test_a_bug_in_a_line_child_is_one_line_and_its_end(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    assert hear(loop, lambda _writer: 1 // 0).code == 1
    assert capfd.readouterr().err == "nsbridged: ZeroDivisionError: integer division or modulo by zero\n"


def test_a_dead_child_is_reported_with_its_lines(loop: Loop) -> None:
    heard = hear(loop, lambda writer: says(b"last\n")(writer) or send_to_itself(signal.SIGSEGV))
    assert (heard.lines, heard.code) == ([b"last"], -signal.SIGSEGV)


def test_a_line_child_that_hangs_can_be_killed(loop: Loop) -> None:
    def kill_it(child: LineChild, heard: Heard) -> None:
        if heard.lines:
            child.kill()

    assert hear(loop, lambda writer: says(b"up\n")(writer) or hang(), kill_it).code == -signal.SIGKILL


def test_a_child_that_closes_its_pipe_is_not_waited_for(loop: Loop) -> None:
    """Its end is seen when it ends; the loop has sleep until then."""
    turns: list[float] = []

    def main(writer: int) -> int:
        os.close(writer)
        signal.sigtimedwait([], 0.1)
        return 7

    assert hear(loop, main, lambda *_: turns.append(time.monotonic())).code == 7
    assert len(turns) < 5


def test_an_abandoned_child_is_silent_killed_and_reaped(loop: Loop) -> None:
    heard, had = Heard(), children()
    LineChild(loop, lambda writer: says(b"x\n")(writer) or hang(), heard).abandon()
    while children() != had:
        loop.run_once(LIMIT)
    assert (heard.lines, heard.code) == ([], None)


def test_a_line_child_holds_nothing_of_its_parent(loop: Loop) -> None:
    secret = os.open("/dev/null", os.O_RDONLY)

    def count(writer: int) -> int:
        return says(b"%d\n" % len(open_descriptors()))(writer)

    (listed,) = hear(loop, count).lines
    os.close(secret)
    assert listed == b"5"  # the three, the pipe, and what lists them


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_line_child_that_cannot_be_made_leaves_nothing_behind(loop: Loop, spare: int) -> None:
    """No descriptor is left for the pipe, or for the child."""
    restore = few_descriptors(spare)
    try:
        with pytest.raises(OSError, match="Too many open files"):
            LineChild(loop, lambda _writer: hang(), Heard())
    finally:
        restore()


@pytest.mark.parametrize("room", [0, 1])
def test_a_line_child_that_cannot_be_watched_is_removed(room: int) -> None:
    """The kernel refuses to watch its pipe, or its pidfd."""
    loop, before = FullEpoll(room), open_descriptors()
    children = psutil.Process().children()
    with pytest.raises(OSError, match="No space left"):
        LineChild(loop, lambda _writer: hang(), Heard())
    assert (open_descriptors(), psutil.Process().children()) == (before, children)
    loop.run_once(0)
    loop.close()


def test_a_line_child_dies_with_the_supervisor() -> None:
    """It is made by a child of this process, which is killed."""
    be_subreaper(yes=True)
    reader, writer = os.pipe()

    def supervisor() -> int:
        def say_and_hang(_writer: int) -> int:
            os.write(1, json.dumps(os.getpid()).encode())
            return hang()

        os.dup2(writer, 1)  # a child keeps the first three
        LineChild(Loop(), say_and_hang, Heard())
        return hang()

    parent = fork(supervisor)
    pid = json.loads(os.read(reader, 100))
    pidfd = os.pidfd_open(pid)
    parent.kill()
    assert ended(parent.pidfd)
    parent.reap()
    assert ended(pidfd)
    os.waitpid(pid, 0)
    be_subreaper(yes=False)
    for fd in (reader, writer, pidfd):
        os.close(fd)
