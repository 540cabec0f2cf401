"""The pull requests of a source that the server has not yet answered in full. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from typing import Any

_BATCH = 256  # messages of a request
_EXPIRES = 5.0  # seconds after which the server ends a request
_GRACE = 3.0  # seconds more, after which the source assumes that the request is lost


class _Pull:
    """A request."""

    def __init__(self, number: int, left: int, due: float) -> None:
        self.number = number
        self.left = left  # messages that may still come
        self.due = due
        self.is_new = True  # nothing has come


class Pulls:
    """Keeps the open requests. The server answers them in order, each with messages and sometimes a last status."""

    def __init__(self) -> None:
        self._pulls: deque[_Pull] = deque()
        self._made = 0
        self._next_is_long = False

    @property
    def due(self) -> float:
        """Return when the server should have answered; 0 if no request is open."""
        return self._pulls[0].due if self._pulls else 0.0

    def are_late(self, now: float) -> bool:
        """True if a request is lost."""
        return bool(self._pulls) and self._pulls[0].due <= now

    def next(self, messages: int, size: int, now: float) -> tuple[int, dict[str, Any]] | None:
        """Return the number and the body of the next request; None if there is no room, or enough was requested.

        A request is limited in bytes. If the next message alone is longer, the one after it asks for that message.
        """
        asked = sum(pull.left for pull in self._pulls)
        count = min(messages, _BATCH) - asked
        if count <= 0 or size <= 0 or (self._pulls and count < _BATCH // 2):
            return None
        if self._next_is_long and self._pulls:
            return None
        request: dict[str, Any] = {"expires": int(_EXPIRES * 10**9)}
        if self._next_is_long:
            self._next_is_long, count = False, 1
        else:
            request["max_bytes"] = size
        self._made += 1
        self._pulls.append(_Pull(self._made, count, now + _EXPIRES + _GRACE))
        return self._made, {"batch": count, **request}

    def came(self) -> None:
        """Note that a message has come."""
        if self._pulls:
            first = self._pulls[0]
            first.is_new = False
            first.left -= 1
            if not first.left:
                self._pulls.popleft()

    def ended(self, number: int, *, is_too_long: bool) -> bool:
        """Note that the server has ended a request; return True if it has had no message.

        `is_too_long`: the next message is longer than the request allows.
        """
        for pull in self._pulls:
            if pull.number == number:
                self._next_is_long = self._next_is_long or (is_too_long and pull.is_new)
                self._pulls.remove(pull)
                return pull.is_new and not is_too_long
        return False
