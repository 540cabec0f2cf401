"""The socket that the supervisor holds for an agent: one and the same, until it is dropped."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from nsbridge.agents.endpoints.socket.config import SocketEndpoint, SocketType
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config.schema import Endpoint
from nsbridge.supervisor.lifecycle.heldsocket import HeldSocket


@pytest.mark.parametrize("endpoint", [SpoolEndpoint(out="/a"), SocketEndpoint(in_="/a")])
def test_agent_without_such_a_source_gets_none(endpoint: Endpoint) -> None:
    held = HeldSocket(endpoint)
    assert held.fd() == -1
    held.drop()


@pytest.mark.parametrize("kind", SocketType)
def test_successor_gets_the_same_socket_until_it_is_dropped(kind: SocketType) -> None:
    held = HeldSocket(SocketEndpoint(out="/a", type=kind))
    fd = held.fd()
    assert held.fd() == fd
    before = os.fstat(fd)
    assert stat.S_ISSOCK(before.st_mode)
    assert not os.get_blocking(fd)
    with socket.socket(fileno=os.dup(fd)) as same:
        assert (same.family, same.type) == (socket.AF_UNIX, kind.number)
        held.drop()
        assert os.fstat(held.fd()).st_ino != before.st_ino
    held.drop()
