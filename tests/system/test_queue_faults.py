"""Queues of real containers: any type and length, another owner, and another key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.queue import Queue
from tests.child import in_child
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.faults import says, says_nothing
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.test_dead_letters import ctl, listed, set_msgmax
from tests.system.test_faults_room import fill, small_state_dir
from tests.system.traffic import Sent, put_into_spool, send_all, wait_for_files

KEY, OTHER = 0x61, 0x62
DELIVERIES = ["exactly-once", "at-least-once"]
MIB = 1 << 20


def in_ipc(container: EngineContainer, then: Callable[[], object]) -> object:
    """Do it in the container's ipc namespace, as the host's root; its result."""
    fd = os.open(f"/proc/{container.pid}/ns/ipc", os.O_RDONLY)

    def child() -> object:
        linux.setns(fd, linux.CLONE_NEWIPC)
        return then()

    try:
        return in_child(child)
    finally:
        os.close(fd)


def send(key: int, mtype: int, body: bytes) -> None:
    """Send by the kernel's call: sysv_ipc knows no type beyond a C int."""
    message = bytearray(mtype.to_bytes(8, "little") + body)
    assert linux.try_msgsnd(Queue(key, 0, 0).id, linux.address_of(message), len(body)) == 0


def receive(key: int, longest: int = 65536) -> list[int] | None:
    """Return the type and length of the next message, None if there is none."""
    buffer = bytearray(8 + longest)
    length = linux.try_msgrcv(Queue(key, 0, 0).id, linux.address_of(buffer), longest, 0, linux.IPC_NOWAIT)
    return None if length < 0 else [int.from_bytes(buffer[:8], "little"), length]


def agent(name: str, container: EngineContainer | str, endpoint: str, more: str = "") -> str:
    spec = container if isinstance(container, str) else container.spec
    return f'[route.r.agent.{name}]\ncontainer = "{spec}"\n{endpoint}\n{more}\n'


def queue_to_queue(one: EngineContainer, two: EngineContainer, delivery: str, out: str = "", in_: str = "") -> str:
    return (
        f'[route.r]\ndelivery = "{delivery}"\n'
        + agent("one", one, f'queue = {{ out = {{ key = {KEY}{out} }}, create = true, max_message = "4MiB" }}')
        + agent("two", two, f'queue = {{ in = {{ key = {OTHER}{in_} }}, create = true, max_message = "4MiB" }}')
    )


def raise_limits(container: EngineContainer, size: int) -> None:
    set_msgmax(container, size)
    write = f"echo {size} > /proc/sys/kernel/msgmnb"
    run(["nsenter", f"--target={container.pid}", "--ipc", "--", "sh", "-c", write])


# Types and lengths


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("select", ["", ", type = -9223372036854775808"], ids=["any", "lowest"])
def test_every_type_passes_from_queue_to_queue(
    tmp_path: Path, unshare_container: Factory, delivery: str, select: str
) -> None:
    """Types up to 2^63-1, empty messages and the longest: no agent dies, and what follows passes too."""
    one, two = unshare_container(), unshare_container()
    sent = [[1, 0], [1 << 31, 5], [(1 << 31) - 1, 8192], [(1 << 63) - 1, 0], [1 << 40, 8192]]
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery, out=select)) as daemon:
        daemon.wait_for("RUNNING")
        for number, (mtype, size) in enumerate(sent, 1):
            in_ipc(one, lambda: send(KEY, mtype, bytes(size)))  # noqa: B023
            wait_until(lambda: daemon.flow("r:one")["delivered"] == number, f"message {number}")  # noqa: B023
            assert in_ipc(two, lambda: receive(OTHER)) == [mtype, size]
        assert {one["restarts"] for one in daemon.agents().values()} == {0}


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_configured_type_beyond_a_c_int_is_given(tmp_path: Path, unshare_container: Factory, delivery: str) -> None:
    """Also while the queue is full, when another call sends."""
    one, two = unshare_container(), unshare_container()
    given = 1 << 62
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery, in_=f", type = {given}")) as daemon:
        daemon.wait_for("RUNNING")
        send_all(one, KEY, [Sent(1, bytes(8000))] * 3)
        says(daemon, "r:two", "queue full")
        for _ in range(3):
            wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [given, 8000], "the next")
        assert {one["restarts"] for one in daemon.agents().values()} == {0}


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_dead_letter_keeps_a_large_type(tmp_path: Path, unshare_container: Factory, delivery: str) -> None:
    """Put aside, given back and delivered with its type."""
    one, two = unshare_container(), unshare_container()
    large = (1 << 63) - 1
    raise_limits(one, 65536)
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery)) as daemon:
        daemon.wait_for("RUNNING")
        in_ipc(one, lambda: send(KEY, large, bytes(9000)))
        wait_until(lambda: len(listed(daemon)) == 1, "it is put aside")
        assert listed(daemon)[0]["type"] == large
        set_msgmax(two, 65536)
        assert ctl(daemon, "dead", "retry", "all").returncode == 0
        wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [large, 9000], "it is delivered")


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_message_over_one_mebibyte_passes_within_max_message(
    tmp_path: Path, unshare_container: Factory, delivery: str
) -> None:
    """Its limits were raised; a longer one stays in its queue with a reason, and its removal ends that."""
    one, two = unshare_container(), unshare_container()
    for container in (one, two):
        raise_limits(container, 16 * MIB)
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery)) as daemon:
        daemon.wait_for("RUNNING")
        for size in (MIB + 1, 4 * MIB):
            in_ipc(one, lambda: send(KEY, 7, bytes(size)))  # noqa: B023
            wait_until(lambda: in_ipc(two, lambda: receive(OTHER, 16 * MIB)) == [7, size], "it passes")  # noqa: B023
        in_ipc(one, lambda: send(KEY, 7, bytes(4 * MIB + 1)))
        says(daemon, "r:one", "the next message is longer than max_message = 4194304")
        in_ipc(one, lambda: send(KEY, 7, b"behind"))
        assert in_ipc(one, lambda: receive(KEY, 16 * MIB)) == [7, 4 * MIB + 1], "it is still there"
        wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [7, 6], "what stood behind it passes")
        says_nothing(daemon, "r:one")
        assert {one["restarts"] for one in daemon.agents().values()} == {0}


