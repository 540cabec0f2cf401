"""A POSIX queue as a program uses it, by the C library: nothing of this is nsbridge's own."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
_libc.mq_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
_libc.mq_receive.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.mq_receive.restype = ctypes.c_ssize_t


class PosixQueue:
    """An open queue, made if it is missing. Calls wait; a signal interrupts them, and `is_waiting` False forbids it."""

    def __init__(
        self, name: str, *, max_messages: int = 10, max_message: int = 8192, mode: int = 0o666, is_waiting: bool = True
    ) -> None:
        self.name = name
        attributes = (ctypes.c_long * 8)(0, max_messages, max_message)
        flags = os.O_RDWR | os.O_CREAT | (0 if is_waiting else os.O_NONBLOCK)
        before = os.umask(0)
        self.fd = _checked(_libc.mq_open(os.fsencode(name), flags, mode, attributes))
        os.umask(before)
        _checked(_libc.mq_getattr(self.fd, attributes))
        self.max_messages, self.max_message = attributes[1], attributes[2]
        self._buffer = ctypes.create_string_buffer(self.max_message)
        self._priority = ctypes.c_uint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, body: bytes, priority: int = 0) -> None:
        """Send a message."""
        _checked(_libc.mq_send(self.fd, body, len(body), priority))

    def receive(self) -> tuple[bytes, int]:
        """Return the next message and its priority."""
        length = _checked(_libc.mq_receive(self.fd, self._buffer, self.max_message, ctypes.byref(self._priority)))
        return self._buffer.raw[:length], self._priority.value

    def drained(self) -> list[tuple[bytes, int]]:
        """Return all messages that are there, for a queue that does not wait."""
        found = []
        try:
            while True:
                found.append(self.receive())
        except BlockingIOError:
            return found

    def unlink(self) -> None:
        """Take its name away."""
        _checked(_libc.mq_unlink(os.fsencode(self.name)))

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number or errno.EIO, os.strerror(number))
    return result
