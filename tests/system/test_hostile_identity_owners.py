"""User that an agent may be: an id of the container's own, the same for the route's life.

The kind of fault: the owner of whatever the path leads to becomes the agent's user. To this belong owners that are not
mapped in the container's user namespace (a volume's, for instance), the host's root above all, and a later owner.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.identity_scene import (
    SECRET,
    SIDES,
    USER,
    Scene,
    Victim,
    give,
    link,
    make,
    populate,
    scene_of,
    takes,
    write,
)
from tests.system.room import wait_until

BASE = 200_000  # the host's id of a container's root
MAPPED = BASE + USER


def endpoint(side: str, directory: str) -> str:
    return SIDES[side].replace("DIR", directory)


def messages_wait(scene: Scene, side: str) -> None:
    if not takes(SIDES[side]):
        scene.send()


# -- owners that the container does not have


@pytest.mark.parametrize("owner", [BASE, MAPPED], ids=["containers-root", "uid-1000"])
@pytest.mark.parametrize("side", SIDES)
def test_link_to_host_roots_files_in_a_volume_is_refused(
    tmp_path: Path, runc_container: Factory, side: str, owner: int
) -> None:
    """A container with a user namespace and no power to mount. Today the agent becomes uid 0 of the host."""
    (tmp_path / "volume").mkdir()
    victim = Victim(tmp_path / "volume/x")
    evil = runc_container(id_base=BASE, volumes={"/vol": tmp_path / "volume"})
    peer = runc_container()
    make(evil.rootfs / "home", BASE)
    make(evil.rootfs / "home/app", owner)
    link(evil.rootfs / "home/app/spool", "/vol/x", owner)
    with scene_of(tmp_path, evil, peer, endpoint(side, "/home/app/spool")) as scene:
        scene.watch(victim)
        messages_wait(scene, side)
        scene.assert_harmless()


@pytest.mark.parametrize("owner", [0, 4242, BASE + 65536], ids=["hosts-root", "hosts-user", "first-behind"])
@pytest.mark.parametrize("side", ["spool out", "spool in", "log in", "file out", "file in"])
def test_owner_that_is_not_mapped_is_refused(tmp_path: Path, runc_container: Factory, side: str, owner: int) -> None:
    """A directory of the host mounted into a container with a user namespace. Today the agent becomes its owner."""
    (tmp_path / "volume").mkdir()
    victim = Victim(tmp_path / "volume/x", owner)
    evil, peer = runc_container(id_base=BASE, volumes={"/vol": tmp_path / "volume"}), runc_container()
    with scene_of(tmp_path, evil, peer, endpoint(side, "/vol/x")) as scene:
        scene.forbidden = {0, owner}
        scene.watch(victim)
        messages_wait(scene, side)
        scene.assert_harmless("/vol/x", "user")


def test_group_that_is_not_mapped_is_refused(tmp_path: Path, runc_container: Factory) -> None:
    """The owner is the container's, the group is the host's. Today the agent takes both."""
    evil, peer = runc_container(id_base=BASE), runc_container()
    spool = make(evil.rootfs / "data", MAPPED)
    os.chown(spool, MAPPED, 4242)
    make(spool / "out", MAPPED)
    os.chown(spool / "out", MAPPED, 4242)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        write(spool / "out/x", SECRET, MAPPED)
        scene.assert_harmless("/data", "user")


def test_configured_host_root_is_refused_in_a_user_namespace(tmp_path: Path, runc_container: Factory) -> None:
    """With any configuration, the host's root is never an id of such a container. Today the agent becomes it."""
    evil, peer = runc_container(id_base=BASE), runc_container()
    make(evil.rootfs / "data", BASE)
    with scene_of(tmp_path, evil, peer, endpoint("spool in", "/data"), 'user = "0:0"') as scene:
        scene.assert_harmless("user")


def test_host_root_of_a_queue_is_refused_in_a_user_namespace(tmp_path: Path, runc_container: Factory) -> None:
    """The same with the ipc namespace. Today the agent is uid 0 of the host."""
    evil, peer = runc_container(id_base=BASE), runc_container()
    queue = "queue = { in = { key = 0x51 }, create = true }"
    with scene_of(tmp_path, evil, peer, queue, 'user = "0:0"') as scene:
        scene.assert_harmless("user")


# -- owners that change


def served(scene: Scene, spool: Path, owner: int) -> None:
    """Assert that a message has passed, and that the agent is that user."""
    scene.daemon.wait_for("RUNNING")
    assert scene.owner() == owner
    write(spool / "out/first", b"first", owner)
    scene.wait_received(b"first")


@pytest.mark.parametrize(("before", "after"), [(USER, 0), (USER, 2000)])
@pytest.mark.parametrize("restart", [False, True], ids=["agent", "daemon"])
def test_changed_owner_is_fatal(
    tmp_path: Path, runc_container: Factory, before: int, after: int, restart: bool
) -> None:
    """Also after the daemon was started anew; the line says what changed, from which owner to which, and what to set.

    Today each new agent becomes the new owner without a word.
    """
    evil, peer = runc_container(), runc_container()
    spool = make(evil.rootfs / "data", before)
    populate(spool, before)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        scene.forbidden = {after}
        served(scene, spool, before)
        for path in (spool, spool / "out"):
            give(path, after, 0o700)
        if restart:
            scene.daemon.kill()
            scene.daemon.start()
        else:
            scene.enter_again()
        scene.assert_harmless("/data", "user", str(before), str(after))
        assert scene.agent()["state"] == "FATAL"


