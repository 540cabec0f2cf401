"""How a forked child loses its ties, its imports and its power: each test's child is a real one, forked by root."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents import entry, linux, seccomp
from nsbridge.agents.entry import Assignment
from nsbridge.agents.fork import EXIT_AGAIN
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.config.schema import (
    AgentConfig,
    Confinement,
    Container,
    ContainerKind,
    QueueEndpoint,
    QueueOut,
    RouteConfig,
    SpoolEndpoint,
    User,
)
from tests.child import Family, be_subreaper, exit_code, in_child

NOBODY = 65534


def status_of_self() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("keep", [set(), {0}, {0, 1, 2}, {2, 5}, {1, 2, 3, 900}, {900}])
def test_close_all_but_closes_all_but_these(keep: set[int]) -> None:
    """os.closerange(0, 0) closes everything, so 0 among them is the difficult case."""

    def child() -> int:
        null = os.open("/dev/null", os.O_RDONLY)
        for fd in (*range(8), 900, 1023):
            os.dup2(null, fd)
        entry.close_all_but(keep)
        return sum(is_open(fd) != (fd in keep) for fd in range(2000))

    assert exit_code(child) == 0


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- what an agent must not load


def test_after_freezing_nothing_is_imported() -> None:
    def child() -> list[str]:
        entry.freeze_imports()
        return [attempt(__import__, name) for name in ("wave", "xml.dom", "_strptime", "nonsense")]

    assert [name for name in ("wave", "xml.dom", "_strptime") if name in sys.modules] == []
    answers = in_child(child)
    assert all("it would be read from the container" in answer for answer in answers), answers


def attempt(action: Callable[..., object], *arguments: object) -> str:
    """What was raised, empty if nothing was."""
    try:
        action(*arguments)
    except Exception as error:  # noqa: BLE001  (that is the question)
        return f"{type(error).__name__}: {error}"
    return ""


def test_after_freezing_what_would_import_says_so_in_one_line() -> None:
    def child() -> list[str]:
        entry.freeze_imports()
        return [attempt(time.strptime, "1", "%d"), attempt("x.y".encode, "idna")]

    strptime, idna = in_child(child)
    assert strptime.startswith("ImportError: import of '_strptime' in an agent")
    assert idna == "LookupError: unknown encoding: idna"


def test_after_freezing_all_that_an_agent_does_needs_no_import() -> None:
    """A new interpreter that has loaded an agent's modules and nothing else; its finders are gone, then all is used."""
    program = """
import os, sys
from nsbridge.agents import entry, runtime
entry.freeze_imports()
before = set(sys.modules)
import json, struct, time, threading, signal, socket, select
socket.socketpair()
assert json.loads(json.dumps({"text": "\\udcff\\u00e4", "n": 1.5})) == {"text": "\\udcff\\u00e4", "n": 1.5}
for bad in (b"{", b"\\xff", b"[" * 100_000):
    try:
        json.loads(bad)
    except (ValueError, RecursionError) as error:
        str(error)
assert struct.pack("<Q", 5)
time.strftime("%H:%M:%S"), time.time(), time.monotonic_ns(), time.gmtime()
b"\\xff".decode("utf-8", "backslashreplace"), "\\udcff".encode("utf-8", "surrogateescape"), os.fsencode("\\udcff")
b"a".decode("latin-1"), "a".encode("ascii", "replace"), f"{1.5:.0f} {b'x'!r} {3:>4}"
for failing in (lambda: os.open("/nonexistent", 0), lambda: 1 / 0, lambda: {}["x"], lambda: os.kill(1 << 30, 0)):
    try:
        failing()
    except Exception as error:
        str(error), repr(error), os.strerror(getattr(error, "errno", None) or 5)
thread = threading.Thread(target=lambda: None)
thread.start(); thread.join()
signal.Signals(9).name, signal.valid_signals()
from nsbridge.agents import control, linux, wire
from nsbridge.agents.endpoints import file, queue, spool, watch, files
watch.INotify().close()
assert set(sys.modules) == before, set(sys.modules) - before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_after_freezing_the_container_s_time_zone_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/localtime")  # opening it hangs
    program = """
import os, signal, sys, time
from nsbridge.agents import entry
signal.alarm(5)
entry.freeze_imports()
os.chroot(sys.argv[1])
time.localtime(0), time.ctime(0), time.strftime("%c %Z"), time.mktime(time.gmtime(0))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# -- the parent's death


@pytest.fixture
def subreaper() -> Iterator[None]:
    """The children of killed children come to this process."""
    be_subreaper(yes=True)
    yield
    be_subreaper(yes=False)


def test_an_agent_dies_with_its_supervisor(subreaper: None) -> None:
    assert Family(entry.die_with_the_supervisor).kill_parent() == -signal.SIGKILL


def test_an_agent_that_changed_its_user_dies_with_its_supervisor(subreaper: None) -> None:
    def main(parent: int) -> None:
        entry.die_with_the_supervisor(parent)
        entry.drop_privileges(NOBODY, NOBODY)
        entry.die_with_the_supervisor(parent)

    assert Family(main).kill_parent() == -signal.SIGKILL


def test_an_agent_whose_supervisor_is_already_dead_exits(subreaper: None) -> None:
    def late(parent: int) -> None:
        while os.getppid() == parent:  # from its death on no signal comes any more
            time.sleep(0.001)
        entry.die_with_the_supervisor(parent)

    assert Family(late, ready_before=True).kill_parent() == EXIT_AGAIN


# -- privileges


