"""The filter of system calls, as the kernel obeys it here (test_seccomp_program.py: for machines that are not here)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement import callrules, entry, seccomp, syscalls
from nsbridge.agents.endpoints.queue.queue import Queue
from nsbridge.agents.fork import fork as agents_fork
from tests.agents_calls import AGENTS
from tests.child import exit_code, in_child

HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def header_numbers(machine: str) -> dict[str, int]:
    text = Path(HEADERS[machine]).read_text(encoding="ascii")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text)}
    return numbers | {"newfstatat": numbers.get("newfstatat", numbers.get("fstatat", -1))}


@pytest.mark.parametrize("machine", sorted(HEADERS))
def test_the_numbers_are_those_of_the_kernel_s_headers(machine: str) -> None:
    known = header_numbers(machine)
    wrong = {
        name: number for name, number in seccomp.ARCHITECTURES[machine].numbers.items() if known.get(name) != number
    }
    assert wrong == {}


# -- what the kernel says


@cache
def numbers() -> dict[str, int]:
    """Return all calls of this machine, by name."""
    return header_numbers(os.uname().machine)


def call(name: str, *arguments: object) -> str:
    """Return the name of the error; empty if it succeeded."""
    ctypes.set_errno(0)
    result = libc.syscall(numbers()[name], *arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else ""


def confined(rules: Iterable[str], then: Callable[[], object]) -> Any:
    """Return what `then` returns in a child that has given up its power and is held to these rules."""
    numbers()  # its header is to be found also later

    def child() -> object:
        os.setgroups([])
        entry.drop_privileges(0, 0)
        entry.filter_system_calls(entry.compiled(tuple(rules)))
        return then()

    return in_child(child)


REFUSED = {
    "execve": (b"/bin/true\0", None, None),
    "execveat": (-100, b"/bin/true\0", None, None, 0),
    "ptrace": (0, 0, 0, 0),
    "mount": (b"none\0", b"/tmp\0", b"tmpfs\0", 0, None),
    "umount2": (b"/tmp\0", 0),
    "move_mount": (-1, b"\0", -1, b"\0", 0),
    "open_tree": (-100, b"/tmp\0", 0),
    "fsopen": (b"tmpfs\0", 0),
    "fsmount": (-1, 0, 0),
    "mount_setattr": (-1, b"\0", 0, None, 0),
    "pivot_root": (b"/tmp\0", b"/tmp\0"),
    "chroot": (b"/tmp\0",),
    "setns": (0, 0),
    "unshare": (linux.CLONE_NEWUSER,),
    "socket": (1, 1, 0),
    "socketpair": (1, 1, 0, None),
    "connect": (0, None, 0),
    "bind": (0, None, 0),
    "listen": (0, 1),
    "accept": (0, None, None),
    "accept4": (0, None, None, 0),
    "sendmsg": (0, None, 0),  # it could pass descriptors
    "recvmsg": (0, None, 0),
    "bpf": (0, None, 0),
    "open_by_handle_at": (-1, None, 0),
    "name_to_handle_at": (-100, b"/\0", None, None, 0),
    "process_vm_readv": (1, None, 0, None, 0, 0),
    "process_vm_writev": (1, None, 0, None, 0, 0),
    "kexec_load": (0, 0, None, 0),
    "keyctl": (0, 0),
    "add_key": (b"user\0", b"x\0", b"x", 1, -3),
    "request_key": (b"user\0", b"x\0", None, 0),
    "userfaultfd": (0,),
    "io_uring_setup": (1, None),
    "perf_event_open": (None, 0, -1, -1, 0),
    "init_module": (None, 0, b"\0"),
    "finit_module": (-1, b"\0", 0),
    "personality": (0xFFFFFFFF,),
    "pidfd_getfd": (-1, 0, 0),
    "pidfd_send_signal": (-1, 0, None, 0),
    "memfd_create": (b"x\0", 0),
    "mknodat": (-100, b"/tmp/x\0", 0o600, 0),
    "symlinkat": (b"/\0", -100, b"/tmp/x\0"),
    "linkat": (-100, b"/\0", -100, b"/tmp/x\0", 0),
    "setresuid": (0, 0, 0),
    "setgroups": (0, None),
    "capset": (None, None),
    "seccomp": (0, 0, None),
    "reboot": (0, 0, 0, None),
    "syslog": (0, None, 0),
    "shmget": (0, 4096, 0),
    "landlock_create_ruleset": (None, 0, 1),
}


each_agent = pytest.mark.parametrize("rules", AGENTS.values(), ids=AGENTS.keys())
QUEUE, SPOOL = AGENTS["queue, exactly-once"], AGENTS["spool"]
AT_START = AGENTS["queue, exactly-once, at its start"]


@each_agent
def test_what_an_agent_never_does_is_refused(rules: tuple[str, ...]) -> None:
    may = {"connect", "bind", "listen", "accept4"} & {*rules} | (
        {"socket", "connect"} if "socket:unix" in rules else set()
    )
    never = REFUSED.keys() - may
    assert confined([*rules, "getppid"], lambda: {name: call(name, *REFUSED[name]) for name in never}) == (
        dict.fromkeys(never, "EPERM")
    )


def test_only_kinds_that_need_sockets_have_their_calls() -> None:
    """A file's or a queue's agent can neither make a socket nor connect one that it has."""
    calls = {"socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendmsg", "recvmsg", "sendmmsg"}
    found = {
        who: {callrules.RULES[name].call for name in rules} & calls
        for who, rules in AGENTS.items()
        if who.partition(",")[0] != "socket"  # it has rules of its own for a container's Unix sockets
    }
    assert {who: calls for who, calls in found.items() if calls} == {"nats": {"socket", "connect"}}


@pytest.mark.parametrize(("agent", "opened"), [("nats", {"tcp", "tcp6"}), ("socket", {"unix"})])
def test_agent_opens_sockets_of_its_kind_only(agent: str, opened: set[str]) -> None:
    kinds = {
        "tcp": (2, 1),
        "tcp6": (10, 1 | 0o2004000),
        "unix": (1, 1),
        "udp": (2, 2),
        "netlink": (16, 3),
        "packet": (17, 3),
    }

    def attempts() -> dict[str, str]:
        return {name: call("socket", *kind, 0) for name, kind in kinds.items()}

    assert {name for name, error in confined(AGENTS[agent], attempts).items() if error != "EPERM"} == opened


# uretprobe and uprobe of x86_64: the kernel asks no filter, and sends a signal to a caller that it did not send there.
UNFILTERED = {335, 336} if os.uname().machine == "x86_64" else set[int]()


@each_agent
def test_every_call_without_a_rule_is_refused(rules: tuple[str, ...]) -> None:
    """Every number up to the newest that is known and some above, as this kernel answers it."""
    machine = syscalls.ARCHITECTURES[os.uname().machine]
    allowed = {machine.numbers.get(callrules.RULES[name].call) for name in rules}

    def attempts() -> list[int]:
        answers = []
        for number in range(600):
            ctypes.set_errno(0)
            if number not in allowed | UNFILTERED:
                libc.syscall(number, 0, 0, 0, 0, 0, 0)
            answers.append(ctypes.get_errno())
        return answers

    unknown = {machine.numbers["clone3"], *range(syscalls.NEWEST + 1, 600)}
    expected = [
        0 if number in allowed | UNFILTERED else errno.ENOSYS if number in unknown else errno.EPERM
        for number in range(600)
    ]
    assert confined(rules, attempts) == expected


def test_what_only_another_kind_of_agent_does_is_refused() -> None:
    files = {"msgget": (1, 0), "msgrcv": (0, None, 0, 0, 0), "clone": (signal.SIGCHLD, 0, 0, 0, 0)}
    assert confined(SPOOL, lambda: {call(name, *files[name]) for name in files} == {"EPERM"})
    assert confined(QUEUE, lambda: call("inotify_init1", 0)) == "EPERM"
    source, sink = AGENTS["queue, source"], AGENTS["queue, sink"]
    assert confined(source, lambda: call("msgsnd", 0, None, 0, 0)) == "EPERM"
    assert confined(sink, lambda: call("msgrcv", 0, None, 0, 0, 0)) == "EPERM"


F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY, O_ASYNC, F_SETLK = 8, 15, 10, 1026, 0o20000, 6
LIMITED: dict[str, tuple[Any, ...]] = {
    "F_SETOWN": ("fcntl", 0, F_SETOWN, 1),
    "F_SETOWN_EX": ("fcntl", 0, F_SETOWN_EX, None),
    "F_SETSIG": ("fcntl", 0, F_SETSIG, 9),
    "F_NOTIFY": ("fcntl", 0, F_NOTIFY, 1),
    "F_SETFL with O_ASYNC": ("fcntl", 0, 4, O_ASYNC),
    "F_SETLK": ("fcntl", 0, F_SETLK, None),
    "no death signal": ("prctl", linux.PR_SET_PDEATHSIG, 0),
    "another death signal": ("prctl", linux.PR_SET_PDEATHSIG, signal.SIGCONT),
    "dumpable": ("prctl", linux.PR_SET_DUMPABLE, 1, 0, 0, 0),
    "ambient capability": ("prctl", linux.PR_CAP_AMBIENT, 0, 0, 0, 0),
    "setuid": ("fchmod", 0, 0o4755),
    "setgid": ("fchmod", 0, 0o2755),
    "sticky directory": ("mkdirat", -100, b"/nowhere/x", 0o1777),
    "TIOCSTI": ("ioctl", 0, 0x5412, b"x"),
    "FIOASYNC": ("ioctl", 0, 0x5452, 0),
    "a hole in a journal": ("fallocate", 0, 3, 0, 1 << 20),
    "another process": ("kill", 1, 0),
    "everybody": ("kill", -1, 0),
    "a thread of another": ("tgkill", 1, 1, 0),
    "new user namespace": ("clone", linux.CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0),
    "new mount namespace": ("clone", linux.CLONE_NEWNS | signal.SIGCHLD, 0, 0, 0, 0),
    "CLONE_PARENT": ("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0),
    "a child in the same memory": ("clone", 0x100 | signal.SIGCHLD, 0, 0, 0, 0),
    "filter with a listener": ("seccomp", 1, 8, None),
    "lock": ("flock", 0, 8),
    "cut": ("ftruncate", 0, 0),
    "new umask": ("umask", 0),
    "sync everything": ("sync",),
}
QUEUES: dict[str, tuple[Any, ...]] = {
    "remove a queue": ("msgctl", 0, 0, None),
    "give a queue away": ("msgctl", 0, 1, None),
}
FSYNC: dict[str, tuple[Any, ...]] = {"syncfs": ("syncfs", -1), "fsync": ("fsync", -1), "fdatasync": ("fdatasync", -1)}


@each_agent
def test_arguments_that_would_do_something_else_are_refused(rules: tuple[str, ...]) -> None:
    """Each call is limited to the agent's need: signals, locks, children, modes, holes."""
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    code = mmap.PROT_READ | mmap.PROT_EXEC
    address = linux.address_of(memoryview(mmap.mmap(-1, mmap.PAGESIZE)))
    attempts = LIMITED | ({} if "syncfs" in rules else FSYNC) | ({} if "msgctl:limit" in rules else QUEUES)

    def tried() -> dict[str, str]:
        return {name: call(*attempt) for name, attempt in attempts.items()} | {
            "a file": call("mmap", None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_PRIVATE, 0, 0),
            "a shared file": call("mmap", None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, 0, 0),
            "executable memory": call("mmap", None, ctypes.c_size_t(4096), code, anonymous, -1, 0),
            "make it executable": call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(4096), code),
        }

    assert {name: why for name, why in confined(rules, tried).items() if why != "EPERM"} == {}