def test_foreign_type_that_is_too_long_holds_nothing_up(tmp_path: Path, unshare_container: Factory) -> None:
    """It is of no type that the agent takes; what comes behind it passes."""
    one, two = unshare_container(), unshare_container()
    raise_limits(one, 16 * MIB)
    with Nsbridged(tmp_path, queue_to_queue(one, two, "exactly-once", out=", type = 7")) as daemon:
        daemon.wait_for("RUNNING")
        in_ipc(one, lambda: send(KEY, 9, bytes(5 * MIB)))
        in_ipc(one, lambda: send(KEY, 7, b"ours"))
        wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [7, 4], "it passes")
        assert daemon.agents()["r:one"]["detail"] == ""


# Limits


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_lowered_limits_bury_no_message(tmp_path: Path, unshare_container: Factory, delivery: str) -> None:
    """kernel.msgmax of its namespace, and msg_qbytes of the queue: waited for, as shown, and then delivered."""
    one, two = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery)) as daemon:
        daemon.wait_for("RUNNING")
        lowered: list[tuple[Callable[[], object], str, Callable[[], object]]] = [
            (lambda: set_msgmax(two, 10), "kernel.msgmax there is 10", lambda: set_msgmax(two, 8192)),
            (
                lambda: in_ipc(two, lambda: setattr(Queue(OTHER, 0, 0), "max_size", 1)),
                "msg_qbytes is 1",
                lambda: in_ipc(two, lambda: setattr(Queue(OTHER, 0, 0), "max_size", 16384)),
            ),
        ]
        for lower, reason, lift in lowered:
            lower()
            send_all(one, KEY, [Sent(1, bytes(100))])
            says(daemon, "r:two", reason)
            lift()
            wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [1, 100], "it is delivered")
            says_nothing(daemon, "r:two")
        assert daemon.flow("r:one")["dead"] == 0


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_limit_raised_and_lowered_while_used_buries_nothing(
    tmp_path: Path, unshare_container: Factory, delivery: str
) -> None:
    """A message within a former limit waits; a limit that was raised after the queue was opened counts too."""
    one, two = unshare_container(), unshare_container()
    raise_limits(one, 65536)
    with Nsbridged(tmp_path, queue_to_queue(one, two, delivery)) as daemon:
        daemon.wait_for("RUNNING")
        set_msgmax(two, 65536)
        in_ipc(one, lambda: send(KEY, 1, bytes(9000)))
        wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [1, 9000], "it passes")
        set_msgmax(two, 8192)
        in_ipc(one, lambda: send(KEY, 1, bytes(9000)))
        says(daemon, "r:two", "kernel.msgmax there is 8192")
        set_msgmax(two, 65536)
        wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [1, 9000], "it passes again")
        assert daemon.flow("r:one")["dead"] == 0


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_dead_letter_without_space_is_written_later(tmp_path: Path, unshare_container: Factory, delivery: str) -> None:
    """A full state_dir, and nothing else happens than that room is made."""
    one, two = unshare_container(), unshare_container()
    raise_limits(one, 65536)
    with small_state_dir(tmp_path, "12m") as state, Nsbridged(tmp_path, queue_to_queue(one, two, delivery)) as daemon:
        daemon.wait_for("RUNNING")
        send_all(one, KEY, [Sent(1, b"first")])
        wait_until(lambda: daemon.flow("r:one")["delivered"] == 1, "the first is delivered")
        filler = fill(state)
        in_ipc(one, lambda: send(KEY, 1, bytes(20_000)))
        too_long = "a message too long for queue 0x" + f"{OTHER:x} (20,000 B)"
        says(daemon, "r:two", f"state_dir {state} is full, so {too_long} cannot be set aside: free space there")
        filler.unlink()
        wait_until(lambda: daemon.flow("r:one")["dead"] == 1, "it is put aside")
        says_nothing(daemon, "r:two")
        assert {one["restarts"] for one in daemon.agents().values()} == {0}