@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, NOBODY), (1000, 2000), (0, 0)])
def test_an_agent_has_no_power_left(uid: int, gid: int) -> None:
    def child() -> tuple[dict[str, str], int]:
        os.setgroups([])
        entry.drop_privileges(uid, gid)
        return status_of_self(), linux.prctl(linux.PR_GET_DUMPABLE)

    status, dumpable = in_child(child)
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert not any(sets.values()), sets
    assert status["NoNewPrivs"] == "1"
    assert dumpable == 0
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["Groups"] == ""


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_an_agent_cannot_take_its_power_back(uid: int) -> None:
    def child() -> list[str]:
        entry.drop_privileges(uid, uid)
        return [
            attempt(os.setresuid, 1, 1, 1),
            attempt(os.setgroups, [0]),
            attempt(os.chroot, "/tmp"),
            attempt(linux.unshare, linux.CLONE_NEWNS),
            attempt(linux.mount, "none", "/tmp", "tmpfs"),
        ]

    assert [answer.split(":")[0] for answer in in_child(child)] == ["PermissionError"] * 5


# -- the namespace


def assignment(**changes: object) -> Assignment:
    agent = AgentConfig("r:a", Container(ContainerKind.PID, "1"), QueueEndpoint(out=QueueOut(1)), User(NOBODY, NOBODY))
    other = AgentConfig("r:b", Container(ContainerKind.HOST, ""), SpoolEndpoint(in_="/in"))
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
    return Assignment(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def container() -> Iterator[int]:
    """The pid of a process in an ipc namespace of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        linux.unshare(linux.CLONE_NEWIPC)
        os.write(writer, b"x")
        signal.pause()
        os._exit(1)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def ipc_inode(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/ipc").st_ino


def test_an_agent_is_in_its_container_s_namespace(container: int) -> None:
    inode, own = in_child(lambda: (entry.join(assignment(container_pid=container)), ipc_inode("self")))
    assert inode == own == ipc_inode(container) != ipc_inode("self")


def test_an_agent_joins_a_namespace_by_its_file(container: int) -> None:
    given = assignment(container_pid=0, ns_path=f"/proc/{container}/ns/ipc")
    assert in_child(lambda: (entry.join(given), ipc_inode("self"))) == [ipc_inode(container)] * 2


def test_the_host_s_own_namespace_is_refused() -> None:
    with pytest.raises(entry.Refused, match=r"the ipc namespace of pid:1 is the host's own; .* container = \"host\""):
        entry.join(assignment())


def test_the_host_is_left_as_it_is_if_it_is_asked_for_by_name() -> None:
    host = AgentConfig("r:a", Container(ContainerKind.HOST, ""), QueueEndpoint(out=QueueOut(1)))
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
        entry.enter(given, own_fds, [], lambda: (0, 0))

    assert Family(main).kill_parent() == -signal.SIGKILL


def without_seccomp(then: Callable[[], object]) -> object:
    """What `then` says where the kernel has no seccomp: a filter that answers so stands in for it."""
    call = seccomp.MACHINES[os.uname().machine].numbers["seccomp"]
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]

    def child() -> object:
        linux.set_seccomp_filter(call, b"".join(struct.pack("<HBBI", *line) for line in lines))
        return then()

    return in_child(child)


def test_without_seccomp_an_agent_runs_and_says_so() -> None:
    assert without_seccomp(lambda: entry.confine(assignment())) == {"seccomp": "seccomp: Function not implemented"}


def test_without_a_seccomp_that_is_required_an_agent_refuses_and_says_what_would_mend_it() -> None:
    required = assignment(require=(Confinement.SECCOMP,))
    said = without_seccomp(lambda: attempt(entry.confine, required))
    assert said == (
        "Refused: seccomp is required and cannot be had here (seccomp: Function not implemented): "
        "use a kernel with CONFIG_SECCOMP_FILTER, or take it out of require in [daemon]"
    )


def test_an_agent_that_has_entered_keeps_nothing_but_what_it_was_given(container: int, tmp_path: Path) -> None:
    ours, peer = socket.socketpair()
    control, _secret = socket.socketpair()
    pidfd = os.pidfd_open(container)
    given = assignment(container_pid=container, pidfd=pidfd, peer_fd=peer.fileno(), control_fd=control.fileno())

    def child() -> int:
        os.setgroups([4, 27])
        own_fds = entry.leave_the_supervisor(given)
        own = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        entered = entry.enter(given, own_fds, [own], lambda: (0, 0))
        os.close(own)
        found = {
            "fds": sorted(set(filter(is_open, range(2000))) - {entered.own_fds}),
            "null": [os.stat(fd).st_rdev == os.stat("/dev/null").st_rdev for fd in range(3)],
            "ns_inode": [entered.ns_inode, ipc_inode("self")],
            "cwd": os.getcwd(),
            "status": status_of_self(),
            "import": attempt(__import__, "wave"),
            "lacks": entered.lacks,
        }
        peer.send(json.dumps(found).encode())
        return 0

    with ours, peer, control, _secret:
        assert exit_code(child) == 0
        found = json.loads(ours.recv(1 << 16))
        assert found["fds"] == sorted([0, 1, 2, peer.fileno(), control.fileno(), pidfd])
    os.close(pidfd)
    assert found["null"] == [True] * 3
    assert found["ns_inode"] == [ipc_inode(container)] * 2
    assert found["cwd"] == "/"
    assert found["status"]["Name"] == "r:a"
    assert found["status"]["Uid"].split() == [str(NOBODY)] * 4
    assert found["status"]["Groups"] == ""
    assert int(found["status"]["CapEff"], 16) == 0
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"], found["lacks"]) == ("1", "2", {})
    assert found["import"]
    assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (NOBODY, NOBODY)  # it was given to the agent's user
