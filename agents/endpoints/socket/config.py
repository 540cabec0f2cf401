"""Defines the table of the `socket` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.kind import PathEndpoint, reads


class SocketType(StrEnum):
    """Types of Unix sockets."""

    DATAGRAM = "datagram"
    SEQPACKET = "seqpacket"
    STREAM = "stream"

    @property
    def number(self) -> int:
        """Return it as socket(2) has it."""
        return _NUMBERS[self]


class StreamFraming(StrEnum):
    """The ways in which a stream marks the end of a message."""

    LINE = "line"
    LENGTH = "length"


_NUMBERS = {
    SocketType.DATAGRAM: int(socket.SOCK_DGRAM),
    SocketType.SEQPACKET: int(socket.SOCK_SEQPACKET),
    SocketType.STREAM: int(socket.SOCK_STREAM),
}


@dataclass(frozen=True, slots=True)
class SocketEndpoint(PathEndpoint):
    """Unix sockets: programs send to `out`, where the agent binds one; to `in` the agent connects and sends."""

    out: str | None = field(default=None, metadata=reads(values.socket_path))
    in_: str | None = field(default=None, metadata=reads(values.socket_path))
    type: SocketType = field(default=SocketType.DATAGRAM, metadata=reads(values.member(SocketType)))
    framing: StreamFraming = field(
        default=StreamFraming.LINE, metadata=reads(values.member(StreamFraming))
    )  # of a stream
    max_message: int = field(default=256 << 10, metadata=reads(values.message_size))

    name: ClassVar[str] = "socket"
    is_counted: ClassVar[bool] = True

    @property
    def held_socket(self) -> int | None:
        """See Endpoint."""
        return self.type.number if self.out is not None else None
