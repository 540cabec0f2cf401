"""A program of uid 1000 puts links into its endpoint's path: no agent takes another's power to follow them.

The kind of fault: an agent finds its endpoint's path with root's power and becomes the owner of what it finds there.
To this belong every side of every endpoint, every directory above it that uid 1000 owns, a link that is there at the
start, one that replaces a directory under a running agent, and one that is changed once more after that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.identity_scene import (
    SIDES,
    USER,
    Scene,
    Victim,
    link,
    make,
    populate,
    replace,
    scene_of,
    takes,
)
from tests.system.room import wait_until

SPOOL = "/home/app/spool"


def endpoint(side: str, directory: str = SPOOL) -> str:
    return SIDES[side].replace("DIR", directory)


def prepared(scene: Scene, victim: Victim, side: str) -> None:
    """Prepare what would be delivered to the victim, or from it, as soon as an agent serves there."""
    scene.watch(victim)
    if not takes(SIDES[side]):
        scene.send()


@pytest.mark.parametrize("side", SIDES)
def test_link_of_another_user_at_the_start_is_refused(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """Today the agent becomes uid 0: it delivers and deletes the 0600 file, or writes, or moves files as root.

    Today `log out` and `file out` run as uid 0 too; they deliver what is written after that.
    """
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    victim = Victim(evil.rootfs / "root/x")
    link(evil.rootfs / SPOOL[1:], "/root/x")
    with scene_of(tmp_path, evil, peer, endpoint(side)) as scene:
        prepared(scene, victim, side)
        scene.assert_harmless(SPOOL)


@pytest.mark.parametrize("side", SIDES)
def test_link_changed_twice_under_a_running_agent(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """The attack of the issue: a link to /etc first, which the agent reacts to; then the link leads to the victim.

    Today the agent enters anew as uid 0 and makes what is missing below /etc; then it serves the victim.
    """
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    spool = make(evil.rootfs / SPOOL[1:])
    populate(spool)
    victim = Victim(evil.rootfs / "root/x")
    with scene_of(tmp_path, evil, peer, endpoint(side)) as scene:
        scene.daemon.wait_for("RUNNING")
        assert scene.owner() == USER
        replace(spool, "/etc")
        scene.wait_refused()
        replace(spool, "/root/x")
        victim.grow()
        prepared(scene, victim, side)
        scene.assert_harmless(SPOOL)
        assert not list((evil.rootfs / "etc").iterdir()), "the agent made something in /etc"


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("/home/app", "/root/y"),  # the uppermost directory of the user
        ("/home/app/a/b", "/root/x"),
        ("/home/app/a/b", "../../../root/x"),
        ("/home/app/a/b/c", "/root"),
        ("/tmp/app", "/root/x"),  # a directory that all may write
    ],
)
@pytest.mark.parametrize("side", ["spool out", "file in"])
def test_link_at_any_depth_is_refused(
    tmp_path: Path, runc_container: Factory, side: str, place: str, target: str
) -> None:
    """Today the agent becomes uid 0 through each of them."""
    evil, peer = runc_container(), runc_container()
    root = evil.rootfs
    directory = {"/root/y": place + "/x", "/root": place + "/x"}.get(target, place)
    make(root / "home", USER if place == "/home/app" else 0)
    for path in ("home/app", "home/app/a", "home/app/a/b"):
        if place.startswith(f"/{path}/"):
            make(root / path)
    make(root / "root/y", 0, 0o700)
    victim = Victim(root / ("root/y/x" if target == "/root/y" else "root/x"))
    link(root / place[1:], target)
    with scene_of(tmp_path, evil, peer, endpoint(side, directory)) as scene:
        prepared(scene, victim, side)
        scene.assert_harmless(place)


@pytest.mark.parametrize("side", ["spool out", "log in"])
def test_chain_of_links_is_refused(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """Root's link leads to the user's link, which leads to root's directory. Today the agent becomes uid 0."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    victim = Victim(evil.rootfs / "root/x")
    link(evil.rootfs / "home/app/hop", "../app/spool")
    link(evil.rootfs / SPOOL[1:], "/root/x")
    link(evil.rootfs / "srv/app", "/home/app/hop", 0)
    with scene_of(tmp_path, evil, peer, endpoint(side, "/srv/app")) as scene:
        prepared(scene, victim, side)
        scene.assert_harmless()


@pytest.mark.parametrize("side", ["spool out", "file in"])
def test_roots_link_in_a_users_directory_is_refused(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """The user may have moved or linked it there (link(2) makes hard links of links). Today the agent becomes uid 0."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    victim = Victim(evil.rootfs / "root/x")
    link(evil.rootfs / SPOOL[1:], "/root/x", owner=0)
    with scene_of(tmp_path, evil, peer, endpoint(side)) as scene:
        prepared(scene, victim, side)
        scene.assert_harmless(SPOOL)


def test_link_to_another_unprivileged_user_is_refused(tmp_path: Path, runc_container: Factory) -> None:
    """Uid 1000 reaches what only uid 2000 may read. Today the agent becomes uid 2000."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    victim = Victim(evil.rootfs / "home/other", 2000)
    link(evil.rootfs / SPOOL[1:], "/home/other")
    with scene_of(tmp_path, evil, peer, endpoint("spool out")) as scene:
        scene.forbidden.add(2000)
        prepared(scene, victim, "spool out")
        scene.assert_harmless(SPOOL)


@pytest.mark.parametrize("side", SIDES)
def test_last_name_as_a_link_is_refused(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """Today too: the last name of a path is never followed. What root owns stays as it is; the agent is no root."""
    evil, peer = runc_container(), runc_container()
    spool = make(evil.rootfs / SPOOL[1:])
    victim = Victim(evil.rootfs / "root/x")
    for name in ("out", "in", "done", "out.log", "in.log", "one", "two"):
        link(spool / name, f"/root/x/{name}")
    with scene_of(tmp_path, evil, peer, endpoint(side)) as scene:
        prepared(scene, victim, side)
        scene.assert_harmless(SPOOL)


def test_link_of_a_dangling_target_makes_nothing(tmp_path: Path, runc_container: Factory) -> None:
    """The spool is missing where the link leads. Today the agent makes it there as root."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    link(evil.rootfs / SPOOL[1:], "/etc")
    with scene_of(tmp_path, evil, peer, endpoint("spool in")) as scene:
        scene.watched.append(lambda: [str(path) for path in (evil.rootfs / "etc").iterdir()])
        scene.assert_harmless(SPOOL)


def test_route_serves_again_when_the_directory_is_back(tmp_path: Path, runc_container: Factory) -> None:
    """After an attack and its end, a start serves the user's directory. Today the agent has become uid 0 meanwhile."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    spool = make(evil.rootfs / SPOOL[1:])
    populate(spool)
    victim = Victim(evil.rootfs / "root/x")
    with scene_of(tmp_path, evil, peer, endpoint("spool in")) as scene:
        scene.daemon.wait_for("RUNNING")
        scene.watch(victim)
        replace(spool, "/root/x")
        scene.enter_again()
        scene.send()
        scene.wait_refused()
        assert not scene.harm(), scene.harm()
        spool.unlink()
        spool.with_name("spool.was").rename(spool)
        scene.enter_again()
        wait_until(lambda: list((spool / "in").iterdir()), f"the message is delivered; {scene.daemon.said()}", 20)
        assert scene.owner() == USER
