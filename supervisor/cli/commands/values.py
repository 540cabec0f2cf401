"""Conversions of a command line's words; ValueError says what they must be.

The configuration's rules are loaded only for words that follow them.
"""

from __future__ import annotations

import os

I64 = (-(1 << 63), (1 << 63) - 1)  # of a message's type, a C long
_DAY = 86400
_LAST_PORT = 65535


def path(text: str) -> str:
    """Return a path of the host, as the person has it."""
    if not text or "\0" in text:
        raise ValueError("it must be a path")
    return text


def seconds(text: str) -> float:
    """Return a limit or an interval."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= _DAY:  # also refuses nan
        raise ValueError("it must be a number of seconds above 0, a day at most")
    return number


def count(text: str) -> int:
    """Return a count of something; 0 is allowed."""
    if not text.isdecimal():
        raise ValueError("it must be a number, 0 or more")
    return int(text)


def namespace_path(text: str) -> str:
    """Return a path of the host; a relative one starts at the current directory."""
    if not text or "\0" in text:
        raise ValueError("it must be the path of a namespace, like /proc/4711/ns/ipc")
    return os.path.abspath(text)  # noqa: PTH100  (Path.absolute keeps the ..)


def inner_path(text: str) -> str:
    """Return a path of the container, by the rules that a configuration has for it."""
    from nsbridge.config.values import path as inner  # noqa: PLC0415

    return inner(text)


def queue_key(text: str) -> int:
    """Return a SysV queue's key."""
    from nsbridge.config.values import queue_key as key  # noqa: PLC0415

    return key(_any_integer(text))


def message_type(text: str) -> int:
    """Return a type that msgrcv(2) selects by."""
    number = _any_integer(text)
    if not I64[0] <= number <= I64[1]:
        raise ValueError("it is out of range: a type is a signed 64-bit number")
    return number


def sent_type(text: str) -> int:
    """Return a type that a sent message may have."""
    number = message_type(text)
    if number < 1:
        raise ValueError("it must be at least 1: msgsnd(2) takes no other type")
    return number


def address(text: str) -> tuple[str, int]:
    """Return a host and a port to listen on: HOST:PORT, [IPv6]:PORT."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, like [::1]:9847")
    if not colon or not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ValueError("it must be HOST:PORT, like 127.0.0.1:9847")
    return host, int(port)


def _any_integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("it must be an integer, in decimal or like 0x4d2") from None
