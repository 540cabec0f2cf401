"""Decides if a message that should be before another one is missing in a stream. No I/O.

Each message of nsbridge has an id, (epoch, seq). Its publisher puts it behind (epoch, seq - 1), or names the id that it
puts it behind (BEHIND_HEADER). So a message that a cluster has confirmed
and lost leaves a hole that the next one shows.
"""

from __future__ import annotations

from collections.abc import Mapping

from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.evidence import Id, parse

_MOST = 256  # publishers that are remembered
NONE = "-"  # in BEHIND_HEADER: not known


def behind(before: Id | None, one: Id) -> dict[str, str]:
    """Return the header that a message needs which is put behind the message `before`."""
    if before == Id(one.epoch, one.seq - 1):
        return {}
    return {stream.BEHIND_HEADER: str(before or NONE)}


class Order:
    """The last message of each publisher that was taken."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # seq by epoch

    @property
    def is_empty(self) -> bool:
        """True if no message is known."""
        return not self._last

    def hole(self, headers: Mapping[str, str]) -> str:
        """Return which messages are missing before the one with these headers; empty if none is known to be."""
        one = parse(headers.get(stream.ID_HEADER, ""))
        if one is None or one.seq <= self._last.get(one.epoch, 0):
            return ""
        text = headers.get(stream.BEHIND_HEADER)
        before = parse(text) if text is not None else Id(one.epoch, one.seq - 1)
        last = self._last.get(before.epoch) if before is not None else None
        if before is None or last is None or last >= before.seq:
            return ""
        return f"messages from {Id(before.epoch, last + 1)} to {before}"

    def took(self, headers: Mapping[str, str]) -> None:
        """Note that the message with these headers was taken."""
        one = parse(headers.get(stream.ID_HEADER, ""))
        if one is not None:
            self._last[one.epoch] = max(one.seq, self._last.pop(one.epoch, 0))  # the latest is at the end
            if len(self._last) > _MOST:
                del self._last[next(iter(self._last))]
