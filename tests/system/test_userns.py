"""Containers with user namespaces of their own: what an agent makes belongs to their users, who are others outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.queue import Queue
from tests.child import in_child
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_confinement import assert_powerless

FILES_BASE, QUEUES_BASE = 200_000, 300_000  # ids of the host that are id 0 inside
SENT, RECEIVED = 0x51, 0x52  # keys: what comes into the queue's container, what leaves it
QUEUE = f"queue = {{ in = {{ key = {SENT} }}, out = {{ key = {RECEIVED} }}, create = true }}"

# kind: (endpoint, how a program writes "hello", where it finds what came), below the directory DIR
KINDS = {
    "spool": (
        'spool = { out = "DIR/out", in = "DIR/in" }',
        "echo hello > DIR/out/.x && mv DIR/out/.x DIR/out/x",
        "DIR/in/*",
    ),
    "log": ('log = { out = "DIR/out.log", in = "DIR/in.log" }', "echo hello >> DIR/out.log", "DIR/in.log"),
    "file": ('file = { out = "DIR/one", in = "DIR/two" }', "echo hello > DIR/one", "DIR/two"),
}


def in_container(container: EngineContainer, user: tuple[int, int], then: Callable[[], object]) -> Any:
    """Return the result of `then` in the container's user and ipc namespaces, as that user of the container."""

    def child() -> object:
        joins = [(linux.CLONE_NEWUSER, "user"), (linux.CLONE_NEWIPC, "ipc")]
        opened = [(os.open(f"/proc/{container.pid}/ns/{kind}", os.O_RDONLY), flag) for flag, kind in joins]
        for fd, flag in opened:
            linux.setns(fd, flag)
        os.setgroups([])
        os.setresgid(user[1], user[1], user[1])
        os.setresuid(user[0], user[0], user[0])
        linux.clear_capabilities()  # the kernel does so for a container's root only, and we were nobody there
        return then()

    return in_child(child)


def take(key: int) -> str:
    return Queue(key, 0, 0, 1 << 16).receive(True)[0].decode()


def put(key: int, text: str) -> None:
    Queue(key, 0, 0).send(text.encode())


def sh(container: EngineContainer, command: str) -> str:
    return container.exec(["/bin/busybox", "sh", "-c", command]).stdout.decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("user", "directory"), [((1000, 1001), "/srv/a"), ((0, 0), "/dev/a")])
def test_messages_pass_and_files_belong_to_the_container_s_user(
    tmp_path: Path, runc_container: Factory, kind: str, user: tuple[int, int], directory: str
) -> None:
    """On the disk, and on a tmpfs of the container, where uid 0 of the host could not make a file (EOVERFLOW)."""
    files = runc_container(user=user, id_base=FILES_BASE)
    queues = runc_container(user=(1000, 1001), id_base=QUEUES_BASE)
    endpoint, write, came = (text.replace("DIR", directory) for text in KINDS[kind])
    if directory.startswith("/srv"):
        (files.rootfs / "srv/a").mkdir()
        os.chown(files.rootfs / "srv/a", FILES_BASE + user[0], FILES_BASE + user[1])
    else:
        sh(files, f"mkdir {directory}")
    routes = (
        f'[route.r]\n[route.r.agent.files]\ncontainer = "{files.spec}"\n{endpoint}\n'
        f'[route.r.agent.queue]\ncontainer = "{queues.spec}"\n{QUEUE}\n'
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        sh(files, write)
        assert in_container(queues, (1000, 1001), lambda: take(SENT)).strip() == "hello"
        in_container(queues, (1000, 1001), lambda: put(RECEIVED, "answer"))
        wait_until(lambda: "answer" in sh(files, f"cat {came} 2>/dev/null; true"), "the answer is in a file")
        assert sh(files, f"stat -c %u:%g {came}").split() == [f"{user[0]}:{user[1]}"]
        sh(files, f"rm {came}")
        agents = daemon.agents()
        assert_powerless(agents["r:files"]["pid"], (FILES_BASE + user[0], FILES_BASE + user[1]), filters=1)
        assert_powerless(agents["r:queue"]["pid"], (QUEUES_BASE + 1000, QUEUES_BASE + 1001), filters=1)
        assert [agent["detail"] for agent in agents.values()] == ["", ""]


@pytest.mark.parametrize(
    ("agent", "endpoint", "may_use"),
    [
        ("", "", False),  # of the container's root, and 0660
        ('user = "301000:301001"', "", True),
        ("", ', mode = "0666"', True),
    ],
)
def test_a_made_queue_belongs_to_the_configured_user(
    tmp_path: Path, runc_container: Factory, agent: str, endpoint: str, may_use: bool
) -> None:
    """If the container's init is root and its program is not, only the configuration can name the owner."""
    files, queues = runc_container(), runc_container(id_base=QUEUES_BASE)
    spool = 'spool = { out = "/srv/out", in = "/srv/in" }'
    routes = (
        f'[route.r]\n[route.r.agent.files]\ncontainer = "{files.spec}"\n{spool}\n'
        f'[route.r.agent.queue]\ncontainer = "{queues.spec}"\n{agent}\n{QUEUE.replace("true", "true" + endpoint)}\n'
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        assert in_container(queues, (1000, 1001), lambda: may_write(SENT)) == may_use
        assert in_container(queues, (0, 0), lambda: may_write(SENT)) == (not agent)


def may_write(key: int) -> bool:
    try:
        Queue(key, 0, 0).send(b"x", False)
    except Exception:  # noqa: BLE001  (sysv_ipc's own)
        return False
    return True