@pytest.mark.parametrize("name", [name for name in AGENTS if "start" not in name])
@pytest.mark.parametrize("kind", [mmap.MAP_SHARED, 3])  # 3: MAP_SHARED_VALIDATE
def test_no_agent_makes_shared_memory_once_it_serves(name: str, kind: int) -> None:
    """Only the agent that is about to fork its senders may: it shares a page with them."""
    flags, size = kind | mmap.MAP_ANONYMOUS, ctypes.c_size_t(4096)
    assert confined(AGENTS[name], lambda: call("mmap", None, size, mmap.PROT_READ, flags, -1, 0)) == "EPERM"
    assert confined(AT_START, lambda: mmap.mmap(-1, 4096).close()) is None


@pytest.mark.parametrize("name", [name for name in AGENTS if "start" not in name])
def test_no_agent_forks_once_it_serves(name: str) -> None:
    """Neither does a sender. Only an agent that has not yet forked its senders may fork."""

    def forks() -> list[str]:
        return [call("clone", flags, 0, 0, 0, 0) for flags in (signal.SIGCHLD, 0x1200011)]

    assert confined(AGENTS[name], forks) == ["EPERM"] * 2

    def narrowed() -> list[str]:
        child = agents_fork(lambda: 0)
        child.reap()
        entry.filter_system_calls(entry.compiled(QUEUE))
        return forks()

    assert confined(AT_START, narrowed) == ["EPERM"] * 2


