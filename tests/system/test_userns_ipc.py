"""POSIX queues and Unix sockets of containers that have user namespaces of their own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.posix_queue import PosixQueue
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_userns import FILES_BASE, QUEUES_BASE, in_container

USER = (1000, 1001)


def put(name: str, body: bytes, priority: int) -> None:
    with PosixQueue(name, mode=0o600) as queue:
        queue.send(body, priority)


def take(name: str) -> list[object]:
    with PosixQueue(name) as queue:
        about = os.fstat(queue.fd)
        body, priority = queue.receive()
        return [body.decode(), priority, about.st_uid, about.st_mode & 0o777]


@pytest.mark.parametrize("user", [USER, (0, 0)])
def test_messages_pass_and_belong_to_the_container_s_user(
    tmp_path: Path, runc_container: Factory, user: tuple[int, int]
) -> None:
    """One queue is the program's, the other is made by the agent; the socket and its directory are the program's."""
    queues = runc_container(user=user, id_base=QUEUES_BASE)
    files = runc_container(user=user, id_base=FILES_BASE)
    directory = files.rootfs / "srv/a"
    directory.mkdir()
    os.chown(directory, FILES_BASE + user[0], FILES_BASE + user[1])
    routes = (
        f'[route.r]\n[route.r.agent.q]\ncontainer = "{queues.spec}"\n'
        'mqueue = { out = { name = "/o" }, in = { name = "/i", priority = 7 }, create = true, mode = "0600" }\n'
        f'[route.r.agent.s]\ncontainer = "{files.spec}"\n'
        'socket = { out = "/srv/a/out", in = "/srv/a/in", mode = "0600" }\n'
    )
    in_container(queues, user, lambda: put("/o", b"hello", 3))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader, Nsbridged(tmp_path, routes) as daemon:
        reader.bind(str(directory / "in"))
        os.chown(directory / "in", FILES_BASE + user[0], FILES_BASE + user[1])
        daemon.wait_for("RUNNING")
        reader.settimeout(10)
        assert reader.recv(100) == b"hello"
        wait_until((directory / "out").exists, "it is bound")
        about = (directory / "out").stat()
        assert (about.st_uid, about.st_mode & 0o777) == (FILES_BASE + user[0], 0o600)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
            program.connect(str(directory / "out"))
            program.send(b"answer")
        assert in_container(queues, user, lambda: take("/i")) == ["answer", 7, user[0], 0o600]
        assert {agent["restarts"] for agent in daemon.agents().values()} == {0}, daemon.said()
