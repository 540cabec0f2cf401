"""Facts about a container's init still hold when its namespace is joined, or the agent enters anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.identity.identity import IdMap
from nsbridge.agents.identity.surroundings import FileSurroundings, memory
from nsbridge.config.schema import AgentConfig, Container
from nsbridge.supervisor.containers import engines
from tests.child import fork
from tests.unit.test_entering import assignment


@contextmanager
def init(then: int) -> Iterator[tuple[int, int]]:
    """Yield a process in its own mount namespace; after a byte to the descriptor it leaves the namespaces `then`."""
    from_init, to_test = os.pipe()
    from_test, to_init = os.pipe()

    def main() -> int:
        linux.unshare(linux.CLONE_NEWNS)
        os.write(to_test, b"x")
        os.read(from_test, 1)
        if then:
            linux.unshare(then)
        os.write(to_test, b"x")
        signal.pause()
        return 1

    pid = fork(main)
    os.read(from_init, 1)
    try:
        yield pid, to_init
        os.read(from_init, 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (from_init, to_test, from_test, to_init):
            os.close(fd)


@pytest.mark.parametrize(
    ("then", "gone"),
    [
        (0, False),
        (linux.CLONE_NEWNS, True),
        (linux.CLONE_NEWUSER, True),
        (linux.CLONE_NEWUSER | linux.CLONE_NEWNS, True),
    ],
    ids=["nowhere", "mnt", "user", "both"],
)
def test_init_that_goes_elsewhere_is_found_out(tmp_path: Path, then: int, gone: bool) -> None:
    agent = AgentConfig("r:a", Container(engines.pid.KIND, "1"), SpoolEndpoint(out="/data/out"))
    with init(then) as (pid, to_init):
        given = assignment(agent=agent, container_pid=pid, state_dir=str(tmp_path))
        around = FileSurroundings(
            given, IdMap.of_container(pid), memory(given, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT, 0o600))
        )
        around.confirm(os.stat(f"/proc/{pid}/ns/mnt").st_ino)
        os.write(to_init, b"x")
        while os.stat(f"/proc/{pid}/ns/mnt").st_ino == around._memory.inode and _user(pid) == _user("self") and gone:
            os.sched_yield()
        inode = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        if gone:
            with pytest.raises(Gone, match="init went into other namespaces"):
                around.confirm(inode)
        else:
            around.confirm(inode)


def _user(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/user").st_ino
