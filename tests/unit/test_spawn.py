"""The one fork, and what is asked in a child: real children, real signals, every descriptor counted."""

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
from nsbridge.config.errors import NsbridgeError, UsageError
from nsbridge.supervisor.spawn import Question
from tests.child import LIMIT, be_subreaper, ended, exit_code

NOTHING: list[object] = []


def hang() -> int:
    """What a child does until it is killed; not for ever, lest a failing test leaves it behind."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    signal.pause()
    return 96


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Neither a descriptor nor a child, dead or alive."""
    before, had = os.listdir("/proc/self/fd"), children()
    yield
    assert os.listdir("/proc/self/fd") == before
    assert children() == had


def children() -> set[int]:
    """The children that this process has not waited for; the session's container engines may be among them."""
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


def test_a_child_that_raises_says_so_in_one_line_and_never_returns(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise ValueError("no \udcff")

    assert run(main) == EXIT_AGAIN
    assert capfd.readouterr().err == "nsbridged: child: ValueError: no \\udcff\n"


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_a_child_never_returns_whatever_it_raises(error: BaseException) -> None:
    def main() -> int:
        raise error

    assert run(main) == EXIT_AGAIN


def test_a_child_that_is_killed_is_reaped_with_the_signal_s_number() -> None:
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


def test_signals_are_blocked_neither_in_the_child_nor_in_the_parent() -> None:
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


def test_without_another_process_there_is_an_error_and_signals_are_as_before() -> None:
    """As a user whose processes are used up: root has no such limit."""

    def main() -> int:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setresuid(54321, 54321, 54321)
        try:
            fork(lambda: 0)
        except BlockingIOError:  # EAGAIN
            return len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return 97

    assert exit_code(main) == 0


# -- questions


def ask(loop: Loop, function: Callable[[], object], limit: float = LIMIT) -> object:
    """The answer, when it has come."""
    answers: list[object] = []
    Question(loop, function, answers.append, limit)
    deadline = time.monotonic() + 2 * LIMIT
    while not answers:
        loop.run_once(1)
        assert time.monotonic() < deadline
    assert len(answers) == 1
    return answers[0]


@pytest.mark.parametrize("answer", [None, True, 5, [1, 2, "/proc/1"], {"a": ["ä\n\udcff"]}, "x" * 65_000])
def test_an_answer_comes_as_it_was_given(loop: Loop, answer: object) -> None:
    assert ask(loop, lambda: answer) == answer


def test_an_error_for_people_comes_with_its_kind(loop: Loop) -> None:
    def refuse() -> object:
        raise UsageError("no such container")

    def fail() -> object:
        raise NsbridgeError("two")

    assert ask(loop, refuse) == {"error": ["UsageError", "no such container"]}
    assert ask(loop, fail) == {"error": ["NsbridgeError", "two"]}


def test_a_bug_is_no_answer_and_one_line(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(loop, lambda: 1 // 0) is None
    assert capfd.readouterr().err == "nsbridged: ZeroDivisionError: integer division or modulo by zero\n"


def test_what_json_cannot_say_is_no_answer(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(loop, lambda: b"bytes") is None
    assert "TypeError" in capfd.readouterr().err


def test_a_child_that_dies_is_no_answer(loop: Loop) -> None:
    assert ask(loop, lambda: os._exit(0)) is None
    assert ask(loop, lambda: os.kill(os.getpid(), signal.SIGSEGV)) is None


def test_a_child_that_hangs_is_killed_and_is_no_answer(loop: Loop) -> None:
    started = time.monotonic()
    assert ask(loop, hang, limit=0.1) is None
    assert 0.1 <= time.monotonic() - started < LIMIT


def test_an_answer_that_is_too_long_is_no_answer(loop: Loop) -> None:
    assert ask(loop, lambda: "x" * 1_000_000) is None


def test_an_abandoned_question_is_not_answered_and_its_child_is_killed_and_reaped(loop: Loop) -> None:
    answers: list[object] = []
    had = children()
    question = Question(loop, hang, answers.append, LIMIT)
    question.abandon()
    while children() != had:
        loop.run_once(LIMIT)
    assert answers == []


def test_many_questions_at_once_each_get_their_own_answer(loop: Loop) -> None:
    answers: dict[int, object] = {}
    for number in range(20):
        Question(loop, partial(pow, number, 2), partial(answers.__setitem__, number), LIMIT)
    while len(answers) < 20:
        loop.run_once(LIMIT)
    assert answers == {number: number * number for number in range(20)}


def test_a_question_s_child_holds_nothing_of_its_parent(loop: Loop) -> None:
    secret = os.open("/dev/null", os.O_RDONLY)
    listed = ask(loop, lambda: os.listdir("/proc/self/fd"))
    os.close(secret)
    assert isinstance(listed, list)
    assert len(listed) == 5  # the three, the pipe, and what lists them


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_question_that_cannot_be_asked_leaves_nothing_behind(loop: Loop, spare: int) -> None:
    """No descriptor is left for the pipe, or for the child."""
    restore = few_descriptors(spare)
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Question(loop, hang, NOTHING.append, LIMIT)
    finally:
        restore()


def test_a_question_s_child_dies_with_the_supervisor() -> None:
    """It is asked in a child of this process, which is killed."""
    be_subreaper(yes=True)
    reader, writer = os.pipe()

    def supervisor() -> int:
        def say_and_hang() -> object:
            os.write(1, json.dumps(os.getpid()).encode())
            return hang()

        os.dup2(writer, 1)  # a question's child keeps the first three
        Question(Loop(), say_and_hang, NOTHING.append, LIMIT)
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