def test_a_rule_is_in_force_for_threads_that_run_already() -> None:
    """Whichever thread installs the second filter."""

    def narrowed() -> list[str]:
        answers: list[str] = []
        go = threading.Event()

        def wait() -> None:
            go.wait()
            answers.append(call("clone", signal.SIGCHLD, 0, 0, 0, 0))

        thread = threading.Thread(target=wait)
        thread.start()
        entry.filter_system_calls(entry.compiled(QUEUE))
        go.set()
        thread.join()
        return answers

    assert confined(AT_START, narrowed) == ["EPERM"]


def test_a_c_library_works_without_what_it_cannot_have() -> None:
    def attempts() -> list[str]:
        ctypes.set_errno(0)
        libc.syscall(999)
        unheard_of = errno.errorcode[ctypes.get_errno()]
        return [call("clone3", None, 0), unheard_of]

    assert confined(QUEUE, attempts) == ["ENOSYS"] * 2


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is of x86_64")
def test_calls_of_x32_are_refused() -> None:
    def attempt() -> list[str]:
        answers = []
        for number in (numbers()["getppid"], numbers()["execve"], 520):  # 520: x32's own execve
            ctypes.set_errno(0)
            libc.syscall(0x40000000 | number)
            answers.append(errno.errorcode[ctypes.get_errno()])
        return answers

    assert confined(QUEUE, attempt) == ["EPERM"] * 3


