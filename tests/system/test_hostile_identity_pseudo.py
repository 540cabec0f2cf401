"""A container mounts files of the kernel over its endpoint's files: no agent reads or writes them.

The kind of fault: only directories were checked for pseudo file systems, and the owner of a mounted file became the
agent's user. To this belong every file that an agent opens, in each kind of endpoint, and every pseudo file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import RuntimeContainer
from tests.system.identity_scene import SECRET, Scene, make, scene_of, write
from tests.system.room import Room, run

BASE = 200_000  # the host's id of a container's root, where it has a user namespace
IN = {"file": 'file = { in = "/data/d/in" }', "log": 'log = { in = "/data/d/in" }'}
PLAIN, MAPPED = 0, BASE
HOST = (
    ("proc/sys/kernel/core_pattern", b"core-of-a-test"),
    ("proc/sys/vm/swappiness", b"61"),
    ("proc/sys/kernel/hostname", b"renamed-by-a-test"),
    ("sys/kernel/mm/ksm/pages_to_scan", b"101"),
)


@contextmanager
def kept(path: Path) -> Iterator[bytes]:
    """Yield the content of a host's file, and restore it at the end."""
    before = path.read_bytes()
    try:
        yield before
    finally:
        if path.read_bytes() != before:
            path.write_bytes(before)


def hostile(make_one: Factory, id_base: int) -> RuntimeContainer:
    """Start a container whose root may mount, with /data/d of its root."""
    mounts = [("sysfs", "/sys")]
    container: RuntimeContainer = make_one(id_base=id_base, capabilities=["CAP_SYS_ADMIN"], mounts=mounts)
    for path in ("data", "data/d"):
        make(container.rootfs / path, id_base)
    for name in ("in", "out"):
        write(container.rootfs / "data/d" / name, b"", id_base)
    return container


@contextmanager
def attack(tmp_path: Path, evil: RuntimeContainer, peer: RuntimeContainer, endpoint: str) -> Iterator[Scene]:
    """Run a daemon between them. Only an agent in a container without a user namespace may be the host's uid 0."""
    with scene_of(tmp_path, evil, peer, endpoint) as scene:
        scene.forbidden = {0} if evil.program.id_base else set()
        yield scene


def sh(container: RuntimeContainer, command: str) -> str:
    return container.exec(["/bin/busybox", "sh", "-ec", command]).stdout.decode()


def bind(container: RuntimeContainer, source: str, name: str) -> None:
    """Replace the directory by a new one, and mount a file of the kernel over the endpoint's, as in the issue."""
    sh(
        container,
        f"busybox mv /data/d /data/e; busybox mkdir /data/d; busybox touch /data/d/{name}; "
        f"busybox mount -o bind {source} /data/d/{name}",
    )


def written(path: Path, before: bytes) -> Callable[[], list[str]]:
    return lambda: [f"{path} was {before!r}, now {path.read_bytes()!r}"] if path.read_bytes() != before else []


@pytest.mark.parametrize(("path", "value"), HOST, ids=[path.rsplit("/", 1)[1] for path, _ in HOST])
@pytest.mark.parametrize("kind", IN)
@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_hosts_kernel_files_are_not_written(
    tmp_path: Path, runc_container: Factory, id_base: int, kind: str, path: str, value: bytes
) -> None:
    """Under a running agent. Today it enters anew, becomes uid 0 of the host and writes the message into the file.

    In a container without a user namespace too: there its root could do so itself, but for the host's name.
    """
    evil, peer = hostile(runc_container, id_base), runc_container()
    target = Path("/", path)
    with kept(target) as before, attack(tmp_path, evil, peer, IN[kind]) as scene:
        scene.daemon.wait_for("RUNNING")
        scene.watched.append(written(target, before))
        bind(evil, f"/{path}", "in")
        scene.send(value)
        scene.assert_harmless("/data/d")


@pytest.mark.parametrize("kind", IN)
@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_kernel_files_are_not_written_by_the_first_agent(
    tmp_path: Path, runc_container: Factory, id_base: int, kind: str
) -> None:
    """The mount is there before the agent, so it may be meant; it is refused all the same. Today it is written."""
    evil, peer = hostile(runc_container, id_base), runc_container()
    target = Path("/proc/sys/vm/swappiness")
    with kept(target) as before:
        bind(evil, str(target), "in")
        with attack(tmp_path, evil, peer, IN[kind]) as scene:
            scene.watched.append(written(target, before))
            scene.send(b"62")
            scene.assert_harmless("/data/d")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("/proc/sys/net/ipv4/ip_default_ttl", "65"),
        ("/proc/1/oom_score_adj", "77"),
        ("/proc/1/coredump_filter", "00000001"),
    ],
    ids=["net", "oom_score_adj", "coredump_filter"],
)
@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_containers_own_kernel_files_are_not_written(
    tmp_path: Path, runc_container: Factory, id_base: int, source: str, value: str
) -> None:
    """A setting of the container's own root is not a place for messages either. Today the agent writes it."""
    evil, peer = hostile(runc_container, id_base), runc_container()
    with attack(tmp_path, evil, peer, IN["file"]) as scene:
        scene.daemon.wait_for("RUNNING")
        before = sh(evil, f"busybox cat {source}")
        bind(evil, source, "in")
        scene.watched.append(lambda: [source] if sh(evil, f"busybox cat {source}") != before else [])
        scene.send(value.encode())
        scene.assert_harmless("/data/d")


