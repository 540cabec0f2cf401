"""Entry of a forked child into a container: which namespace, what it keeps, what the kernel confines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement import entry, seccomp
from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.config.schema import AgentConfig, Confinement, Container, RouteConfig, User
from nsbridge.supervisor.containers import engines
from tests.child import LIMIT, Family, fork, in_child, wait
from tests.unit.test_entry import NOBODY, attempt, status_of, subreaper

__all__ = ["subreaper"]


# -- the namespace


def assignment(**changes: object) -> Assignment:
    agent = AgentConfig("r:a", Container(engines.pid.KIND, "1"), QueueEndpoint(out=QueueOut(1)), User(NOBODY, NOBODY))
    other = AgentConfig("r:b", Container(engines.host.KIND, ""), SpoolEndpoint(in_="/in"))
    fields: dict[str, object] = {
        "route": RouteConfig("r", (agent, other)),
        "agent": agent,
        "peer_fd": 0,
        "control_fd": 0,
        "scoreboard": Scoreboard(),
        "container_pid": os.getpid(),
        "pidfd": -1,
        "ns_path": "",
        "state_dir": "/nonexistent",
        "init_user": (0, 0),
        "supervisor_pid": os.getpid(),
        "beat_every": 5.0,
    }
    fields |= changes
    fields["filters"] = entry.Filters.of_agent(fields["agent"], fields["route"])  # type: ignore[arg-type]
    return Assignment(**fields)  # type: ignore[arg-type]


@pytest.fixture
def container() -> Iterator[int]:
    """Yield the pid of a process in an ipc namespace of its own."""
    reader, writer = os.pipe()

    def main() -> int:
        linux.unshare(linux.CLONE_NEWIPC)
        os.write(writer, b"x")
        signal.pause()
        return 1

    pid = fork(main)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Nobody:
    """See entry.EntrySteps. It needs nothing of a container, and its user is `nobody`."""

    trusted: frozenset[int] = frozenset()
    mounts: frozenset[bytes] = frozenset()

    def confirm(self, inode: int) -> None:
        pass

    def look(self) -> tuple[int, int]:
        return NOBODY, NOBODY

    def reach(self) -> list[int]:
        return []

    def recheck(self) -> None:
        pass

    def check_directory(self, path: bytes, uid: int) -> None:
        pass


def ipc_inode(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/ipc").st_ino


def test_an_agent_is_in_its_container_s_namespace(container: int) -> None:
    inode, own = in_child(lambda: (entry.join(assignment(container_pid=container)), ipc_inode("self")))
    assert inode == own == ipc_inode(container) != ipc_inode("self")


def test_an_agent_joins_a_namespace_by_its_file(container: int) -> None:
    given = assignment(container_pid=0, ns_path=f"/proc/{container}/ns/ipc")
    assert in_child(lambda: (entry.join(given), ipc_inode("self"))) == [ipc_inode(container)] * 2


def test_the_host_s_own_namespace_is_refused() -> None:
    with pytest.raises(
        entry.RefusedForGood, match=r"the ipc namespace of pid:1 is the host's own; .* container = \"host\""
    ):
        entry.join(assignment())


def test_the_host_is_left_as_it_is_if_it_is_asked_for_by_name() -> None:
    host = AgentConfig("r:a", Container(engines.host.KIND, ""), QueueEndpoint(out=QueueOut(1)))
    assert entry.join(assignment(agent=host)) == ipc_inode("self")


def test_a_container_that_is_not_there_is_gone() -> None:
    with pytest.raises(entry.Gone, match="/proc/0/ns/ipc is not there any more"):
        entry.join(assignment(container_pid=0, ns_path="/proc/0/ns/ipc"))


@pytest.mark.parametrize("number", [1000, 5000])
def test_a_container_whose_init_ended_before_the_join_is_gone(container: int, number: int) -> None:
    """Its pid may belong to another process by now, whose namespace must not be joined.

    With 200 routes a pidfd has a number beyond those that select(2) knows.
    """
    ended_init = subprocess.Popen(["/bin/true"])
    opened = os.pidfd_open(ended_init.pid)
    pidfd = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, number)
    os.close(opened)
    ended_init.wait()
    with pytest.raises(entry.Gone, match="its init process has ended"):
        entry.join(assignment(container_pid=container, pidfd=pidfd))
    os.close(pidfd)


def test_a_descriptor_of_another_kind_of_namespace_is_not_joined(container: int) -> None:
    given = assignment(container_pid=0, ns_path=f"/proc/{container}/ns/uts")
    with pytest.raises(OSError, match="setns: Invalid argument"):
        entry.join(given)


# -- all of it


def test_an_agent_that_has_entered_dies_with_its_supervisor(subreaper: None, container: int) -> None:
    """Although the change of user has cleared what it had asked for before."""

    def main(parent: int) -> None:
        given = assignment(container_pid=container, supervisor_pid=parent)
        own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
        entry.enter(given, own_fds, [], Nobody())

    assert Family(main).kill_parent() == -signal.SIGKILL


CREATE_RULESET = 444
SECCOMP = seccomp.ARCHITECTURES[os.uname().machine].numbers["seccomp"]


def on_a_kernel_without(call: int, then: Callable[[], object]) -> object:
    """Return the result of `then` on a kernel without that system call: a filter that answers so stands in for one."""
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]

    def child() -> object:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.set_seccomp_filter(SECCOMP, b"".join(struct.pack("<HBBI", *line) for line in lines))
        return then()

    return in_child(child)


def test_agents_with_the_same_rules_share_compiled_filters() -> None:
    given, other = assignment(), assignment(init_user=(1, 1))
    assert all(one is another for one, another in zip(given.filters, other.filters, strict=True))


LACKING = [
    (SECCOMP, Confinement.SECCOMP, "seccomp: Function not implemented", "use a kernel with CONFIG_SECCOMP_FILTER"),
    (
        CREATE_RULESET,
        Confinement.LANDLOCK,
        "this kernel has no Landlock, or it is off",
        "use Linux 5.19 or newer with landlock in lsm= (CONFIG_LSM)",
    ),
]


@pytest.mark.parametrize(("call", "what", "why", "mend"), LACKING)
def test_an_agent_runs_without_what_the_kernel_lacks_and_says_so(
    call: int, what: Confinement, why: str, mend: str
) -> None:
    assert on_a_kernel_without(call, lambda: dict(entry.confine(assignment(), []).lacks)) == {what.value: why}


@pytest.mark.parametrize(("call", "what", "why", "mend"), LACKING)
def test_an_agent_without_required_confinement_names_the_fix(call: int, what: Confinement, why: str, mend: str) -> None:
    required = assignment(require=(what,))
    said = on_a_kernel_without(call, lambda: attempt(entry.confine, required, []))
    assert said == (
        f"RefusedForGood: {what} is required and cannot be had here ({why}): {mend}, "
        "or take it out of require in [daemon]"
    )


def test_an_entered_agent_keeps_only_what_it_was_given(container: int, tmp_path: Path) -> None:
    """Seen from the host: inside there is nothing left to look at."""
    ours, peer = socket.socketpair()
    control, _secret = socket.socketpair()
    pidfd = os.pidfd_open(container)
    given = assignment(container_pid=container, pidfd=pidfd, peer_fd=peer.fileno(), control_fd=control.fileno())

    def child() -> int:
        os.setgroups([4, 27])
        own_fds = entry.leave_the_supervisor(given)
        own = linux.detached(str(tmp_path))
        entered = entry.enter(given, own_fds, [own], Nobody())
        os.close(own)
        found = {
            "own_fds": entered.own_fds,
            "ns_inode": entered.ns_inode,
            "import": attempt(__import__, "wave"),
            "lacks": dict(entered.confined.lacks),
            "opened": [name for name in ("/etc/passwd", "/proc/self/status", "/") if not attempt(opens, 0, name)],
            "led out": [path for path in OUT if not attempt(opens, entered.own_fds, path)],
        }
        peer.send(json.dumps(found).encode())
        time.sleep(LIMIT)  # it lives until it is killed
        return 0

    with ours, peer, control, _secret:
        pid = fork(child)
        found = json.loads(ours.recv(1 << 16))
        held = {int(name): os.stat(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.stat(f"/proc/{pid}/root"))
        status, limits = status_of(pid), Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        assert sorted(held.keys() - {found["own_fds"]}) == sorted([0, 1, 2, peer.fileno(), control.fileno()])
        assert [held[fd].st_rdev == os.stat("/dev/null").st_rdev for fd in range(3)] == [True] * 3
        assert found["ns_inode"] == ipc_inode(pid) == ipc_inode(container)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
    os.close(pidfd)
    assert (found["opened"], found["led out"]) == (["/"], [])
    assert (bool(found["import"]), found["lacks"]) == (True, {})
    assert_has_nothing(status, limits)
    assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (NOBODY, NOBODY)  # it was given to the agent's user


def assert_has_nothing(status: dict[str, str], limits: str) -> None:
    assert status["Name"] == "r:a"
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert (status["Groups"], status["Umask"]) == ("", "0077")
    assert int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max open files +1024 +1024 ", limits)


OUT = (
    "../../etc",
    "../../../etc",
    "../../../../etc",
    "../../../../../etc",
)  # from /proc/self/fd, if it were the host's


def opens(directory: int, path: str) -> None:
    os.close(os.open(path, os.O_RDONLY, dir_fd=directory))
