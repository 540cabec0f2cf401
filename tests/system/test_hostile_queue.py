"""A queue in hostile hands: its own route waits and says why, is not restarted and idles; a second one continues."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.queue import Queue
from tests.child import in_child
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_endpoints import wait_for_detail
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

IN, OUT = 0x51, 0x52  # keys
OURS, FOREIGN = 5, 9  # types
AGENT, STRANGER = 1000, 4242  # users
LOOKED_AT = 1.0  # seconds


def in_ipc(container: EngineContainer, then: Callable[[], object]) -> None:
    """Do it in the container's ipc namespace, as its root."""
    fd = os.open(f"/proc/{container.pid}/ns/ipc", os.O_RDONLY)

    def child() -> None:
        linux.setns(fd, linux.CLONE_NEWIPC)
        then()

    try:
        in_child(child)
    finally:
        os.close(fd)


def make_queues() -> None:
    """Make them as a user other than the agent; that user is their owner then."""
    for key in (IN, OUT):
        queue = Queue(key, 0o3000, 0o600)
        queue.uid = AGENT


@contextmanager
def two_routes(tmp_path: Path, make: Factory) -> Iterator[tuple[Nsbridged, EngineContainer, EngineContainer]]:
    """Serve `r` with the queue's container, which is hostile, and one with files; `good` beside it."""
    evil, files, good = make(), make(), make()
    in_ipc(evil, make_queues)
    queue = f"queue = {{ in = {{ key = {IN}, type = {OURS} }}, out = {{ key = {OUT}, type = {OURS} }} }}"
    spool = 'spool = { out = "/srv/out", in = "/srv/in" }'
    routes = (
        f'[route.r]\n[route.r.agent.files]\ncontainer = "{files.spec}"\n{spool}\n'
        f'[route.r.agent.queue]\ncontainer = "{evil.spec}"\nuser = "{AGENT}:{AGENT}"\n{queue}\n'
        f'[route.good]\n[route.good.agent.files]\ncontainer = "{files.spec}"\nspool = {{ in = "/srv/good" }}\n'
        f'[route.good.agent.queue]\ncontainer = "{good.spec}"\nqueue = {{ out = {{ key = {OUT} }}, create = true }}\n'
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        yield daemon, evil, files
        send_all(good, OUT, [Sent(1, b"untouched")])
        wait_for_files(files.rootfs / "srv/good", 1)
        assert {agent["restarts"] for agent in daemon.agents().values()} == {0}


def cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def assert_idles(daemon: Nsbridged) -> None:
    """Assert that it uses less than a quarter of a processor meanwhile, its senders included."""
    agent = daemon.agents()["r:queue"]
    processes = [agent["pid"], *agent["senders"]]
    before = sum(map(cpu, processes))
    time.sleep(LOOKED_AT)  # the time that is measured
    assert sum(map(cpu, processes)) - before < LOOKED_AT / 4


def set_owner(uid: int) -> None:
    for key in (IN, OUT):
        Queue(key, 0, 0).uid = uid


def set_mode(mode: int) -> None:
    for key in (IN, OUT):
        Queue(key, 0, 0).mode = mode


@pytest.mark.parametrize(
    ("take", "give_back"),
    [(lambda: set_owner(STRANGER), lambda: set_owner(AGENT)), (lambda: set_mode(0), lambda: set_mode(0o600))],
    ids=["owner", "mode"],
)
def test_a_queue_that_became_forbidden_is_waited_for(
    tmp_path: Path, runc_container: Factory, take: Callable[[], None], give_back: Callable[[], None]
) -> None:
    """Nothing is lost in either direction, and status says who is refused."""
    with two_routes(tmp_path, runc_container) as (daemon, evil, files):
        in_ipc(evil, take)
        send_all(evil, OUT, [Sent(OURS, b"out")])
        put_into_spool(files.rootfs / "srv/out", [b"in"])
        wait_for_detail(daemon, "r:queue", "queue 0x52 and 0x51: no permission for uid 1000")
        assert_idles(daemon)
        in_ipc(evil, give_back)
        assert [file.read_bytes() for file in wait_for_files(files.rootfs / "srv/in", 1)] == [b"out"]
        with Receiver(evil, IN, 1) as receiver:
            assert receiver.messages() == [Sent(OURS, b"in")]
        wait_until(lambda: daemon.agents()["r:queue"]["detail"] == "", "nothing is refused any more")


def test_a_queue_remade_in_a_loop_costs_no_agent(tmp_path: Path, runc_container: Factory) -> None:
    """Messages sent after the loop arrive."""

    def churn() -> None:
        for _ in range(300):
            for key in (IN, OUT):
                Queue(key, 0, 0).remove()
            make_queues()
            time.sleep(0.003)  # so that the agent finds some of them

    with two_routes(tmp_path, runc_container) as (daemon, evil, files):
        pid = daemon.agents()["r:queue"]["pid"]
        before = cpu(pid)
        in_ipc(evil, churn)
        assert cpu(pid) - before < 1.0
        send_all(evil, OUT, [Sent(OURS, b"out")])
        assert [file.read_bytes() for file in wait_for_files(files.rootfs / "srv/in", 1)] == [b"out"]
        put_into_spool(files.rootfs / "srv/out", [b"in"])
        with Receiver(evil, IN, 1) as receiver:
            assert receiver.messages() == [Sent(OURS, b"in")]


@pytest.mark.senders  # with the counter nothing is searched
def test_a_stranger_s_full_queue_is_not_searched_endlessly(tmp_path: Path, runc_container: Factory) -> None:
    """It holds foreign messages, empty ones and huge ones; ours waits behind them, and the agent's heart beats on."""

    def fill() -> None:
        queue = Queue(OUT, 0, 0)
        for _ in range(12_000):
            queue.send(b"", False, FOREIGN)
        queue.send(b"ours", False, OURS)
        inward = Queue(IN, 0, 0, 1 << 14)
        inward.send(b"x" * 8192, False, FOREIGN)
        inward.send(b"x" * 8192, False, 1 << 30)

    def drain() -> None:
        queue = Queue(OUT, 0, 0)
        for _ in range(12_000):
            queue.receive(False, FOREIGN)
        inward = Queue(IN, 0, 0, 1 << 14)
        inward.receive(False, FOREIGN)
        inward.receive(False, 1 << 30)

    with two_routes(tmp_path, runc_container) as (daemon, evil, files):
        in_ipc(evil, fill)
        put_into_spool(files.rootfs / "srv/out", [b"in"])
        wait_for_detail(daemon, "r:queue", "queue 0x52: 1024 messages of other types are in front", "queue full")
        assert_idles(daemon)
        in_ipc(evil, drain)
        assert [file.read_bytes() for file in wait_for_files(files.rootfs / "srv/in", 1)] == [b"ours"]
        with Receiver(evil, IN, 1) as receiver:
            assert receiver.messages() == [Sent(OURS, b"in")]