def test_owner_with_less_power_is_followed(tmp_path: Path, runc_container: Factory) -> None:
    """Root gives its spool to a user, though messages have passed. Today only a restarted agent becomes that user."""
    evil, peer = runc_container(), runc_container()
    spool = make(evil.rootfs / "data", 0)
    populate(spool, 0)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        served(scene, spool, 0)
        for path in (spool / "out", spool):
            give(path, USER, 0o700)
        write(spool / "out/second", b"second", USER, 0o600)
        scene.wait_received(b"second")
        assert scene.owner() == USER
        for path in (spool / "out", spool):
            give(path, 0, 0o700)
        scene.forbidden = {0}
        scene.enter_again()
        scene.assert_harmless("/data", "user")


def test_changed_owner_is_served_when_user_says_so(tmp_path: Path, runc_container: Factory) -> None:
    """The fix in the error works: set `user`, and reload. Today too."""
    evil, peer = runc_container(), runc_container()
    spool = make(evil.rootfs / "data", 0)
    populate(spool, 0)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        served(scene, spool, 0)
        for path in (spool, spool / "out"):
            give(path, USER, 0o700)
        scene.enter_again()
        wait_until(lambda: scene.agent()["state"] in ("FATAL", "RUNNING"), "it decides", 20)
        config = scene.daemon.config.read_text(encoding="utf-8")
        place = "spool = { out"
        scene.daemon.config.write_text(config.replace(place, f'user = "{USER}:{USER}"\n{place}', 1), encoding="utf-8")
        scene.daemon.call("reload")
        scene.daemon.wait_for("RUNNING")
        wait_until(lambda: scene.owner() == USER, "the agent is that user", 20)
        write(spool / "out/second", b"second")
        scene.wait_received(b"second")


# -- images that hand their volume to their program after the start (faults issue, F6)


@pytest.mark.parametrize("side", ["spool out", "spool in", "log out", "log in"])
@pytest.mark.parametrize("id_base", [0, BASE], ids=["plain", "mapped"])
def test_volume_handed_to_the_program_is_followed(
    tmp_path: Path, runc_container: Factory, side: str, id_base: int
) -> None:
    """Root's directory, through which no message has passed, gets an unprivileged owner and 0700: no restart is needed.

    Today the agent stays uid 0 without power, and is blocked until somebody restarts it.
    """
    evil, peer = runc_container(id_base=id_base), runc_container()
    data = make(evil.rootfs / "data", id_base)
    if side.startswith("spool"):
        populate(data, id_base)
    name = endpoint(side, "/data").split('"')[1].removeprefix("/data/")
    with scene_of(tmp_path, evil, peer, endpoint(side, "/data")) as scene:
        scene.forbidden = {0} if id_base else set()
        scene.daemon.wait_for("RUNNING")
        for path in (*data.iterdir(), data):
            give(path, id_base + USER, 0o700)
        place = data / name
        match side:
            case "spool out":
                write(place / "x", b"from the program", id_base + USER, 0o600)
                scene.wait_received(b"from the program")
            case "log out":
                with place.open("ab") as file:
                    file.write(b"from the program\n")
                give(place, id_base + USER, 0o600)
                scene.wait_received(b"from the program")
            case _:
                scene.send()
                delivered = (lambda: list(place.iterdir())) if side == "spool in" else place.read_bytes
                wait_until(delivered, "the message is delivered", 20)
        wait_until(lambda: scene.owner() == id_base + USER, "the agent is the new owner", 20)


def test_volume_handed_to_a_user_of_the_host_is_not_followed(tmp_path: Path, runc_container: Factory) -> None:
    """The new owner must be the container's too. Today it is blocked, and a restart makes the agent that user."""
    evil, peer = runc_container(id_base=BASE), runc_container()
    data = make(evil.rootfs / "data", BASE)
    populate(data, BASE)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        scene.daemon.wait_for("RUNNING")
        scene.forbidden = {0, 4242}
        give(data / "out", 4242, 0o700)
        write(data / "out/x", SECRET, 4242, 0o600)
        scene.assert_harmless("/data/out")


def test_directory_remade_by_its_own_user_is_served(tmp_path: Path, runc_container: Factory) -> None:
    """The rule is about owners, not inodes. Today too."""
    evil, peer = runc_container(), runc_container()
    spool = make(evil.rootfs / "data")
    populate(spool)
    with scene_of(tmp_path, evil, peer, endpoint("spool out", "/data")) as scene:
        served(scene, spool, USER)
        shutil.rmtree(spool)
        populate(make(spool))
        write(spool / "out/second", b"second")
        scene.wait_received(b"second")
        assert scene.owner() == USER
