"""A container leads its agent to more power than its program has, by what the rules of identity do not look at.

The kind of fault: the agent's user is decided by one fact of the container, and that fact, or what it stands for, is
chosen by a program with less power. To this belong the file that a queue's key is made of, init's user namespace, the
group of an endpoint, and an endpoint that is some other user's when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sysv_ipc import IPC_CREX, MessageQueue

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue.config import FtokKey
from nsbridge.agents.endpoints.queue.queue import numeric_key
from tests.child import in_child
from tests.system.conftest import Factory
from tests.system.engines import RuntimeContainer
from tests.system.identity_scene import EVIL, PEER, SECRET, USER, Scene, make, routes, scene_of, write
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, tool, wait_until
from tests.system.stepping import next_fork

SETNS = 308  # the number of x86-64's call
SWITCH = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    write(fd, text, strlen(text));
    close(fd);
}

int main(void)
{
    sigset_t wanted;
    int got;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR1);
    sigprocmask(SIG_BLOCK, &wanted, 0);
    sigwait(&wanted, &got);
    int failed = unshare(CLONE_NEWUSER | CLONE_NEWNS);
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "0 1000 1");
    put("/proc/self/gid_map", "0 1000 1");
    failed |= mount("/root/mail", "/data/out", 0, MS_BIND, 0);
    put(failed ? "/home/app/failed" : "/home/app/switched", "");
    for (;;)
        pause();
}
"""


def as_user(container: RuntimeContainer, uid: int, work: Callable[[], object], groups: tuple[int, ...] = ()) -> Any:
    """Do this in the container's files and queues, as a program of that user does."""

    def child() -> object:
        ipc = os.open(f"/proc/{container.pid}/ns/ipc", os.O_RDONLY)
        os.chroot(f"/proc/{container.pid}/root")
        os.chdir("/")
        linux.setns(ipc, linux.CLONE_NEWIPC)
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.umask(0o022)
        return work()

    return in_child(child)


def key_of(container: RuntimeContainer, path: str) -> int:
    return numeric_key(FtokKey(path=path, proj=1), str(container.rootfs))


@pytest.mark.parametrize("side", ["out", "in"])
def test_link_in_the_path_of_a_queues_key_is_refused(tmp_path: Path, runc_container: Factory, side: str) -> None:
    """A user's link to the file of root's key: the agent became uid 0, and took root's messages, or wrote to root."""
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "home/app")
    write(evil.rootfs / "etc/key", b"", 0)
    key = key_of(evil, "/etc/key")
    as_user(evil, 0, lambda: MessageQueue(key, IPC_CREX, 0o600).send(SECRET, type=1))
    as_user(evil, USER, lambda: os.symlink("/etc/key", "/home/app/key"))
    queue = f'queue = {{ {side} = {{ key = {{ path = "/home/app/key", proj = 1 }} }} }}'
    with scene_of(tmp_path, evil, peer, queue) as scene:
        scene.watched.append(lambda: messages_beside(evil, key))
        if side == "in":
            scene.send()
        scene.assert_harmless("/home/app")


def messages_beside(evil: RuntimeContainer, key: int) -> list[str]:
    count = as_user(evil, 0, lambda: MessageQueue(key).current_messages)
    return [] if count == 1 else [f"root's queue has {count} messages"]


