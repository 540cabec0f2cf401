"""The frames that two agents of a route exchange: bytes in, bytes out, no I/O.

A packet is one SOCK_SEQPACKET datagram of at most MAX_PACKET bytes and holds whole frames, one after the other, so a
killed sender never leaves half a frame. A message longer than a packet travels as several DATA frames with rising
offsets. Numbers are little-endian; nothing is decoded as text.

    HELLO  what its sender has of both directions: sent after a start, and as the answer to one
    DATA   one message, or one piece of it
    ACK    every message up to this one was handed over

The peer may be compromised: whatever it sends either parses within these limits or raises WireError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from nsbridge.config import schema

VERSION = 1
MAX_MESSAGE = schema.MAX_MESSAGE
MAX_PACKET = 64 << 10
MAX_SEQ = (1 << 47) - 1  # what a journal can keep of a seq (journalfile.seal); no flow gets there

_HELLO, _DATA, _ACK = 1, 2, 3
_HELLO_FORMAT = struct.Struct("<BB2xIQQQQQQ")
_DATA_FORMAT = struct.Struct("<B3xIQQqII")
_ACK_FORMAT = struct.Struct("<B7xQQ")
DATA_OVERHEAD = _DATA_FORMAT.size


class WireError(Exception):
    """The peer sent what no correct agent sends: its fault, never the reader's."""


class Message(NamedTuple):
    """What is carried: `type` is a SysV message type, 0 where the source has none; `body` is any bytes."""

    type: int
    body: bytes


VOID = Message(-1, b"")  # in the place of a message that its source has no more: nothing is handed over for it


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


class Ack(NamedTuple):
    """Every message of `epoch` up to and including `seq` has been handed over."""

    epoch: int
    seq: int


Frame = Hello | Data | Ack


def pack_hello(hello: Hello) -> bytes:
    """The frame's bytes."""
    return _HELLO_FORMAT.pack(_HELLO, VERSION, 0, *hello)


def pack_ack(epoch: int, seq: int) -> bytes:
    """The frame's bytes."""
    return _ACK_FORMAT.pack(_ACK, epoch, seq)


def pack_data_header(epoch: int, seq: int, message: Message, offset: int, length: int) -> bytes:
    """What goes before `length` bytes of the message's body, from `offset`."""
    return _DATA_FORMAT.pack(_DATA, length, epoch, seq, message.type, len(message.body), offset)


def parse(packet: bytes) -> Iterator[Frame]:
    """The frames of one packet, in order; WireError at the first that is not one."""
    at, end = 0, len(packet)
    if not end or end > MAX_PACKET:
        raise WireError(f"a packet of {end} bytes")
    while at < end:
        kind = packet[at]
        try:
            if kind == _DATA:
                _, length, epoch, seq, mtype, total, offset = _DATA_FORMAT.unpack_from(packet, at)
                at += _DATA_FORMAT.size + length
                if at > end or total > MAX_MESSAGE or offset + length > total or mtype < VOID.type or not seq:
                    raise WireError(f"a data frame of {length} bytes at {offset} of {total}, type {mtype}")
                yield Data(epoch, _seq(seq), mtype, total, offset, packet[at - length : at])
            elif kind == _ACK:
                _, epoch, seq = _ACK_FORMAT.unpack_from(packet, at)
                at += _ACK_FORMAT.size
                yield Ack(epoch, _seq(seq))
            elif kind == _HELLO:
                _, version, _, *fields = _HELLO_FORMAT.unpack_from(packet, at)
                at += _HELLO_FORMAT.size
                if version != VERSION:
                    raise WireError(f"protocol version {version}, this is version {VERSION}")
                hello = Hello(*fields)
                _seq(max(hello.out_confirmed, hello.in_handed))
                yield hello
            else:
                raise WireError(f"a frame of unknown kind {kind}")
        except struct.error:
            raise WireError(f"a frame of kind {kind} cut short") from None


def _seq(number: int) -> int:
    """A message's number; WireError if no flow gets so far."""
    if number > MAX_SEQ:
        raise WireError(f"message number {number}")
    return number
