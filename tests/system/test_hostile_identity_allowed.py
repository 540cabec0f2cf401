"""Ordinary containers under the identity rule: whose files an agent uses, follows and makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sysv_ipc import IPC_CREX, MessageQueue

from nsbridge.agents import linux
from tests.child import in_child
from tests.system.conftest import Factory
from tests.system.engines import RuntimeContainer
from tests.system.identity_scene import MESSAGE, USER, Scene, give, link, make, scene_of, write
from tests.system.room import wait_until

BASE = 200_000  # the host's id of a container's root
KEY = 0x51
BOTH = {  # endpoints with both sides, below a directory DIR
    "spool": 'spool = { out = "DIR/out", in = "DIR/in" }',
    "log": 'log = { out = "DIR/out.log", in = "DIR/in.log" }',
    "file": 'file = { out = "DIR/one", in = "DIR/two" }',
}


def messages_pass(scene: Scene, directory: Path, kind: str, owner: int) -> None:
    """Pass one message in each direction, by a program of that user; the agent's files belong to the same user."""
    scene.daemon.wait_for("RUNNING")
    assert scene.agent()["phase"] != "blocked", scene.agent()["detail"]
    match kind:
        case "spool":
            write(directory / "out/x", b"from inside", owner)
        case "log":
            with (directory / "out.log").open("ab") as file:
                file.write(b"from inside\n")
        case "file":
            (directory / "one").write_bytes(b"from inside")
    scene.wait_received(b"from inside")
    scene.send()
    came = {"spool": directory / "in", "log": directory / "in.log", "file": directory / "two"}[kind]
    wait_until(lambda: MESSAGE in _content(came), "the peer's message is delivered", 20)
    assert scene.owner() == owner
    assert came.stat().st_uid == owner


def _content(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in (path.iterdir() if path.is_dir() else [path]))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("owner", [0, USER])
@pytest.mark.parametrize("id_base", [0, BASE], ids=["plain", "mapped"])
def test_owner_of_the_directory_is_served(
    tmp_path: Path, runc_container: Factory, id_base: int, owner: int, kind: str
) -> None:
    """Root's files, and a program's in a path of root's. Today too."""
    evil, peer = runc_container(id_base=id_base), runc_container()
    for path in ("data", "data/app"):
        make(evil.rootfs / path, id_base)
    directory = make(evil.rootfs / "data/app/d", id_base + owner)
    with scene_of(tmp_path, evil, peer, BOTH[kind].replace("DIR", "/data/app/d")) as scene:
        messages_pass(scene, directory, kind, id_base + owner)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("target", ["/run", "../run"])
def test_roots_link_in_the_path_is_followed(tmp_path: Path, runc_container: Factory, target: str, kind: str) -> None:
    """/var/run is one nearly everywhere, absolute or relative (F15). Every kind of endpoint has the same rule.

    Today a spool below it works; a log or file whose directory is the link itself is refused.
    """
    evil, peer = runc_container(), runc_container()
    link(evil.rootfs / "var/run", target, 0)
    with scene_of(tmp_path, evil, peer, BOTH[kind].replace("DIR", "/var/run")) as scene:
        messages_pass(scene, evil.rootfs / "run", kind, 0)


@pytest.mark.parametrize("kind", BOTH)
def test_roots_link_to_a_users_directory_is_followed(tmp_path: Path, runc_container: Factory, kind: str) -> None:
    """Root's link in root's directory: the container's administrator chose it. Today too, but for a last link (F15)."""
    evil, peer = runc_container(), runc_container()
    directory = make(evil.rootfs / "home/app")
    link(evil.rootfs / "srv/app", "/home/app", 0)
    with scene_of(tmp_path, evil, peer, BOTH[kind].replace("DIR", "/srv/app")) as scene:
        messages_pass(scene, directory, kind, USER)


@pytest.mark.parametrize("kind", BOTH)
def test_users_link_to_the_users_directory_is_followed(tmp_path: Path, runc_container: Factory, kind: str) -> None:
    """The owner stays the same all the way. Today too, but for a log or file whose directory is the link (F15)."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    directory = make(evil.rootfs / "home/app/current")
    link(evil.rootfs / "home/app/d", "current")
    with scene_of(tmp_path, evil, peer, BOTH[kind].replace("DIR", "/home/app/d")) as scene:
        messages_pass(scene, directory, kind, USER)


@pytest.mark.parametrize("target", ["/home/app/current", "../app/./current"])
def test_users_link_by_way_of_roots_directory(tmp_path: Path, runc_container: Factory, target: str) -> None:
    """It may be followed, for it ends where it began, or refused with a reason. Today it is followed."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    for path in ("home/app/current", "home/app/current/out"):
        make(evil.rootfs / path)
    link(evil.rootfs / "home/app/d", target)
    write(evil.rootfs / "home/app/current/out/x", b"from inside")
    with scene_of(tmp_path, evil, peer, 'spool = { out = "/home/app/d/out" }') as scene:
        reason = scene.wait_refused(lambda: scene.owner() == USER and b"from inside" in scene.received())
        assert not scene.harm()
        assert not reason or "/home/app/d" in reason, reason


@pytest.mark.parametrize("kind", BOTH)
def test_configured_user_is_served(tmp_path: Path, runc_container: Factory, kind: str) -> None:
    """Setting `user` decides if the directory's owner differs. Today too."""
    evil, peer = runc_container(), runc_container()
    directory = make(evil.rootfs / "data", 0, 0o777)
    for name in ("out", "in"):
        make(directory / name, 0, 0o777)
    endpoint = BOTH[kind].replace("DIR", "/data")
    with scene_of(tmp_path, evil, peer, endpoint, f'user = "{USER}:{USER}"') as scene:
        scene.daemon.wait_for("RUNNING")
        assert scene.owner() == USER
        if kind == "spool":
            write(directory / "out/x", b"from inside")
            scene.wait_received(b"from inside")