def test_an_agent_can_do_what_it_does() -> None:
    """A thread, a child that inherits the filter, a queue, a signal to itself, its sockets, much memory."""
    key = os.getpid()

    def work() -> list[object]:
        said: list[object] = []
        thread = threading.Thread(target=lambda: said.append("thread"))
        thread.start()
        thread.join()
        child = agents_fork(lambda: len(call("execve", b"/bin/true\0", None, None)))
        said.append(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))
        queue = Queue(key, 0o1000, 0o600)
        queue.send(b"x")
        said.append(queue.receive()[0].decode())
        queue.remove()
        signal.signal(signal.SIGUSR2, lambda _number, _frame: said.append("signal"))
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        adopted = socket.socket(fileno=one.fileno())
        adopted.setblocking(False)
        adopted.send(b"y" * 10)
        said += [len(other.recv(100)), len(os.urandom(8)), len(bytearray(50 << 20)) >> 20]
        return said

    one, other = socket.socketpair()
    with one, other:
        done = confined((*AT_START, "msgctl:limit"), work)
    assert done == ["thread", len("EPERM"), "x", "signal", 10, 8, 50]


def test_an_agent_may_end_itself() -> None:
    """It does so when one of its senders is killed."""

    def child() -> int:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        entry.filter_system_calls(entry.compiled(QUEUE))
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    assert exit_code(child) == -signal.SIGKILL
