"""Answers a request in a child, which writes to the caller itself: message bodies, long listings, reads that may hang.

The child has the caller's socket and nothing else. The data that it reads never enters the supervisor's memory, which
every agent inherits. It dies with the supervisor, and is killed after LIMIT. Until it ends, the supervisor writes
nothing to that connection, so their lines do not mix.

A child that hangs in the kernel does not die when it is killed, and never runs again. Then the supervisor answers its
caller. Users take turns, and each has at most PER_USER children, so a user with many requests delays no other user.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial

from nsbridge.agents.confinement import entry
from nsbridge.agents.fork import Child, fork
from nsbridge.agents.loop import READABLE, Loop, Timer
from nsbridge.config.errors import EXIT_FAILED, NsbridgeError
from nsbridge.supervisor.control.turns import Turns

LIMIT = 5.0  # seconds
DIES_WITHIN = 0.2  # seconds after SIGKILL; else it hangs in the kernel
AT_ONCE = 16  # children
PER_USER = 2
_WAIT = 1000  # ms between two checks whether the caller still reads

Work = Callable[[], object]


def _nothing() -> None:
    pass


class Outcome(Enum):
    """The result of an errand."""

    DONE = "the caller has its answer"
    NOTHING = "the caller was sent nothing"
    BROKEN = "the caller was sent a part of a line, perhaps"


class Errands:
    """Errands of a daemon, of which some run at once."""

    def __init__(self, loop: Loop, at_once: int = AT_ONCE, per_user: int = PER_USER) -> None:
        self.loop = loop
        self._at_once = at_once
        self._per_user = per_user
        self._waiting: Turns[Errand] = Turns()
        self._running: dict[Errand, int] = {}  # and the uid of each

    @property
    def is_full(self) -> bool:
        """True if one more errand would have to wait for another's end."""
        return len(self._running) >= self._at_once

    def add(self, errand: Errand) -> None:
        """Run it when its turn comes."""
        self._waiting.add(errand.uid, errand)
        self.loop.call_later(0, self._start)

    def discard(self, errand: Errand) -> None:
        """Forget an errand that does not run yet."""
        self._waiting.discard(errand.uid, errand)

    def ended(self, errand: Errand) -> None:
        """Note that the child of a running errand is gone, or hangs; only the errand calls this."""
        if self._running.pop(errand, None) is not None:
            self.loop.call_later(0, self._start)

    def _start(self) -> None:
        while len(self._running) < self._at_once:
            errand = self._waiting.next(lambda uid: list(self._running.values()).count(uid) < self._per_user)
            if errand is None:
                return
            self._running[errand] = errand.uid
            errand.start()


@dataclass(frozen=True, slots=True)
class Job:
    """The work of an errand's child.

    `main` gets the caller's socket and a function to call before it first writes there; it returns an exit code. The
    child is forked within `lent`. `gone` is called once, when the child has ended or will never be.
    """

    main: Callable[[int, Callable[[], object]], int]
    limit: float | None = LIMIT  # seconds
    lent: Callable[[], AbstractContextManager[object]] = nullcontext
    gone: Callable[[], None] = _nothing


def answering(line: Callable[[], bytes]) -> Job:
    """Return the job of writing one line."""
    return Job(partial(_write_line, line))


class Errand:
    """One answer. `socket` is the caller's. `end` is called once with the outcome, unless the errand is abandoned."""

    def __init__(self, errands: Errands, uid: int, socket: int, job: Job, end: Callable[[Outcome], None]) -> None:
        self.uid = uid
        self._errands = errands
        self._socket = socket
        self._job = job
        self._end: Callable[[Outcome], None] | None = end
        self._child: Child | None = None
        self._begun = -1  # a pipe that is readable when the child has begun to write to the caller
        self._limit: Timer | None = None

    def enlist(self) -> None:
        """Run when its turn comes."""
        self._errands.add(self)

    def start(self) -> None:
        """Fork the child; only for Errands."""
        self._begun, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with self._job.lent():
                self._child = fork(partial(_run, self._job, self._socket, writer, os.getpid()))
        except OSError:
            os.close(self._begun)
            self._job.gone()
            self._report(Outcome.NOTHING)
            return
        finally:
            os.close(writer)
        self._errands.loop.watch(self._child.pidfd, READABLE, self._reap)
        if self._job.limit is not None:
            self._limit = self._errands.loop.call_later(self._job.limit, self._too_late)

    def abandon(self) -> None:
        """End the errand, because the caller is gone."""
        self._end = None
        self._errands.discard(self)
        if self._child is not None:
            self._child.kill()
        elif self._begun < 0:
            self._job.gone()

    def _too_late(self) -> None:
        assert self._child is not None  # noqa: S101  (it was started)
        self._child.kill()
        self._limit = self._errands.loop.call_later(DIES_WITHIN, lambda: self._report(self._outcome(1)))

    def _reap(self, _events: int) -> None:
        assert self._child is not None  # noqa: S101
        if self._limit is not None:
            self._limit.cancel()
        self._errands.loop.unwatch(self._child.pidfd)
        outcome = self._outcome(self._child.reap())
        self._child = None
        os.close(self._begun)
        self._job.gone()
        self._report(outcome)

    def _outcome(self, code: int) -> Outcome:
        if code == 0:
            return Outcome.DONE
        try:
            begun = os.read(self._begun, 1)
        except BlockingIOError:
            begun = b""  # the child lives, and hangs
        return Outcome.BROKEN if begun else Outcome.NOTHING

    def _report(self, outcome: Outcome) -> None:
        self._errands.ended(self)
        end, self._end = self._end, None
        if end is not None:
            end(outcome)


def answer_line(request_id: object, method: str, work: Work) -> bytes:
    """Return the line that answers a request: the result of `work`, or its error. Runs in the child."""
    message: dict[str, object]
    try:
        message = {"id": request_id, "result": work()}
    except NsbridgeError as error:
        message = {"id": request_id, "error": {"code": error.exit_code or EXIT_FAILED, "message": str(error)}}
    except Exception as bug:  # noqa: BLE001  (reported to the caller; the supervisor is not affected)
        text = f"nsbridged failed in {method}: a bug: {type(bug).__name__}: {bug}"
        message = {"id": request_id, "error": {"code": EXIT_FAILED, "message": text}}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _run(job: Job, socket: int, begun: int, supervisor: int) -> int:
    """Be the child."""
    entry.die_with_the_supervisor(supervisor)
    entry.close_all_but({0, 1, 2, socket, begun})
    return job.main(socket, partial(os.write, begun, b"!"))


def _write_line(line: Callable[[], bytes], socket: int, begin: Callable[[], object]) -> int:
    data = line()
    begin()
    return 0 if write_all(socket, data) else 1


def write_all(socket: int, data: bytes) -> bool:
    """Write all to a caller, as fast as it reads; return False if it is gone. For the child of an errand only."""
    left = memoryview(data)
    room = select.poll()
    room.register(socket, select.POLLOUT)
    while left:
        room.poll(_WAIT)
        try:
            left = left[os.write(socket, left) :]
        except BlockingIOError:
            continue
        except OSError:  # the caller has gone
            return False
    return True
