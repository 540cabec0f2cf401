"""The system calls of POSIX message queues. The kernel's calls take a name without its slash. mq_overview(7)."""

from __future__ import annotations

import os
import platform
import struct
from typing import NamedTuple

from nsbridge.agents import linux

# On x86_64 and aarch64, for the filter of system calls too (KindCalls.numbers).
NUMBERS = {
    "mq_open": (240, 180),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_getsetattr": (245, 185),
}
_COLUMN = 1 if platform.machine() == "aarch64" else 0  # asked at import: an agent may not make that call
_ATTRIBUTES = struct.Struct("=4q32x")  # struct mq_attr: mq_flags, mq_maxmsg, mq_msgsize, mq_curmsgs
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Attributes(NamedTuple):
    """Limits of a queue, which never change: how many messages it holds, and the bytes of each."""

    max_messages: int
    max_message: int


def mq_open(name: str, flags: int, mode: int = 0, attributes: Attributes | None = None) -> int:
    """Open the queue of that name, which begins with a slash, without waiting. mq_open(3). Raises OSError."""
    given = bytearray(_ATTRIBUTES.pack(0, *attributes, 0)) if attributes is not None else 0
    return linux.syscall("mq_open", _number("mq_open"), os.fsencode(name[1:]) + b"\0", flags | _FLAGS, mode, given)


def attributes_of(queue: int) -> Attributes:
    """Return the limits of an open queue. mq_getattr(3)."""
    _, most, longest, _ = _asked(queue)
    return Attributes(most, longest)


def messages_in(queue: int) -> int:
    """Return how many messages an open queue has. mq_getattr(3)."""
    return _asked(queue)[3]


def all_queues() -> int:
    """Return a handle of the directory of all queues of this ipc namespace; needs root's power. Raises OSError.

    mq_open itself needs no mount, but Landlock refuses it unless the directory is granted.
    """
    return linux.own_mount("mqueue")


class PreparedSend:
    """Sends messages into one queue. mq_send(3)."""

    def __init__(self, queue: int) -> None:
        self._call, (_, self._body, self._size, self._priority, _) = linux.prepared(
            _number("mq_timedsend"), queue, b"", 0, 0, 0
        )

    def send(self, body: bytes, priority: int) -> int:
        """Send a message without waiting. Return 0, or minus the errno: EAGAIN if the queue is full, EMSGSIZE."""
        self._body.value = body
        self._size.value = len(body)
        self._priority.value = priority
        return linux.call_failed() if self._call() < 0 else 0


class PreparedReceive:
    """Receives messages of one queue into memory that outlives the process. mq_receive(3)."""

    def __init__(self, queue: int, size: int) -> None:
        """Prepare the call. `size` must be at least the queue's mq_msgsize, or the kernel refuses."""
        self._call, (_, self._body, _, self._priority, _) = linux.prepared(
            _number("mq_timedreceive"), queue, 0, size, 0, 0
        )

    def receive(self, place: int) -> int:
        """Receive a message without waiting: its priority (32 bits) to `place`, its body 8 bytes after that.

        Return its length, or minus the errno: EAGAIN if the queue is empty.
        """
        self._priority.value = place
        self._body.value = place + 8
        length = self._call()
        return length if length >= 0 else linux.call_failed()


def _asked(queue: int) -> tuple[int, ...]:
    found = bytearray(_ATTRIBUTES.size)
    linux.syscall("mq_getsetattr", _number("mq_getsetattr"), queue, 0, found)
    return _ATTRIBUTES.unpack(found)


def _number(call: str) -> int:
    return NUMBERS[call][_COLUMN]
