"""One deadline for everything that a call asks an engine, however slowly the engine answers."""

from __future__ import annotations

import time

TIME_LIMIT = 2.0  # seconds, for everything that one call asks
ANSWER_LIMIT = 8 << 20  # bytes of one answer


def seconds_left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError if none are left (0 would mean non-blocking)."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
