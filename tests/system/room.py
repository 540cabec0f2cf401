"""A private mount namespace in which container engines run, so that nothing they mount reaches the machine.

What it changes, seen only by processes inside it and gone with the last of them:
* /sys is mounted if it is not; /sys/fs/cgroup is replaced by one cgroup2 hierarchy. A bare chroot has nothing there, a
  hybrid machine (cgroup v1 beside v2) has what Debian 12's crun does not start on; so all machines look alike.
* / is bound to a directory of its own, which becomes the namespace's root by pivot_root(2). After a plain chroot(2) the
  kernel refuses runtimes to pivot and to make user namespaces; in the room it does not. Paths stay the same.
One thing is missing outside it on a bare chroot: podman, which nsbridge runs, fails without a /sys; `sys_mounted`.
Its holder reads a pipe that only the test session writes, so the room ends with the session, however that ends.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LIMIT = 60.0  # seconds: anything in these tests that takes longer is broken

# Joining one's own mount namespace (setns(2)) leads from a chroot to the namespace's root; --wd keeps the chroot's / as
# the working directory, which is bound to $1 below it and then pivoted to.
_SETUP = """
exec nsenter --mount=/proc/self/ns/mnt --wd=/ -- sh -ec '
    mount --make-rprivate /
    mount --rbind . ".$1"
    cd ".$1"
    pivot_root . .
    umount -l .
    cd /
    mountpoint -q /sys || mount -t sysfs sysfs /sys
    mountpoint -q /sys/fs/cgroup && umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    echo ready
    exec cat
' room "$1"
"""


class Room:
    """The namespace; `command` is what runs a command in it."""

    def __init__(self, base: Path) -> None:
        root = base / "root"
        root.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _SETUP, "room", root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError("no mount namespace could be prepared for the container engines: are you root?")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` in the room; no process stays between, so signals and pids are argv's
        own.
        """
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--wd", "--", *argv]

    def remove_cgroup(self, name: str) -> None:
        """Remove a control group that an engine leaves behind, with those below it, if no process is in it."""
        where = f"/sys/fs/cgroup/{name}"
        run(self.command(["find", where, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]), check=False)

    def close(self) -> None:
        """End the holder; the mounts go with the last process inside."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(LIMIT)


@contextmanager
def sys_mounted() -> Iterator[None]:
    """Mount /sys for as long as it is needed, on a machine that has none."""
    if Path("/sys/fs/cgroup").is_dir():
        yield
        return
    run(["mount", "-t", "sysfs", "sysfs", "/sys"])
    try:
        yield
    finally:
        run(["umount", "/sys"])


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout: float = LIMIT,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; RuntimeError with all its output if it fails and `check`.

    Its output goes to files: a runtime hands its descriptors on to the container, which would keep a pipe open.
    """
    with _scratch() as out, _scratch() as err:
        command = [str(word) for word in argv]
        source: dict[str, Any] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(command, stdout=out, stderr=err, env=env, timeout=timeout, check=False, **source)
        out.seek(0)
        err.seek(0)
        result = subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())
    if check and result.returncode:
        raise RuntimeError(f"{command}: status {result.returncode}: {(result.stderr + result.stdout).decode()}")
    return result


def wait_until(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait without an event: poll every 10 ms until it holds; AssertionError after what is `allowed`."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < allowed(limit), f"waited {waited:.1f} s without success: {what}"
        time.sleep(0.01)  # polls


def crowd() -> float:
    """Return how many processes share a core just now, at least 1: limits are for a machine with nothing else to do."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def allowed(limit: float) -> float:
    """Return the seconds that a wait may take: `limit` is for a machine with nothing else to do."""
    return min(limit * crowd(), max(limit, LIMIT))


def stays(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Check every 10 ms for that time that it holds; AssertionError as soon as it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), what
        time.sleep(0.01)  # polls


def wait_dead(pid: int, limit: float = LIMIT) -> None:
    """Wait until the process that has that number now has ended (a zombie counts)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(fd, f"process {pid} ends", limit)
    finally:
        os.close(fd)


def wait_readable(fd: int, what: str, limit: float = LIMIT) -> None:
    """Wait until a descriptor is readable, as a pidfd is at its process's end; AssertionError after `allowed`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(allowed(limit) * 1000), f"waited {allowed(limit):.1f} s without success: {what}"


def tool(name: str) -> str:
    """Return the path of a program that these tests need; the failure names the packages."""
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is missing: apt-get install runc crun docker.io podman busybox-static util-linux")
    return path


def _scratch() -> BinaryIO:
    return os.fdopen(os.memfd_create("output"), "w+b")
