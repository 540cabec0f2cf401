"""The answer to one request of the control socket, as the supervisor's methods see it: now, later, or by a child."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from nsbridge.config.errors import EXIT_FAILED, NsbridgeError
from nsbridge.supervisor.control.errands import Job, Work, answer_line, answering

MAX_QUEUED_STREAM = 1 << 20  # bytes that wait to be read by a caller when an item of a stream is added


class ControlApi(Protocol):
    """The supervisor's methods for callers. The server has checked that the caller may call `method`."""

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        """Run `method` and give `answer` its result or error, now or later. A raised NsbridgeError is the error."""


class Outlet(Protocol):
    """The part of a connection that an answer uses; see Connection."""

    def send(self, message: dict[str, object], limit: int = ...) -> None:
        """Queue `message`; with more than `limit` bytes waiting, close the connection."""

    def finish(self, answer: Answer, message: dict[str, object]) -> None:
        """Send the last message of `answer`."""

    def lend(self, answer: Answer, job: Job, otherwise: Callable[[], None] | None) -> None:
        """Let a child answer."""

    def lend_to_stream(self, answer: Answer, job: Job) -> None:
        """Let a child answer for as long as it likes."""

    def follow(self, answer: Answer) -> None:
        """Count as an endless stream."""


class Answer:
    """The answer to one request. Its methods do nothing after the end of the answer or of the connection."""

    def __init__(self, connection: Outlet, request_id: object) -> None:
        self._connection = connection
        self._id = request_id
        self._callbacks: list[Callable[[], None]] = []
        self._open = True
        self._abandoned = False

    @property
    def is_open(self) -> bool:
        """True until the request is answered or the caller is gone: after that, further work would be wasted."""
        return self._open

    def item(self, value: object) -> None:
        """Send one more item of a stream; `value` is any JSON value."""
        if self._open:
            self._connection.send({"id": self._id, "item": value}, MAX_QUEUED_STREAM)

    def result(self, value: object) -> None:
        """Send the result, and end the answer."""
        self._finish({"id": self._id, "result": value})

    def error(self, error: NsbridgeError) -> None:
        """Send the error, and end the answer."""
        self._finish(error_line(self._id, error))

    def by_child(self, work: Work, otherwise: Callable[[], None] | None = None) -> None:
        """Answer with the result of `work`, or its NsbridgeError, from a child with a time limit (errands.py).

        If the child has no answer in time, `otherwise` is called and answers. Without `otherwise` that is an error.
        """
        if self._open:
            job = answering(partial(answer_line, self._id, "this request", work))
            self._connection.lend(self, job, otherwise)

    def by_stream(self, job: Callable[[object], Job]) -> None:
        """Answer with the lines that a child writes, for as long as it runs: items, and in the end the result.

        `job` gets the request's id. Raises NsbridgeError if there are too many such children.
        """
        if self._open:
            self._connection.lend_to_stream(self, job(self._id))

    def follow(self) -> None:
        """Count as an endless stream from now on. Raises NsbridgeError if there are too many."""
        if self._open:
            self._connection.follow(self)

    def was_sent(self) -> None:
        """Note that the child has sent the answer; only the connection calls this."""
        self._open = False
        self._callbacks.clear()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if the caller disconnects before the answer (at once if it already has)."""
        if self._open:
            self._callbacks.append(callback)
        elif self._abandoned:
            callback()

    def abandon(self) -> None:
        """Note that the caller has disconnected; only its connection calls this."""
        callbacks, self._callbacks = self._callbacks, []
        self._open, self._abandoned = False, True
        for callback in callbacks:
            callback()

    def _finish(self, message: dict[str, object]) -> None:
        if self._open:
            self._open = False
            self._callbacks.clear()
            self._connection.finish(self, message)


def error_line(request_id: object, error: NsbridgeError) -> dict[str, object]:
    """Return the message that is the error of a request; of the connection itself if the id is None."""
    return {"id": request_id, "error": {"code": error.exit_code or EXIT_FAILED, "message": str(error)}}
