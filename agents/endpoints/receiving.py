"""Receives messages straight into a source's journal, many in a row: from a POSIX queue, or from a socket."""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.endpoints.base import AgentApi, Blocked
from nsbridge.agents.journal.counted import Landing, behind

_FLUSH_EVERY = 64  # messages taken before they are sent on, so that the other agent works meanwhile


def take_while_room(host: AgentApi, most: int, take_some: Callable[[int, int], list[int]]) -> bool:
    """Call `take_some` for up to `most` messages while there is room. True if it took none; False if no room is left.

    It gets how many messages and how many bytes it may take, and returns their lengths. Raises what it raises.
    """
    host.retry_dead_letters()
    messages, size = host.room()
    unsent = 0
    while messages > 0 and size > 0:
        got = take_some(min(messages, most), size)
        if not got:
            return True
        messages, size, unsent = messages - len(got), size - sum(got), unsent + len(got)
        if unsent >= _FLUSH_EVERY:
            unsent = 0
            host.flush()
    return False


class RowReceiver:
    """Receives messages into places of the journal that follow each other. `last` is what the last call returned."""

    def __init__(
        self, host: AgentApi, landing: Landing, receive: Callable[[int], int], size: int, longest: int | None = None
    ) -> None:
        """Receive by calls of `receive`, which gets the address of a msgbuf for `size` bytes.

        It puts the message there, and returns its length, or minus the errno. A message of more than `longest` bytes
        (`size` if it is None) is not kept.
        """
        self._host = host
        self._landing = landing
        self._receive = receive
        self._size = size
        self._longest = size if longest is None else longest
        self.last = 0

    def take(self, most: int, size: int) -> list[int]:
        """Receive up to `most` messages, while there are `size` bytes of room; return their lengths. Raises Blocked."""
        landing, receive, longest = self._landing, self._receive, self._longest
        try:
            at = landing.begin(self._size)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None
        last, most, got, length = landing.last, min(most, landing.most), list[int](), 0
        try:
            while len(got) < most and size > 0 and at <= last:
                if got:
                    landing.clear(at)
                length = receive(at)
                if not 0 <= length <= longest:
                    break
                got.append(length)
                size -= length
                at = behind(at, length)
        finally:
            if got:
                self._host.landed(landing.landed(got))
        self.last = length
        return got
