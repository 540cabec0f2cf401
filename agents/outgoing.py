"""The source's half of a direction: what is sent next, and repeated. session.py has the rules. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from nsbridge.agents import wire
from nsbridge.agents.wire import Message, Run, WireError
from nsbridge.config.schema import Window


class SourceStore(Protocol):
    """Messages that a source has taken and its sink has not confirmed: seqs `confirmed + 1` to `taken`."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def confirmed(self) -> int: ...  # noqa: D102
    @property
    def taken(self) -> int: ...  # noqa: D102
    @property
    def pending_bytes(self) -> int: ...  # noqa: D102
    def append(self, message: Message) -> int: ...  # noqa: D102
    def run(self, seq: int) -> Run | None: ...  # noqa: D102  (the pending messages from `seq` on, or some; None: not now)
    def confirm(self, seq: int) -> None: ...  # noqa: D102


class NeverTakenError(WireError):
    """The two journals of a direction contradict each other, and another start would not change that."""


class Outgoing:
    """The source's half of a direction."""

    def __init__(self, store: SourceStore, window: Window) -> None:
        self.store = store
        self._window = window
        self._sent = store.confirmed  # the last seq that was put into a packet whole
        self._under_way: deque[tuple[int, int]] = deque()  # of each frame that was sent and not confirmed: last, bytes
        self._bytes_under_way = 0
        self._offset = 0  # how much of the next one was
        self._cut: Run | None = None  # that message: a store copies it, and it may take a thousand packets

    def has_room(self) -> bool:
        """True if one more message may be taken; always while none is pending, so any message gets through."""
        store, window = self.store, self._window
        return store.taken - store.confirmed < window.messages and store.pending_bytes < window.bytes

    def room(self) -> tuple[int, int]:
        """Return how many messages and bytes may be taken; one more message while both are above 0."""
        store, window = self.store, self._window
        return window.messages - store.taken + store.confirmed, window.bytes - store.pending_bytes

    def room_for(self, bodies: Sequence[bytes]) -> int:
        """Return how many of these messages may be taken now."""
        store = self.store
        return _admitted(bodies, self._window, store.taken - store.confirmed, store.pending_bytes)

    def has_unsent(self) -> bool:
        """True if something is still to be sent, now or when the sink has made room."""
        return self._sent < self.store.taken

    def check(self, handed: int) -> None:
        """Raise NeverTakenError if the sink's journal has handed over more of this epoch than this one has taken."""
        if handed > self.store.taken:
            raise NeverTakenError(
                f"the other agent's journal says that message {handed} of this route was handed over, and this agent's "
                f"has taken only {self.store.taken}: one of them is an older copy (of a backup, or of a host that "
                "crashed without fsync = true). Move both journals of the route away, then start it"
            )

    def confirm(self, seq: int) -> None:
        """Take the sink's word for all up to `seq`. WireError if it speaks of what was never sent."""
        if seq > self.store.taken:
            raise WireError(f"message {seq} confirmed, only {self.store.taken} were taken")
        if seq > self.store.confirmed:
            self.store.confirm(seq)
            under_way = self._under_way
            while under_way and under_way[0][0] <= seq:
                self._bytes_under_way -= under_way.popleft()[1]
            if self._sent < seq:
                self._sent, self._offset, self._cut = seq, 0, None

    def rewind(self) -> None:
        """Repeat from the first unconfirmed message."""
        self._sent, self._offset, self._cut = self.store.confirmed, 0, None
        self._under_way.clear()
        self._bytes_under_way = 0

    def fill(self, parts: list[bytes], room: int) -> None:
        """Append to `parts` as many frames as fit into `room` bytes, and into the sink's window.

        More than the window may be pending: it was larger once, or an earlier life took files of unknown lengths.
        """
        store, window = self.store, self._window
        while self._sent < store.taken and room > wire.DATA_OVERHEAD:
            run = self._cut or store.run(self._sent + 1)
            if run is None:
                return
            if self._offset:
                self._fill_with_piece(run, parts, room)
                return
            messages, size = self._sent - store.confirmed, self._bytes_under_way
            length = wire.run_size(run)
            if (
                length > room
                or run.names
                or run.last - store.confirmed > window.messages
                or size + run.size >= window.bytes
            ):
                count = _admitted(run.bodies, window, messages, size)
                if not count:
                    return
                count = min(count, _fitting(run, room - wire.RUN_OVERHEAD))
                if not count:
                    self._fill_with_piece(run, parts, room)
                    return
                run = run.before(count)
                names = wire.pack_names(run)
                parts += names
                length = wire.run_size(run) + sum(map(len, names))
            parts += wire.pack_run(run)
            room -= length
            self._note_sent(run.last, run.size)

    def _fill_with_piece(self, run: Run, parts: list[bytes], room: int) -> None:
        """Fill the packet with a piece: a message is cut only where a packet has room for nothing else."""
        body = run.bodies[0]
        names = [] if self._offset else wire.pack_names(run.one(0))
        room -= sum(map(len, names))
        left = len(body) - self._offset
        length = min(left, room - wire.DATA_OVERHEAD)
        if length < left and parts:
            return
        parts += names
        parts.append(wire.pack_data_header(run.epoch, run.first, Message(run.type, body), self._offset, length))
        parts.append(body[self._offset : self._offset + length])
        if length == left:
            self._note_sent(run.first, len(body))
            self._offset, self._cut = 0, None
        else:
            self._offset += length
            self._cut = run.one(0)

    def _note_sent(self, last: int, size: int) -> None:
        self._sent = last
        self._under_way.append((last, size))
        self._bytes_under_way += size


def _admitted(bodies: Sequence[bytes], window: Window, messages: int, size: int) -> int:
    """Return how many of the bodies fit into a window that holds so many messages of `size` bytes in all.

    One more while there are fewer messages and fewer bytes than its limits; the first in any case.
    """
    most = min(len(bodies), window.messages - messages)
    if size + sum(map(len, bodies)) < window.bytes:
        return max(most, 0)
    count = 0
    while count < most and (size < window.bytes or not (count or messages)):
        size += len(bodies[count])
        count += 1
    return count


def _fitting(run: Run, room: int) -> int:
    """Return how many of its messages fit into `room` bytes of a RUN frame, and one of their names before it."""
    bodies = run.bodies
    if run.names:
        return _fitting_with_names(run, room - wire.NAMES_OVERHEAD)
    if run.size + wire.RUN_MESSAGE_OVERHEAD * len(bodies) <= room:
        return len(bodies)
    for count, body in enumerate(bodies):
        room -= len(body) + wire.RUN_MESSAGE_OVERHEAD
        if room < 0:
            return count
    return len(bodies)


def _fitting_with_names(run: Run, room: int) -> int:
    for count, (body, name) in enumerate(zip(run.bodies, run.names, strict=True)):
        room -= len(body) + wire.RUN_MESSAGE_OVERHEAD + len(name) + 1
        if room < 0:
            return count
    return len(run.bodies)
