"""Errors between an agent and NATS. No I/O."""

from __future__ import annotations


class Lost(Exception):
    """The connection is of no use any more: another one is made. `str()` has the server and why."""


class Waits(Exception):
    """One side cannot continue, for a reason that may pass; the connection is all right. `str()` has what and why."""


class JetStreamError(Exception):
    """JetStream refuses a request."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
