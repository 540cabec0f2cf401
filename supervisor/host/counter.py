"""Has the kernel count what agents send into queues and receive from them, so that a SIGKILL leaves no doubt.

A program runs on the exit of each call of _CALLS. `processes` maps the pid of an agent to its slot; only this module
and an agent before it is confined write it. `slots` has the counts (agents/counter.py); it is frozen, so only the
programs write it. `names` gives each agent the same slot each time.

All of it is pinned below /sys/fs/bpf/nsbridge, in a folder for each state_dir and version of the programs. So the
counts survive even if the supervisor and all agents are killed at once, and the next supervisor continues with them. A
reboot takes pins and queues along. pins.py releases the pins of supervisors that do not come back.

An agent's pid may be given to another process once it is reaped, so the supervisor takes it out of `processes` before.
If the supervisor dies, the next one takes all out at its start. A process that got such a pid in between, and sends,
adds to the slot: then the count exceeds what the agent intended to send, and the batch counts as in doubt.

The programs see pids of the supervisor's own pid namespace only, so it may be a nested one. The namespace is part of
the version, because a program that was pinned for another namespace counts nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from nsbridge.agents import linux
from nsbridge.agents.counter import LENGTHS, LENGTHS_AT, LIFE_SLOT, RECEIVED_AT, SENT_AT, SLOT_SIZE, Lease
from nsbridge.config.descriptors import closing
from nsbridge.supervisor.host import bpf, pins, procfs
from nsbridge.supervisor.host.pins import Owner

BPFFS = "/sys/fs/bpf"
_SLOTS = 2048  # 1 MB
_NAME_SIZE = 16  # bytes of a digest
_SYSV = ("msgsnd", "msgrcv")
_POSIX = ("mq_timedsend", "mq_timedreceive")  # a kernel may lack them (CONFIG_POSIX_MQUEUE), and with them their queues
_SOCKETS = ("pwritev2", "preadv2")  # no other part of an agent makes these
_RECEIVING = ("msgrcv", "mq_timedreceive", "preadv2")
_RETURNS_LENGTH = (*_RECEIVING, "pwritev2")
_MAP_LOOKUP_ELEM, _GET_NS_CURRENT_PID_TGID = 1, 120  # helpers
_BPF_FS_MAGIC = 0xCAFE4A11
_U32 = struct.Struct("<I")
_CAPABILITIES = {38: "CAP_PERFMON", 39: "CAP_BPF"}


class Unavailable(Exception):
    """The kernel's count cannot be had here; the text says why and what would help."""


