"""Decides how many messages are in flight to a stream, and the condition of each. No I/O.

A chain is a row of messages that depend on each other (evidence.py). A chain ends with its connection, or when the
server refuses one of its messages: it then refuses all behind that.

Where the server checks a condition decides what a refusal costs. In a replicated stream the leader can check before it
gives the message to the other servers; or each server checks when it applies the message. The second is what
nats-server before 2.12 does with the conditions of a chain's later messages. It counts those refusals, loses count when
a server is killed, and then takes new messages for old ones and drops them, although it confirms them. The storm
(`make nats-storm`) saw that with 2.9.10 and 2.10.27. So a chain in a replicated stream of such a server has one message
in flight. The condition of a chain's first message is checked by the leader in all versions. No leader checks the id of
the message before; it makes a difference only behind messages of other programs (evidence.py).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.evidence import Id
from nsbridge.agents.endpoints.nats.order import behind
from nsbridge.agents.endpoints.nats.stream import StreamState

IN_FLIGHT = 256  # messages, at most
_ANSWERED = 16  # one of so many messages in a row is answered
_CHECKS_FIRST = (2, 12)  # the first version whose leader checks all conditions


class Entry(NamedTuple):
    """A message that the sink has accepted."""

    id: Id
    type: int
    body: bytes


class Last(NamedTuple):
    """The last message of a subject."""

    sequence: int  # in the stream; 0 if there is none
    id: Id | None  # if nsbridge has published it


class Chain:
    """The messages in flight, in order."""

    def __init__(self, state: StreamState, version: tuple[int, ...], last: Last, most: int) -> None:
        """Begin behind the last message of the subject; `most` messages may be in flight."""
        self._state = state
        self.expected = last.sequence  # of the subject's last message that is confirmed
        self._last_id = last.id
        self.is_single = state.is_replicated and version < _CHECKS_FIRST
        self.most = most
        self.flying: deque[Entry] = deque()
        self.published = self.answered = 0  # messages

    def has_room(self) -> bool:
        """True if one more may be in flight: one until the first is confirmed, which shows where the stream is."""
        return len(self.flying) < (self.most if self.answered and not self.is_single else 1)

    def longest(self, max_payload: int) -> int:
        """Return the bytes of the longest message, with its headers, that the server and the stream take."""
        most = self._state.max_message
        return max_payload if most < 0 else min(max_payload, most)

    def headers(self, entry: Entry) -> dict[str, str]:
        """Return what the next message is published with."""
        headers = {stream.ID_HEADER: str(entry.id), **behind(self._last_id, entry.id)}
        if self.flying:
            headers[stream.LAST_HEADER] = str(self.expected + len(self.flying))
            headers[stream.LAST_ID_HEADER] = str(self.flying[-1].id)
        else:
            headers[stream.STREAM_HEADER] = self._state.name
            headers[stream.LAST_OF_SUBJECT_HEADER] = str(self.expected)
        if entry.type > 0:
            headers[stream.TYPE_HEADER] = str(entry.type)
        return headers

    def publish(self, entry: Entry, *, is_last: bool) -> int:
        """Note that it is published. Return the number by which the server answers it; 0 if it need not.

        An answer is for all before it, and costs as much as a message. The first of a chain is answered because its
        error has the reason; later errors only show a broken chain. `is_last`: none follows at once.
        """
        self.flying.append(entry)
        self._last_id = entry.id
        self.published += 1
        number = self.published
        return number if number == 1 or not number % _ANSWERED or is_last or not self.has_room() else 0

    def confirm(self, number: int, sequence: int) -> list[Entry]:
        """Return the messages that an answer confirms. Raises ValueError if it makes no sense."""
        if number > self.published:
            raise ValueError(f"it confirms message {number} of {self.published}")
        count, self.answered = number - self.answered, number
        self.expected = sequence
        return [self.flying.popleft() for _ in range(count)]
