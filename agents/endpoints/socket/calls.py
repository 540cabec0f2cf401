"""The system calls by which messages of sockets are counted. For its other sockets an agent uses other calls.

preadv2 and pwritev2 are rare, so that counting them costs the host little (agents/counter.py). On a socket they are
recv(2) and send(2) of one message.
"""

from __future__ import annotations

import platform
import struct

from nsbridge.agents import linux

# On x86_64 and aarch64, for the filter of system calls too (KindCalls.numbers).
NUMBERS = {
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "connect": (42, 203),
    "fchmodat": (268, 53),
}
_COLUMN = 1 if platform.machine() == "aarch64" else 0  # asked here: an agent may not make that call
_VECTOR = struct.Struct("=QQ")  # struct iovec
_NO_OFFSET = -1


class PreparedReceive:
    """Receives messages of a socket into memory that outlives the process."""

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._vector = bytearray(_VECTOR.size)
        at = linux.address_of(self._vector)
        self._call, _ = linux.prepared(NUMBERS["preadv2"][_COLUMN], fd, at, 1, _NO_OFFSET, 0, 0)

    def receive(self, place: int) -> int:
        """Receive a message without waiting, to 8 bytes behind `place`, the address of a msgbuf.

        Return its length, or minus the errno: EAGAIN if there is none.
        """
        _VECTOR.pack_into(self._vector, 0, place + 8, self._size)
        length = self._call()
        return length if length >= 0 else linux.call_failed()


class PreparedSend:
    """Sends messages by a connected socket."""

    def __init__(self, fd: int) -> None:
        self._vector = bytearray(_VECTOR.size)
        at = linux.address_of(self._vector)
        self._call, _ = linux.prepared(NUMBERS["pwritev2"][_COLUMN], fd, at, 1, _NO_OFFSET, 0, 0)

    def send(self, body: bytes) -> int:
        """Send a message without waiting. Return how many bytes were sent, or minus the errno."""
        copy = bytearray(body) if body else bytearray(1)
        _VECTOR.pack_into(self._vector, 0, linux.address_of(copy), len(body))
        sent = self._call()
        return sent if sent >= 0 else linux.call_failed()