class KernelCounter:
    """The counter of one state directory, which the caller has locked."""

    def __init__(self, state_dir: str) -> None:
        """Continue with what is pinned, or begin anew. Raises Unavailable."""
        _mount_if_missing()
        key = hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:16]
        self._fds: dict[str, int] = {}
        try:
            self._calls = _calls()
            self._place = Path(BPFFS, "nsbridge", f"{key}-{_version(self._calls)}")
            _remove(found for found in self._place.parent.glob(f"{key}-*") if found != self._place)
            if not self._take_up():
                _remove([self._place])
                self._begin()
            me = Owner.this_process(state_dir)
            me.claim(self._place)
            pins.release_dead(self._place.parent, me)
        except OSError as error:
            self.close()
            raise Unavailable(_explained(error)) from None
        self.life = self._read_life()
        for pid in list(bpf.keys(self._fds["processes"], 4)):
            bpf.delete(self._fds["processes"], pid)

    def lease(self, agent: str) -> Lease | None:
        """Return what the agent needs to register; None if all slots are given away."""
        name = hashlib.sha256(agent.encode()).digest()[:_NAME_SIZE]
        found = bpf.look_up(self._fds["names"], name, 4)
        if found is None:
            used = {bpf.look_up(self._fds["names"], key, 4) for key in bpf.keys(self._fds["names"], _NAME_SIZE)}
            found = next((free for slot in range(1, _SLOTS) if (free := _U32.pack(slot)) not in used), None)
            if found is None:
                return None
            bpf.update(self._fds["names"], name, found)
        return Lease(self._fds["slots"], _U32.unpack(found)[0], self.life, self.skipped())

    def register(self, lease: Lease) -> None:
        """Count what this process does, from now on. An agent calls this when it is forked, as root."""
        bpf.update(self._fds["processes"], _U32.pack(os.getpid()), _U32.pack(lease.slot))

    def forget(self, pid: int) -> None:
        """Count no more what the process with this pid does. Call this before the process is reaped."""
        bpf.delete(self._fds["processes"], _U32.pack(pid))

    def skipped(self) -> int:
        """Return how often a program was skipped, because another tracing program ran on that processor."""
        return sum(bpf.skipped(self._fds[call]) for call in self._calls)

    def close(self) -> None:
        """Close the descriptors; what is pinned continues."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def remove(self) -> None:
        """End the counting, after an orderly stop: no journal has anything in flight."""
        self.close()
        _remove([self._place])
        with suppress(OSError):
            self._place.parent.rmdir()  # the last one

    def _take_up(self) -> bool:
        try:
            for what in ("processes", "names", "slots", *self._calls):
                self._fds[what] = bpf.pinned(str(self._place / what))
        except FileNotFoundError:
            self.close()
            return False
        for call in self._calls:
            try:
                self._fds[_link(call)] = bpf.pinned(str(self._place / _link(call)))
            except FileNotFoundError:  # another daemon saw that this one's supervisor was dead (pins.py)
                self._attach(call)
                bpf.pin(self._fds[_link(call)], str(self._place / _link(call)))
        return True

    def _attach(self, call: str) -> None:
        self._fds[_link(call)] = bpf.attach(self._fds[call], bpf.tracepoint(_exit_of(call)))

    def _begin(self) -> None:
        self._fds["processes"] = bpf.create_map(bpf.HASH, 4, 4, _SLOTS)
        self._fds["names"] = bpf.create_map(bpf.HASH, _NAME_SIZE, 4, _SLOTS)
        self._fds["slots"] = bpf.create_map(bpf.ARRAY, 4, SLOT_SIZE, _SLOTS, bpf.MMAPABLE)
        life = os.urandom(6) + bytes(SLOT_SIZE - 6)
        bpf.update(self._fds["slots"], _U32.pack(LIFE_SLOT), life)
        bpf.freeze(self._fds["slots"])
        for call in self._calls:
            self._fds[call] = bpf.load(_program(self._fds["processes"], self._fds["slots"], call, _pid_namespace()))
            self._attach(call)
        self._place.mkdir(parents=True, mode=0o700)
        for what, fd in self._fds.items():
            bpf.pin(fd, str(self._place / what))

    def _read_life(self) -> int:
        slot = bpf.look_up(self._fds["slots"], _U32.pack(LIFE_SLOT), SLOT_SIZE) or b""
        return int.from_bytes(slot[:6], "little")


def _calls() -> tuple[str, ...]:
    """Return the calls that are counted on this kernel."""
    with suppress(FileNotFoundError):
        for call in _POSIX:
            bpf.tracepoint(_exit_of(call))
        return (*_SYSV, *_SOCKETS, *_POSIX)
    return (*_SYSV, *_SOCKETS)


def _exit_of(call: str) -> str:
    """Return the tracepoint on the exit of a call."""
    return f"syscalls/sys_exit_{call}"


def _version(calls: Sequence[str]) -> str:
    """Return what is the same as long as these calls are counted by the same programs."""
    code = b"".join(call.encode() + _program(0, 0, call, _pid_namespace()) for call in calls)
    return hashlib.sha256(code).hexdigest()[:8]


def _pid_namespace() -> tuple[int, int]:
    """Return this process's pid namespace, as the kernel's device number and inode."""
    space = os.stat("/proc/self/ns/pid")  # noqa: PTH116  (a magic link, not a path)
    return os.major(space.st_dev) << 20 | os.minor(space.st_dev), space.st_ino


def _link(call: str) -> str:
    return f"{call}{pins.LINK}"


def _remove(places: Iterable[Path]) -> None:
    for place in places:
        with suppress(FileNotFoundError):
            shutil.rmtree(place)


def _mount_if_missing() -> None:
    """Mount the bpffs where systemd has it. Raises Unavailable."""
    try:
        with closing(os.open(BPFFS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            if linux.filesystem(fd) == _BPF_FS_MAGIC:
                return
        linux.mount("bpf", BPFFS, "bpf", 0, "mode=0700")
    except OSError as error:
        raise Unavailable(
            f"no bpffs is mounted at {BPFFS}, and it cannot be ({error.strerror}): mount -t bpf bpf {BPFFS}"
        ) from None


def _explained(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        lacking = " and ".join(procfs.capabilities_lacking(_CAPABILITIES))
        if lacking:
            return f"{error.strerror}: nsbridged needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN; it lacks {lacking}"
        return (
            f"{error.strerror}: the kernel forbids it, although nsbridged has CAP_BPF and CAP_PERFMON: is it locked "
            "down (/sys/kernel/security/lockdown), or does a security module or a seccomp filter refuse bpf(2)?"
        )
    if error.errno in (errno.ENOSYS, errno.EINVAL, errno.ENOENT, errno.ENODEV):
        return f"{error.strerror}: the kernel needs CONFIG_BPF_SYSCALL and CONFIG_FTRACE_SYSCALLS"
    return str(error.strerror)


# -- the programs. Each line is one instruction; see linux/bpf.h for the codes.

_EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def _op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def _wide(dst: int, value: int, src: int = 0) -> bytes:
    """Load 64 bits; with `src` 1 the value is a map's descriptor."""
    return _op(0x18, dst, src, 0, _signed(value & 0xFFFFFFFF)) + _op(0, 0, 0, 0, _signed(value >> 32))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _program(processes: int, slots: int, call: str, namespace: tuple[int, int]) -> bytes:
    """Return the program for the exit of `call`, with the descriptors of both maps and its pid namespace.

    If the call succeeded and its process is registered, the slot's count goes up by one; of a received message the
    length is stored before.
    """
    receives = call in _RECEIVING
    count_at = RECEIVED_AT if receives else SENT_AT
    store_length = [
        _op(0x79, 1, 0, RECEIVED_AT),  # r1 = slot->received
        _op(0x57, 1, 0, 0, LENGTHS - 1),  # r1 &= LENGTHS - 1
        _op(0x67, 1, 0, 0, 2),  # r1 *= 4
        _op(0xBF, 2, 0),  # r2 = slot
        _op(0x0F, 2, 1),  # r2 += r1
        _op(0x63, 2, 7, LENGTHS_AT),  # r2->lengths = result
    ]
    steps = [
        _op(0x79, 7, 1, 16),  # r7 = the call's result
        (0xC5 if call in _RETURNS_LENGTH else 0x55, 7),  # failed: if r7 < 0, or r7 != 0
        _wide(1, namespace[0]),
        _wide(2, namespace[1]),
        _op(0xBF, 3, 10) + _op(0x07, 3, 0, 0, -16),  # r3 = &info on the stack
        _op(0xB7, 4, 0, 0, 8),
        _op(0x85, 0, 0, 0, _GET_NS_CURRENT_PID_TGID),
        (0x55, 0),  # of another pid namespace: if r0 != 0
        _op(0x61, 1, 10, -12) + _op(0x63, 10, 1, -4),  # key = info.tgid
        _op(0xBF, 2, 10) + _op(0x07, 2, 0, 0, -4),
        _wide(1, processes, 1),
        _op(0x85, 0, 0, 0, _MAP_LOOKUP_ELEM),
        (0x15, 0),  # not registered: if r0 == 0
        _op(0x61, 1, 0) + _op(0x63, 10, 1, -4),  # key = *r0, the slot's number
        _op(0xBF, 2, 10) + _op(0x07, 2, 0, 0, -4),
        _wide(1, slots, 1),
        _op(0x85, 0, 0, 0, _MAP_LOOKUP_ELEM),
        (0x15, 0),
        *(store_length if receives else ()),
        _op(0xB7, 1, 0, 0, 1) + _op(0xDB, 0, 1, count_at),  # atomically slot->count += 1
    ]
    return _linked(steps) + _op(0xB7) + _EXIT


def _linked(steps: list[bytes | tuple[int, int]]) -> bytes:
    """Join instructions; a pair (code, register) becomes a jump to the end."""
    sizes = [8 if isinstance(step, tuple) else len(step) for step in steps]
    code = b""
    for number, step in enumerate(steps):
        left = sum(sizes[number + 1 :]) // 8
        code += _op(step[0], step[1], 0, left) if isinstance(step, tuple) else step
    return code
