"""The frames that two agents of a route exchange: bytes in, bytes out, no I/O.

A packet is one SOCK_SEQPACKET datagram of at most MAX_PACKET bytes and holds whole frames, one after the other, so a
killed sender never leaves half a frame. Messages travel as RUN frames, as many in one as fit; one that is longer than a
packet as several DATA frames with rising offsets. Numbers are little-endian; nothing is decoded as text.

    HELLO  what its sender has of both directions: sent after a start, and as the answer to one
    DATA   one piece of a message
    RUN    messages that follow each other, all of one type
    NAMES  the names of the messages that follow in this packet, or of the one whose first piece does; only for a sink
           that keeps names (Endpoint.keeps_names)
    ACK    every message up to this one was handed over

The peer may be compromised: whatever it sends either parses within these limits or raises WireError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from nsbridge.config import schema
from nsbridge.config.filenames import is_file_name

VERSION = 2
MAX_MESSAGE = schema.MAX_MESSAGE
MAX_PACKET = 64 << 10
MAX_EPOCH = (1 << 63) - 1  # an epoch is a time in ns: this one is in the year 2262
MAX_SEQ = (1 << 47) - 1  # what a journal can keep of a seq (journalfile.seal); no flow gets there

_HELLO, _DATA, _ACK, _RUN, _NAMES = 1, 2, 3, 4, 5
_HELLO_FORMAT = struct.Struct("<BB2xIQQQQQQ")
_DATA_FORMAT = struct.Struct("<B3xIQQqII")
_ACK_FORMAT = struct.Struct("<B7xQQ")
_RUN_FORMAT = struct.Struct("<B3xIQQq")  # the count; then a u32 of length for each message, then their bodies
_NAMES_FORMAT = struct.Struct("<B3xIQQ")  # the count; then a byte of length for each name, then the names
DATA_OVERHEAD = _DATA_FORMAT.size
ACK_SIZE = _ACK_FORMAT.size
RUN_OVERHEAD = _RUN_FORMAT.size
RUN_MESSAGE_OVERHEAD = 4
NAMES_OVERHEAD = _NAMES_FORMAT.size
_RUN_OF_ONE_FORMAT = struct.Struct(_RUN_FORMAT.format + "I")
_LENGTH = struct.Struct("<I")
_LEAST = {  # bytes of the shortest frame of each kind
    _HELLO: _HELLO_FORMAT.size,
    _DATA: _DATA_FORMAT.size,
    _ACK: _ACK_FORMAT.size,
    _RUN: _RUN_FORMAT.size,
    _NAMES: _NAMES_FORMAT.size,
}


class WireError(Exception):
    """The peer sent what no correct agent sends: its fault, never the reader's."""


class Message(NamedTuple):
    """A message between agents: `type` is a SysV message type, 0 where the source has none; `body` is any bytes."""

    type: int
    body: bytes


VOID = Message(-1, b"")  # in the place of a message that its source has no more: nothing is handed over for it
_LEAST_TYPE = VOID.type


class Hello(NamedTuple):
    """The greeting. `answers` is the nonce of the greeting that this one answers, 0 if it answers none.

    An epoch of 0 stands for no such direction, or nothing known of it.
    """

    nonce: int
    answers: int
    out_epoch: int  # of the direction whose source the sender is
    out_confirmed: int  # the last seq of it that the sender need not send again
    in_epoch: int  # of the direction whose sink the sender is
    in_handed: int  # the last seq of it that the sender has handed over


class Data(NamedTuple):
    """A piece of message `seq`: `piece` stands at `offset` of its `total` bytes."""

    epoch: int
    seq: int
    type: int
    total: int
    offset: int
    piece: bytes


