"""Reads the messages of a websocket (RFC 6455) on a connection that an engine has upgraded; for children of the
supervisor, because it blocks.

Only what a client that listens needs: a server's frames are not masked and have no extensions; a ping is answered.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Protocol

MESSAGE_LIMIT = 1 << 20  # bytes of one message
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PONG = 10
_SHORT, _MIDDLE = 125, 126  # of the length field: itself, or 16 bits follow; otherwise 64 do
_FINAL, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F


class Reader(Protocol):
    """Reads exactly so many bytes unless the connection ends."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        ...


def new_key() -> str:
    """Return a key for Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def headers(key: str) -> dict[str, str]:
    """Return the headers that ask for the upgrade."""
    return {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}


def accepted(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers a key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def messages(reader: Reader, send: Callable[[bytes], object]) -> Iterator[bytes]:
    """Yield each message until the connection ends. Raises ValueError if it is no websocket or a message has no end."""
    message = b""
    while head := reader.read(2):
        if len(head) < 2 or head[0] & _RESERVED or head[1] & _MASKED:  # noqa: PLR2004
            raise ValueError("something other than websocket frames")
        payload = _payload(reader, head[1] & _LENGTH, MESSAGE_LIMIT - len(message))
        match head[0] & _OPCODE:
            case 0 | 1 | 2:
                message += payload
                if head[0] & _FINAL:
                    yield message
                    message = b""
            case 8:
                return
            case 9:
                send(_pong(payload[:_SHORT]))
            case 10:
                pass
            case _:
                raise ValueError("something other than websocket frames")


def _payload(reader: Reader, length: int, limit: int) -> bytes:
    if length > _SHORT:
        form = "!H" if length == _MIDDLE else "!Q"
        extended = reader.read(struct.calcsize(form))
        if len(extended) < struct.calcsize(form):
            raise ValueError("a frame that is cut off")
        (length,) = struct.unpack(form, extended)
    if length > limit:
        raise ValueError("an event without end")
    payload = reader.read(length)
    if len(payload) < length:
        raise ValueError("a frame that is cut off")
    return payload


def _pong(payload: bytes) -> bytes:
    """Return the frame that answers a ping. A client masks what it sends."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    return bytes([_FINAL | _PONG, _MASKED | len(payload)]) + mask + masked
