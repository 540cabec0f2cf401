"""A file system that fails once in a while costs its own agent a wait with a reason, not its life.

The kind of fault: an error of a container's file system that nobody catches ends the agent, so both directions of its
route stand still, and a container makes the supervisor fork. strace has the kernel's answers replaced.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.identity_scene import USER, Scene, make, populate, scene_of
from tests.system.room import tool, wait_until


def fail(scene: Scene, call: str, error: str) -> subprocess.Popen[bytes]:
    """Have the agent's next three such calls fail."""
    inject = f"inject={call}:error={error}:when=1..3"
    command = [tool("strace"), "-f", "-o", "/dev/null", "-e", inject, "-p", str(scene.agent()["pid"])]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert strace.stderr is not None
    assert b"attached" in strace.stderr.readline()
    return strace


@pytest.mark.parametrize("error", ["EIO", "ESTALE", "ENODEV"])
def test_directory_of_an_unnamed_file_system_is_waited_for(tmp_path: Path, runc_container: Factory, error: str) -> None:
    """statfs(2) asks the server of a network file system, or one in user space."""
    evil, peer = runc_container(), runc_container()
    data = make(evil.rootfs / "data", USER)
    populate(data)
    with scene_of(tmp_path, evil, peer, 'spool = { in = "/data/in" }') as scene:
        scene.daemon.wait_for("RUNNING")
        before = scene.agent()
        strace = fail(scene, "fstatfs", error)
        (data / "in").rename(data / "was")
        make(data / "in")
        wait_until(lambda: scene.agent()["phase"] == "blocked" or scene.agent()["pid"] != before["pid"], "it fails", 20)
        scene.send()
        wait_until(lambda: list((data / "in").iterdir()), "the message is delivered", 20)
        strace.terminate()
        strace.communicate()
        assert (scene.agent()["pid"], scene.agent()["restarts"]) == (before["pid"], 0), scene.agent()["last_exit"]
