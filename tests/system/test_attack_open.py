"""Attacks that still succeed: the fix of each is a decision about whom an agent should be.

A file of another user's in a directory that all may write to may have been put there by anybody who found it in a
directory of his own; and the group of an endpoint may be none of its owner's groups.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.identity_scene import SECRET, USER, make, scene_of, write
from tests.system.room import wait_until
from tests.system.test_attack_identity import as_user, prepare_secret


@pytest.mark.parametrize("kind", ["log", "file"])
def test_file_of_root_that_a_user_moved_is_not_read(tmp_path: Path, runc_container: Factory, kind: str) -> None:
    """In /tmp anybody may put root's file, from a directory of his own, under the endpoint's name."""
    evil, peer = runc_container(), runc_container()
    prepare_secret(evil)
    evil.rootfs.joinpath("tmp").chmod(0o1777)
    as_user(evil, USER, lambda: os.rename("/home/app/secret", "/tmp/out"))
    with scene_of(tmp_path, evil, peer, f'{kind} = {{ out = "/tmp/out" }}') as scene:
        if kind == "file":
            scene.daemon.wait_for("RUNNING")
            with (evil.rootfs / "tmp/out").open("ab") as file:
                file.write(b"more")  # root's program
        scene.assert_harmless("/tmp/out")


def test_group_of_an_endpoint_is_one_of_its_owners(tmp_path: Path, runc_container: Factory) -> None:
    """A directory takes its group from one with the setgid bit, whoever makes it there: so a user has one of a
    group that is not his. Moved to the endpoint's place, it gives the agent that group, which may read its files.
    """
    evil, peer = runc_container(), runc_container()
    home = make(evil.rootfs / "home/app")
    shared = make(evil.rootfs / "srv/shared", 0, 0o777)
    os.chown(shared, 0, 42)
    shared.chmod(0o2777)
    write(home / "secret", SECRET, 0, 0o640)
    os.chown(home / "secret", 0, 42)

    def move() -> str:
        try:
            open("/home/app/secret", "rb").close()
        except PermissionError:
            os.mkdir("/srv/shared/out")
            os.rename("/srv/shared/out", "/home/app/out")
            return "moved"
        return "he may read it anyway"

    assert as_user(evil, USER, move) == "moved"
    with scene_of(tmp_path, evil, peer, 'spool = { out = "/home/app/out" }') as scene:
        scene.wait_refused(lambda: scene.owner() == USER)
        as_user(evil, USER, lambda: os.rename("/home/app/secret", "/home/app/out/secret"))
        wait_until(lambda: scene.harm() or scene.refusal(), "it has tried", 10)
        assert not scene.harm(), scene.daemon.said()