# Another owner


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("side", ["out", "in"])
def test_queue_made_again_by_another_user_is_served(
    tmp_path: Path, unshare_container: Factory, delivery: str, side: str
) -> None:
    """With mode 0600: the agent enters anew as its owner, says so, and no status calls it removed.

    The kind: an owner, mode or absence that the agent's identity was decided by, and that has changed since.
    """
    one, two = unshare_container(), unshare_container()

    def make_again() -> None:
        Queue(OTHER, 0, 0).remove()
        os.setresgid(4321, 4321, 4321)
        os.setresuid(4321, 4321, 4321)
        Queue(OTHER, 0o3000, 0o600)

    spool = f'spool = {{ {"in" if side == "out" else "out"} = "/srv/s" }}'
    queue = f"queue = {{ {side} = {{ key = {OTHER} }}, create = true }}"
    routes = f'[route.r]\ndelivery = "{delivery}"\n' + agent("files", one, spool) + agent("queue", two, queue)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        in_ipc(two, make_again)
        if side == "out":
            in_ipc(two, lambda: send(OTHER, 1, b"body"))
            (file,) = wait_for_files(one.rootfs / "srv/s", 1)
            assert file.read_bytes() == b"body"
        else:
            put_into_spool(one.rootfs / "srv/s", [b"body"])
            wait_until(lambda: in_ipc(two, lambda: receive(OTHER)) == [1, 4], "it is delivered")
        assert "now belongs to uid 4321 gid 4321" in daemon.said()
        assert daemon.agents()["r:queue"]["detail"] == ""


def test_mode_that_refuses_its_owner_restarts_no_agent(tmp_path: Path, unshare_container: Factory) -> None:
    """The same owner would be chosen again: the agent waits and says who is refused."""
    one, two = unshare_container(), unshare_container()

    def refuse() -> None:
        queue = Queue(OTHER, 0, 0)
        queue.uid, queue.gid, queue.mode = 4321, 4321, 0

    routes = "[route.r]\n" + agent("files", one, 'spool = { in = "/srv/s" }')
    routes += agent("queue", two, f"queue = {{ out = {{ key = {OTHER} }} }}")
    in_ipc(two, lambda: Queue(OTHER, 0o3000, 0o600).id)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        in_ipc(two, refuse)
        wait_until(lambda: daemon.agents()["r:queue"]["restarts"] == 1, "it has entered anew as the new owner")
        says(daemon, "r:queue", "no permission for uid 4321")
        pid = daemon.agents()["r:queue"]["pid"]
        in_ipc(two, lambda: setattr(Queue(OTHER, 0, 0), "mode", 0o600))
        says_nothing(daemon, "r:queue")
        assert daemon.agents()["r:queue"]["pid"] == pid


# The key follows its file


@pytest.mark.parametrize("side", ["out", "in"])
def test_key_follows_the_file_that_it_is_made_of(tmp_path: Path, unshare_container: Factory, side: str) -> None:
    """`mv key key.old; touch key`: the old queue is there still, and the program uses its new one."""
    one, two = unshare_container(), unshare_container()
    file = two.rootfs / "srv/key"
    file.touch()

    def key() -> int:
        status = file.stat()
        return int(1 << 24 | (status.st_dev & 0xFF) << 16 | (status.st_ino & 0xFFFF))

    spool = f'spool = {{ {"in" if side == "out" else "out"} = "/srv/s" }}'
    queue = f'queue = {{ {side} = {{ key = {{ path = "/srv/key", proj = 1 }} }} }}'
    routes = "[route.r]\n" + agent("files", one, spool) + agent("queue", two, queue)
    in_ipc(two, lambda: Queue(key(), 0o3000, 0o600).id)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        before = key()
        file.rename(file.with_name("key.old"))
        file.touch()
        assert key() != before
        in_ipc(two, lambda: Queue(key(), 0o3000, 0o600).id)
        wait_until(lambda: f"is {key():#x} now, it was {before:#x}" in daemon.said(), "it is noticed")
        daemon.wait_for("RUNNING")
        if side == "out":
            in_ipc(two, lambda: send(key(), 1, b"body"))
            (got,) = wait_for_files(one.rootfs / "srv/s", 1)
            assert got.read_bytes() == b"body"
        else:
            put_into_spool(one.rootfs / "srv/s", [b"body"])
            wait_until(lambda: in_ipc(two, lambda: receive(key())) == [1, 4], "it is in the new queue")
        assert daemon.said().count("was replaced: the key") == 1