def test_configured_user_of_a_volume_is_served(tmp_path: Path, runc_container: Factory) -> None:
    """A host's user that the operator names, in a container with a user namespace that does not map it.

    It may also be refused with a reason that names `user`; the agent is never the host's root. Today it is served.
    """
    (tmp_path / "volume").mkdir()
    make(tmp_path / "volume/out", 4242)
    evil, peer = runc_container(id_base=BASE, volumes={"/vol": tmp_path / "volume"}), runc_container()
    with scene_of(tmp_path, evil, peer, 'spool = { out = "/vol/out" }', 'user = "4242:4242"') as scene:
        reason = scene.wait_refused(lambda: scene.owner() == 4242)
        assert not scene.harm()
        assert not reason or "user" in reason, reason


def test_log_file_that_is_a_volume_is_served(tmp_path: Path, runc_container: Factory) -> None:
    """A file of the host mounted over one name, as `docker run -v FILE:FILE` does, before the agent came. Today too."""
    host = write(tmp_path / "app.log", b"", 0)
    evil, peer = runc_container(volumes={"/srv/app.log": host}), runc_container()
    with scene_of(tmp_path, evil, peer, 'log = { out = "/srv/app.log" }') as scene:
        scene.daemon.wait_for("RUNNING")
        assert scene.agent()["phase"] != "blocked", scene.agent()["detail"]
        with host.open("ab") as file:
            file.write(b"from inside\n")
        scene.wait_received(b"from inside")


# -- what is missing (faults issue, F8)


@pytest.mark.parametrize(
    ("endpoint", "command"),
    [
        ('log = { out = "/tmp/app.log" }', "echo 'from inside' >> /tmp/app.log"),
        ('spool = { out = "/tmp/out" }', "echo 'from inside' > /tmp/out/.x; busybox mv /tmp/out/.x /tmp/out/x"),
        ('file = { out = "/tmp/one" }', "echo 'from inside' > /tmp/one"),
    ],
    ids=["log", "spool", "file"],
)
def test_missing_out_belongs_to_the_containers_program(
    tmp_path: Path, runc_container: Factory, endpoint: str, command: str
) -> None:
    """In root's directory 1777. The program of uid 1000 can use it; if nsbridge makes it, the log says so.

    Today the agent is uid 0 and makes it 0660 for itself, so that the program can not open its own file.
    """
    evil, peer = runc_container(user=(USER, USER)), runc_container()
    place = evil.rootfs / endpoint.split('"')[1][1:]
    with scene_of(tmp_path, evil, peer, endpoint) as scene:
        scene.daemon.wait_for("RUNNING")
        if place.exists():
            assert (place.stat().st_uid, place.stat().st_gid) == (USER, USER)
            said = [
                line for line in scene.daemon.said().splitlines() if endpoint.split('"')[1] in line and "made" in line
            ]
            assert said, "the log says that it was made"
        elif "spool" in endpoint:
            make(place)
        evil.exec(["/bin/busybox", "sh", "-ec", command])
        scene.wait_received(b"from inside")
        assert scene.owner() == USER


# -- queues that are made again by another user (faults issue, F6)


def in_queues(container: RuntimeContainer, user: int, work: str) -> str:
    """Make, remove or fill the queue as that user of the container; return the result."""

    def child() -> str:
        fd = os.open(f"/proc/{container.pid}/ns/ipc", os.O_RDONLY)
        linux.setns(fd, linux.CLONE_NEWIPC)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        if work == "make":
            MessageQueue(KEY, IPC_CREX, 0o600)
        elif work == "remove":
            MessageQueue(KEY).remove()
        else:
            MessageQueue(KEY).send(work.encode(), type=1)
        return "done"

    return str(in_child(child))


@pytest.mark.parametrize(("before", "after"), [(0, USER), (USER, 2000), (USER, 0)])
def test_queue_made_again_by_another_user(tmp_path: Path, runc_container: Factory, before: int, after: int) -> None:
    """Mode 0600. It is served as the new user where that is safe, else FATAL says what to set.

    Never does an agent get root's power by that. Today it waits indefinitely and reports that the queue was removed.
    """
    evil, peer = runc_container(), runc_container()
    in_queues(evil, before, "make")
    with scene_of(tmp_path, evil, peer, f"queue = {{ out = {{ key = {KEY} }} }}") as scene:
        scene.daemon.wait_for("RUNNING")
        scene.forbidden = {0} - {before}
        in_queues(evil, before, "remove")
        in_queues(evil, after, "make")
        in_queues(evil, after, "from inside")

        def decided() -> bool:
            return scene.agent()["state"] == "FATAL" or b"from inside" in scene.received()

        wait_until(decided, f"it is served or refused; {scene.daemon.said()}", 20)
        assert not scene.harm()
        if b"from inside" not in scene.received():
            assert after == 0 or before != 0, "root's queue, through which nothing has passed, is followed"
            assert "user" in scene.agent()["detail"], scene.agent()["detail"]


def test_volume_handed_over_before_the_agent_is_served(tmp_path: Path, runc_container: Factory) -> None:
    """The entrypoint was faster. Today too."""
    evil, peer = runc_container(), runc_container()
    directory = make(evil.rootfs / "data", 0)
    for name in ("out", "in"):
        make(directory / name, 0)
    for path in (directory / "out", directory / "in", directory):
        give(path, USER, 0o700)
    with scene_of(tmp_path, evil, peer, BOTH["spool"].replace("DIR", "/data")) as scene:
        messages_pass(scene, directory, "spool", USER)