def test_init_that_changes_its_user_namespace_is_found_out(tmp_path: Path, runc_container: Factory) -> None:
    """Init is uid 1000, without any capability. While an agent enters, it goes into a user namespace of its own, with a
    mount namespace, in which it may mount whatever it likes over its endpoint.

    The agent had read that the container has no user namespace of its own, became uid 0 by the owner of what was
    mounted there, and delivered root's files, which nobody of uid 1000 could read.
    """
    source, program = tmp_path / "switch.c", tmp_path / "switch"
    source.write_text(SWITCH, encoding="ascii")
    run([tool("cc"), "-static", "-o", program, source])
    evil = runc_container(["/bin/switch"], files={"/bin/switch": program}, user=(USER, USER))
    peer = runc_container()
    home = make(evil.rootfs / "home/app")
    make(evil.rootfs / "data/out")
    make(evil.rootfs / "root/mail", 0, 0o700)
    write(evil.rootfs / "root/mail/secret", SECRET, 0, 0o600)
    evil.rootfs.joinpath("root").chmod(0o711)
    for name in ("out", "in"):
        make(peer.rootfs / "srv" / name)
    toml = "[route.r]\nautostart = false\n" + routes(evil, peer, 'spool = { out = "/data/out" }')
    with Nsbridged(tmp_path, toml) as daemon:
        daemon.call("start", names=[PEER])
        daemon.wait_for("RUNNING", PEER)
        scene = Scene(daemon, evil, peer)
        with next_fork(daemon.pid, lambda: daemon.call("start", names=[EVIL])) as stepper:
            for call in stepper.calls():
                if call.number == SETNS:
                    break
            os.kill(evil.pid, 10)
            wait_until(lambda: list(home.glob("*ed")), "init has switched", 20)
            assert (home / "switched").exists()
        wait_until(lambda: scene.refusal() or scene.harm() or scene.owner() > 0, "it has decided", 20)
        assert not scene.harm(), f"{scene.harm()}; {daemon.said()}"


def prepare_secret(evil: RuntimeContainer) -> None:
    """Make a file of root's in a directory of uid 1000: he may move it, and not read it."""
    make(evil.rootfs / "home/app")
    write(evil.rootfs / "home/app/secret", SECRET, 0, 0o600)


def test_directory_of_another_user_is_not_used_by_root(tmp_path: Path, runc_container: Factory) -> None:
    """In a directory that its group may write to, since the agent has entered, a user puts his spool in root's place.

    The agent opened it as uid 0, and delivered what the user had moved there, before it saw that the owner had changed.
    """
    evil, peer = runc_container(), runc_container()
    prepare_secret(evil)
    make(evil.rootfs / "data", 0)
    make(evil.rootfs / "data/out", 0)

    def replace() -> None:
        os.mkdir("/home/app/out")
        os.rename("/home/app/secret", "/home/app/out/secret")
        os.rename("/data/out", "/data/was")
        os.rename("/home/app/out", "/data/out")
        os.chmod("/data/out", 0o755)

    with scene_of(tmp_path, evil, peer, 'spool = { out = "/data/out" }') as scene:
        scene.daemon.wait_for("RUNNING")
        assert scene.owner() == 0
        scene.forbidden = set()
        evil.rootfs.joinpath("data").chmod(0o777)
        as_user(evil, USER, replace)
        wait_until(lambda: scene.owner() == USER or scene.harm() or scene.refusal(), "it has decided", 20)
        assert not scene.harm(), scene.daemon.said()


@pytest.mark.parametrize("side", ["in", "done"])
def test_other_directory_of_another_user_is_not_used_by_root(
    tmp_path: Path, runc_container: Factory, side: str
) -> None:
    """The agent is the owner of `out`, root; a user has made the other directory first, in /tmp, and gets all of root's
    messages, or all that root's programs have sent.
    """
    evil, peer = runc_container(), runc_container()
    make(evil.rootfs / "data/out", 0)
    evil.rootfs.joinpath("tmp").chmod(0o1777)

    def squat() -> None:
        os.mkdir("/tmp/app")
        os.chmod("/tmp/app", 0o777)

    as_user(evil, USER, squat)
    with scene_of(tmp_path, evil, peer, f'spool = {{ out = "/data/out", {side} = "/tmp/app" }}') as scene:
        scene.forbidden = set()
        if side == "in":
            scene.send()
        else:
            write(evil.rootfs / "data/out/x", SECRET, 0, 0o600)
        reason = scene.wait_refused(lambda: list((evil.rootfs / "tmp/app").iterdir()))
        assert "/tmp/app" in reason, (list((evil.rootfs / "tmp/app").iterdir()), scene.daemon.said())
