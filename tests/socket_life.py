"""Unix sockets as the supervisor makes them, and a counter of their messages."""

from __future__ import annotations

import socket

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.socket.calls import NUMBERS
from nsbridge.agents.endpoints.socket.config import SocketType
from tests.fake_counter import FakeCounter


@pytest.fixture(name="counter")
def counter_fixture(monkeypatch: pytest.MonkeyPatch) -> FakeCounter:
    """Follow the real calls, as the kernel does: a call and its count are one step."""
    made, prepared = FakeCounter(), linux.prepared

    def prepare(number: int, *arguments: int | bytes) -> object:
        call, passed = prepared(number, *arguments)

        def counting() -> int:
            result = call()
            if result >= 0 and number in NUMBERS["pwritev2"]:
                made.sent += 1
            elif result >= 0:
                made.received += 1
                made._lengths.append(result)
            return result

        return counting, passed

    monkeypatch.setattr(linux, "prepared", prepare)
    return made


def held(kind: SocketType) -> socket.socket:
    """Return a socket as the supervisor makes it."""
    made = socket.socket(socket.AF_UNIX, kind.number)
    made.setblocking(False)
    return made
