"""The filter of system calls: as the kernel obeys it here, and as a program for the machines that are not here."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.agents import entry, linux, seccomp
from nsbridge.agents.endpoints.queue import Queue
from nsbridge.agents.fork import fork as agents_fork
from nsbridge.config.schema import Namespace
from tests.child import exit_code, in_child

HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
ALLOW, REFUSE, UNKNOWN, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
PID = 4711

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def header_numbers(machine: str) -> dict[str, int]:
    text = Path(HEADERS[machine]).read_text(encoding="ascii")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text)}
    return numbers | {"newfstatat": numbers.get("newfstatat", numbers.get("fstatat", -1))}


@pytest.mark.parametrize("machine", sorted(HEADERS))
def test_the_numbers_are_those_of_the_kernel_s_headers(machine: str) -> None:
    known = header_numbers(machine)
    wrong = {name: number for name, number in seccomp.MACHINES[machine].numbers.items() if known.get(name) != number}
    assert wrong == {}


# -- what the kernel says


def numbers() -> dict[str, int]:
    """All calls of this machine, by name."""
    return header_numbers(os.uname().machine)


def call(name: str, *arguments: object) -> str:
    """The name of the error; empty if it succeeded."""
    ctypes.set_errno(0)
    result = libc.syscall(numbers()[name], *arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else ""


def confined(namespace: Namespace, then: Callable[[], object]) -> object:
    """What `then` says in a child that has given up as an agent does. It may open nothing that it has not opened."""
    numbers()  # its header is to be found also later

    def child() -> object:
        os.setgroups([])
        entry.drop_privileges(0, 0)
        entry.filter_system_calls(namespace)
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


@pytest.mark.parametrize("namespace", Namespace)
def test_what_an_agent_never_does_is_refused(namespace: Namespace) -> None:
    assert confined(namespace, lambda: {name: call(name, *REFUSED[name]) for name in REFUSED}) == dict.fromkeys(
        REFUSED, "EPERM"
    )


def test_what_only_the_other_kind_of_agent_does_is_refused() -> None:
    files = {"msgget": (1, 0), "msgrcv": (0, None, 0, 0, 0), "clone": (signal.SIGCHLD, 0, 0, 0, 0)}
    assert set(confined(Namespace.MNT, lambda: [call(name, *files[name]) for name in files])) == {"EPERM"}  # type: ignore[call-overload]
    assert confined(Namespace.IPC, lambda: call("inotify_init1", 0)) == "EPERM"


def test_arguments_that_would_do_something_else_are_refused() -> None:
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    code = mmap.PROT_READ | mmap.PROT_EXEC
    address = linux.address_of(memoryview(mmap.mmap(-1, mmap.PAGESIZE)))

    def attempts() -> list[str]:
        return [
            call("mmap", None, ctypes.c_size_t(4096), code, anonymous, -1, 0),
            call("mmap", None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, 0, 0),
            call("mmap", None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_PRIVATE, 0, 0),
            call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(4096), code),
            call("clone", ctypes.c_ulong(linux.CLONE_NEWUSER | signal.SIGCHLD), 0, 0, 0, 0),
            call("clone", ctypes.c_ulong(linux.CLONE_NEWNS | signal.SIGCHLD), 0, 0, 0, 0),
            call("clone", ctypes.c_ulong(0x8000 | signal.SIGCHLD), 0, 0, 0, 0),  # CLONE_PARENT
            call("ioctl", 0, 0x5412, b"x"),  # TIOCSTI
            call("prctl", linux.PR_SET_DUMPABLE, 1, 0, 0, 0),
            call("prctl", linux.PR_CAP_AMBIENT, 0, 0, 0, 0),
            call("kill", os.getppid(), 0),
            call("kill", -1, 0),
            call("tgkill", os.getppid(), os.getppid(), 0),
        ]

    assert confined(Namespace.IPC, attempts) == ["EPERM"] * 13
    shared = (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, 3 | mmap.MAP_ANONYMOUS)  # 3: MAP_SHARED_VALIDATE
    size = ctypes.c_size_t(4096)
    assert (
        confined(Namespace.MNT, lambda: [call("mmap", None, size, mmap.PROT_READ, flags, -1, 0) for flags in shared])
        == ["EPERM"] * 2
    )
    assert confined(Namespace.MNT, lambda: mmap.mmap(-1, 4096, flags=anonymous).close()) is None
    assert confined(Namespace.IPC, lambda: mmap.mmap(-1, 4096).close()) is None


def test_a_c_library_goes_on_without_what_it_cannot_have() -> None:
    def attempts() -> list[str]:
        ctypes.set_errno(0)
        libc.syscall(999)
        unheard_of = errno.errorcode[ctypes.get_errno()]
        return [call("clone3", None, 0), unheard_of]

    assert confined(Namespace.IPC, attempts) == ["ENOSYS"] * 2


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is of x86_64")
def test_calls_of_x32_are_refused() -> None:
    def attempt() -> list[str]:
        answers = []
        for number in (numbers()["getppid"], numbers()["execve"], 520):  # 520: x32's own execve
            ctypes.set_errno(0)
            libc.syscall(0x40000000 | number)
            answers.append(errno.errorcode[ctypes.get_errno()])
        return answers

    assert confined(Namespace.IPC, attempt) == ["EPERM"] * 3


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
        done = confined(Namespace.IPC, work)
    assert done == ["thread", len("EPERM"), "x", "signal", 10, 8, 50]


def test_an_agent_may_end_itself() -> None:
    """As it does when one of its senders is killed."""

    def child() -> int:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        entry.filter_system_calls(Namespace.IPC)
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    assert exit_code(child) == -signal.SIGKILL


# -- machines that are not here


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would: the verdict on one call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("namespace", Namespace)
@pytest.mark.parametrize("name", sorted(seccomp.MACHINES))
def test_every_call_of_every_machine_has_the_verdict_of_the_table(name: str, namespace: Namespace) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine, namespace, PID)
    allowed = {machine.numbers[call] for call in seccomp.allowed(namespace) if call in machine.numbers}
    good = {"kill": (PID, 9), "tgkill": (PID, 1, 9), "ioctl": (3, 0x5421), "prctl": (15,), "clone": (0x3D0F00,)}
    good["mmap"] = (0, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = {machine.numbers[call]: arguments for call, arguments in good.items() if call in machine.numbers}
    for number in range(600):
        verdict = run(program, machine.audit_arch, number, *first.get(number, ()))
        if number in allowed:
            assert verdict == ALLOW, number
        elif number == machine.numbers["clone3"] or number > 469:
            assert verdict == UNKNOWN, number
        else:
            assert verdict == REFUSE, number


@pytest.mark.parametrize("name", sorted(seccomp.MACHINES))
def test_a_call_by_another_architecture_s_numbers_kills(name: str) -> None:
    program = seccomp.program(seccomp.MACHINES[name], Namespace.MNT, PID)
    for other in (0x40000003, 0x40000028, 0):  # i386, arm, none
        assert run(program, other, 0) == KILL


@pytest.mark.parametrize("name", sorted(seccomp.MACHINES))
def test_the_bits_above_the_32nd_hide_nothing(name: str) -> None:
    """The kernel looks at 32 bits of these arguments, as the filter does."""
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine, Namespace.IPC, PID)
    high = 1 << 32
    assert run(program, machine.audit_arch, machine.numbers["kill"], high | PID) == ALLOW
    assert run(program, machine.audit_arch, machine.numbers["kill"], high | 1) == REFUSE
    assert run(program, machine.audit_arch, machine.numbers["mmap"], 0, 4096, high | 4) == REFUSE
