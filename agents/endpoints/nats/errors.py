"""Errors between an agent and NATS. No I/O."""

from __future__ import annotations


class Lost(Exception):
    """The connection is lost, and a new one must be made. `str()` has the server and the reason."""


class Unready(Exception):
    """One side cannot continue now, but the connection works. `str()` has the reason, which may pass."""


# The errors that an answer without sense leads to: a server may be hostile, and no field of its answers is certain.
NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class JetStreamError(Exception):
    """JetStream refuses a request."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