class Run:
    """Messages that follow each other, of one type. It is never changed: several parts of an agent share it.

    `first` is the seq of the first body, `last` of the last one; `size` are the bytes of all bodies. `names` are those
    of the messages' files: none, or one for each body, empty where it has none.
    """

    __slots__ = ("bodies", "epoch", "first", "last", "names", "size", "type")

    def __init__(
        self,
        epoch: int,
        first: int,
        mtype: int,
        bodies: Sequence[bytes],
        names: Sequence[bytes] = (),
        size: int | None = None,
    ) -> None:
        self.epoch = epoch
        self.first = first
        self.type = mtype
        self.bodies = bodies
        self.names = names
        self.last = first + len(bodies) - 1
        self.size = sum(map(len, bodies)) if size is None else size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Run):
            return NotImplemented
        mine, its = (self.epoch, self.first, self.type), (other.epoch, other.first, other.type)
        return mine == its and list(self.bodies) == list(other.bodies) and list(self.names) == list(other.names)

    __hash__ = None  # type: ignore[assignment]  # the bodies may be a list

    def __repr__(self) -> str:
        return f"Run({self.epoch}, {self.first}, {self.type}, {self.bodies}, {self.names})"

    def one(self, which: int) -> Run:
        """Return the message at that place by itself."""
        if self.first == self.last:
            return self
        body = self.bodies[which]
        return Run(self.epoch, self.first + which, self.type, (body,), self.names[which : which + 1], len(body))

    def before(self, count: int) -> Run:
        """Return a run of its first `count` messages."""
        if count == len(self.bodies):
            return self
        return Run(self.epoch, self.first, self.type, self.bodies[:count], self.names[:count])

    def after(self, count: int) -> Run:
        """Return the run without its first `count` messages."""
        if not count:
            return self
        return Run(self.epoch, self.first + count, self.type, self.bodies[count:], self.names[count:])

    def named(self, names: Sequence[bytes]) -> Run:
        """Return the run with these names."""
        return Run(self.epoch, self.first, self.type, self.bodies, names, self.size)


class Names(NamedTuple):
    """The names of messages that follow each other, `first` being the seq of the first one."""

    epoch: int
    first: int
    names: Sequence[bytes]


def pack_hello(hello: Hello) -> bytes:
    """Return the frame's bytes."""
    return _HELLO_FORMAT.pack(_HELLO, VERSION, 0, *hello)


def pack_ack(epoch: int, seq: int) -> bytes:
    """Return the frame's bytes."""
    return _ACK_FORMAT.pack(_ACK, epoch, seq)


def pack_data_header(epoch: int, seq: int, message: Message, offset: int, length: int) -> bytes:
    """Return what goes before `length` bytes of the message's body, from `offset`."""
    return _DATA_FORMAT.pack(_DATA, length, epoch, seq, message.type, len(message.body), offset)


def pack_names(run: Run) -> list[bytes]:
    """Return the bytes of the frame that goes before a run or its first piece, in parts; none if it has no names."""
    if not any(run.names):
        return []
    header = _NAMES_FORMAT.pack(_NAMES, len(run.names), run.epoch, run.first)
    return [header, bytes(map(len, run.names)), *run.names]


def run_size(run: Run) -> int:
    """Return the bytes of the frame."""
    return RUN_OVERHEAD + RUN_MESSAGE_OVERHEAD * len(run.bodies) + run.size


def pack_run(run: Run) -> list[bytes]:
    """Return the frame's bytes, in parts."""
    bodies = run.bodies
    count = len(bodies)
    if count == 1:
        return [_RUN_OF_ONE_FORMAT.pack(_RUN, 1, run.epoch, run.first, run.type, run.size), bodies[0]]
    header = _RUN_FORMAT.pack(_RUN, count, run.epoch, run.first, run.type)
    return [header, struct.pack(f"<{count}I", *map(len, bodies)), *bodies]


class Receiver(Protocol):
    """Takes the frames of a packet."""

    def run(self, run: Run) -> None: ...  # noqa: D102
    def data(self, data: Data) -> None: ...  # noqa: D102
    def names(self, names: Names) -> None: ...  # noqa: D102
    def ack(self, epoch: int, seq: int) -> None: ...  # noqa: D102
    def hello(self, hello: Hello) -> None: ...  # noqa: D102