def test_control_groups_files_are_not_written(
    tmp_path: Path, runc_container: Factory, room: Room, request: pytest.FixtureRequest
) -> None:
    """A file of another control group than the container's. Today the agent writes into it as the host's root."""
    group = f"nsb-of-{tmp_path.name}"
    run(room.command(["mkdir", f"/sys/fs/cgroup/{group}"]))
    request.addfinalizer(lambda: room.remove_cgroup(group))
    evil, peer = hostile(runc_container, PLAIN), runc_container()
    sh(evil, "busybox mkdir /cgroup; busybox mount -t cgroup2 cgroup2 /cgroup")
    path = f"/cgroup/{group}/cgroup.max.depth"
    before = sh(evil, f"busybox cat {path}")
    with attack(tmp_path, evil, peer, IN["file"]) as scene:
        scene.daemon.wait_for("RUNNING")
        bind(evil, path, "in")
        scene.watched.append(lambda: [path] if sh(evil, f"busybox cat {path}") != before else [])
        scene.send(b"7")
        scene.assert_harmless("/data/d")


@pytest.mark.parametrize(
    "endpoint", ['file = { out = "/data/d/out" }', 'log = { out = "/data/d/out" }'], ids=["file", "log"]
)
@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_kernel_files_are_not_read(tmp_path: Path, runc_container: Factory, id_base: int, endpoint: str) -> None:
    """Today `file out` delivers its content, which the host's root may read; `log out` has it open."""
    evil, peer = hostile(runc_container, id_base), runc_container()
    secret = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    with attack(tmp_path, evil, peer, endpoint) as scene:
        scene.daemon.wait_for("RUNNING")
        scene.watched.append(lambda: ["delivered"] if secret.strip() in scene.received() else [])
        bind(evil, "/proc/sys/kernel/random/boot_id", "out")
        scene.assert_harmless("/data/d")


@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_kernel_file_in_a_spool_is_left_alone(tmp_path: Path, runc_container: Factory, id_base: int) -> None:
    """It is not delivered, what is behind it is, and the log says why. Today an agent of uid 0 delivers its content."""
    evil, peer = hostile(runc_container, id_base), runc_container()
    secret = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    sh(evil, "busybox touch /data/d/a; busybox mount -o bind /proc/sys/kernel/random/boot_id /data/d/a")
    write(evil.rootfs / "data/d/z", b"behind it", id_base)
    with attack(tmp_path, evil, peer, 'spool = { out = "/data/d" }') as scene:
        scene.wait_received(b"behind it")
        assert secret.strip() not in scene.received()
        assert "/data/d/a" in scene.daemon.said(), "the log names it"


@pytest.mark.parametrize("id_base", [MAPPED, PLAIN], ids=["mapped", "plain"])
def test_file_mounted_into_a_spool_is_left_alone(tmp_path: Path, runc_container: Factory, id_base: int) -> None:
    """A file of another mount than its directory's, though on no pseudo file system. Today it is delivered."""
    (tmp_path / "host").mkdir()
    foreign = write(tmp_path / "host/secret", SECRET, id_base)
    evil = runc_container(id_base=id_base, capabilities=["CAP_SYS_ADMIN"], volumes={"/vol": tmp_path / "host"})
    peer = runc_container()
    for path in ("data", "data/d"):
        make(evil.rootfs / path, id_base)
    sh(evil, f"busybox touch /data/d/a; busybox mount -o bind /vol/{foreign.name} /data/d/a")
    write(evil.rootfs / "data/d/z", b"behind it", id_base)
    with attack(tmp_path, evil, peer, 'spool = { out = "/data/d" }') as scene:
        scene.wait_received(b"behind it")
        assert SECRET not in scene.received()
        assert "/data/d/a" in scene.daemon.said(), "the log names it"


@pytest.mark.parametrize("endpoint", ['spool = { in = "/data/d" }', 'spool = { out = "/data/o", done = "/data/d" }'])
@pytest.mark.parametrize("source", ["/proc/sys/net/ipv4", "/proc/1", "/sys/kernel/mm/ksm"])
def test_kernels_directories_are_refused(tmp_path: Path, runc_container: Factory, endpoint: str, source: str) -> None:
    """Today too, but by an agent that is uid 0 of the host."""
    evil, peer = hostile(runc_container, MAPPED), runc_container()
    make(evil.rootfs / "data/o", MAPPED)
    sh(evil, f"busybox mount -o bind {source} /data/d")
    with attack(tmp_path, evil, peer, endpoint) as scene:
        scene.assert_harmless("/data/d")


def assert_own(scene: Scene, pid: int) -> None:
    for kind in ("uts", "net"):
        spaces = {str(Path(f"/proc/{who}/ns/{kind}").readlink()) for who in ("self", scene.evil.pid)}
        assert str(Path(f"/proc/{pid}/ns/{kind}").readlink()) not in spaces, kind


@pytest.mark.senders
def test_agents_have_uts_and_net_namespaces_of_their_own(tmp_path: Path, runc_container: Factory) -> None:
    """Files', queues' and senders. Today they are in the host's, so that what they touch by accident is the host's."""
    evil, peer = runc_container(), runc_container()
    queue = "queue = { in = { key = 0x51 }, create = true }"
    with attack(tmp_path, evil, peer, queue) as scene:
        scene.daemon.wait_for("RUNNING")
        agents = scene.daemon.agents()
        assert agents["r:evil"]["senders"]
        for pid in [agents["r:peer"]["pid"], agents["r:evil"]["pid"], *agents["r:evil"]["senders"]]:
            assert_own(scene, pid)