def parse(packet: bytes, to: Receiver) -> None:
    """Give the frames of one packet to a receiver, in order; WireError at the first that is not one."""
    at, end = 0, len(packet)
    if not end or end > MAX_PACKET:
        raise WireError(f"a packet of {end} bytes")
    while at < end:
        kind = packet[at]
        if at + _LEAST.get(kind, 0) > end:
            raise WireError(f"a frame of kind {kind} cut short")
        if kind == _ACK:
            _, epoch, seq = _ACK_FORMAT.unpack_from(packet, at)
            at += ACK_SIZE
            to.ack(epoch, seq if seq <= MAX_SEQ else _seq(seq))
        elif kind == _RUN:
            run, at = _parse_run(packet, at)
            to.run(run)
        elif kind == _DATA:
            data = _parse_data(packet, at)
            at += _DATA_FORMAT.size + len(data.piece)
            to.data(data)
        elif kind == _HELLO:
            hello = _parse_hello(packet, at)
            at += _HELLO_FORMAT.size
            to.hello(hello)
        elif kind == _NAMES:
            names, at = _parse_names(packet, at)
            to.names(names)
        else:
            raise WireError(f"a frame of unknown kind {kind}")


def _parse_data(packet: bytes, at: int) -> Data:
    """Return the frame that begins at `at`. Raises WireError."""
    _, length, epoch, seq, mtype, total, offset = _DATA_FORMAT.unpack_from(packet, at)
    at += _DATA_FORMAT.size
    end = at + length
    if end > len(packet) or total > MAX_MESSAGE or offset + length > total or mtype < _LEAST_TYPE or not seq:
        raise WireError(f"a data frame of {length} bytes at {offset} of {total}, type {mtype}")
    return Data(epoch, _seq(seq), mtype, total, offset, packet[at:end])


def _seq(number: int) -> int:
    """Return a message's number; WireError if no flow gets so far."""
    if number > MAX_SEQ:
        raise WireError(f"message number {number}")
    return number


def _parse_hello(packet: bytes, at: int) -> Hello:
    """Return the greeting that begins at `at`. Raises WireError."""
    _, version, _, *fields = _HELLO_FORMAT.unpack_from(packet, at)
    if version != VERSION:
        raise WireError(f"protocol version {version}, this is version {VERSION}")
    hello = Hello(*fields)
    _seq(max(hello.out_confirmed, hello.in_handed))
    if max(hello.out_epoch, hello.in_epoch) > MAX_EPOCH:  # a sink could not name anything that comes after it
        raise WireError(f"a greeting with the epochs {hello.out_epoch} and {hello.in_epoch}")
    return hello


def _parse_run(packet: bytes, at: int) -> tuple[Run, int]:
    """Return the frame that begins at `at`, and where it ends. Raises WireError."""
    _, count, epoch, first, mtype = _RUN_FORMAT.unpack_from(packet, at)
    at += RUN_OVERHEAD
    if not 0 < count <= len(packet) // RUN_MESSAGE_OVERHEAD or mtype < _LEAST_TYPE or not first:
        raise WireError(f"a run of {count} messages from {first}, type {mtype}")
    if first + count - 1 > MAX_SEQ:
        _seq(first + count - 1)
    start = at + RUN_MESSAGE_OVERHEAD * count  # of the first body
    if start > len(packet):
        raise WireError(f"a frame of kind {_RUN} cut short")
    lengths = _LENGTH.unpack_from(packet, at) if count == 1 else struct.unpack_from(f"<{count}I", packet, at)
    size = lengths[0] if count == 1 else sum(lengths)
    end = start + size
    if end > len(packet):
        raise WireError(f"a run of {count} messages with {size} bytes, cut short")
    if count == 1:
        return Run(epoch, first, mtype, (packet[start:end],), (), size), end
    ends = accumulate(lengths, initial=start)
    return Run(epoch, first, mtype, [packet[here:there] for here, there in pairwise(ends)], (), size), end


def _parse_names(packet: bytes, at: int) -> tuple[Names, int]:
    """Return the frame that begins at `at`, and where it ends. Raises WireError."""
    _, count, epoch, first = _NAMES_FORMAT.unpack_from(packet, at)
    at += _NAMES_FORMAT.size
    lengths = packet[at : at + count]
    if not count or not first or len(lengths) != count:
        raise WireError(f"{count} names from message {first}, cut short")
    _seq(first + count - 1)
    at += count
    ends = list(accumulate(lengths, initial=at))
    names = [packet[start:end] for start, end in pairwise(ends)]
    if ends[-1] > len(packet) or not all(is_file_name(name) for name in names if name):
        raise WireError(f"{count} names from message {first}, cut short or of no file")
    return Names(epoch, first, names), ends[-1]
