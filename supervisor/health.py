"""What a process is like, for `nsbridgectl inspect` and `top`. The only user of psutil.

Everything is read from the host's /proc by the supervisor: inside a container there is no /proc to be trusted. What
decides whether an agent lives is its pidfd and its heartbeat, never this.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor import procfs

MAX_DESCRIPTORS = 256  # listed; all are counted
_SAME_PROCESS = 0.02  # seconds by which two readings of one start time may differ (two clock ticks)
_SECCOMP = {"0": "off", "1": "strict", "2": "filter"}  # proc_pid_status(5)
_SETS = {
    "inheritable": "CapInh",
    "permitted": "CapPrm",
    "effective": "CapEff",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}
# linux/capability.h, in the order of their numbers
_CAPABILITY_NAMES = """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
    net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
    sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
    mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""
_CAPABILITIES = _CAPABILITY_NAMES.split()


def inspect(pid: int, create_time: float | None = None, container_pid: int | None = None) -> dict[str, object]:
    """What there is to know about process `pid`, as JSON has it; memory in bytes, times in seconds.

    `create_time` (psutil's, seconds since the epoch) guards against a reused pid. Namespaces are compared with our own,
    which are the host's, and with those of `container_pid` if it is given. NsbridgeError if the process has gone or
    cannot be read.
    """
    try:
        process = psutil.Process(pid)
        if create_time is not None and abs(process.create_time() - create_time) > _SAME_PROCESS:
            raise psutil.NoSuchProcess(pid)
        with process.oneshot():
            facts = _general(process)
        status = procfs.read_status(pid)
        return {
            **facts,
            "descriptors": _descriptors(pid),
            "capabilities": {name: _capabilities(status.get(key, "0")) for name, key in _SETS.items()},
            "seccomp": _SECCOMP.get(status.get("Seccomp", ""), "unknown"),
            "no_new_privs": status.get("NoNewPrivs") == "1",
            "namespaces": _compare(_namespaces(pid), _namespaces(os.getpid()), _container(container_pid)),
        }
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        raise NsbridgeError(f"pid {pid}: the process has just ended; look again with nsbridgectl status") from None
    except (psutil.AccessDenied, PermissionError):
        raise NsbridgeError(
            f"pid {pid}: not permitted to look into the process; nsbridged must be root with CAP_SYS_PTRACE"
        ) from None


def confinement(pid: int, landlock: object) -> dict[str, object] | None:
    """What the kernel holds the process to, for `status`; None if it has gone.

    Nothing shows from outside whether Landlock is in force: `landlock` is the ABI that the process itself has said.
    """
    try:
        status = procfs.read_status(pid)
    except OSError:
        return None
    return {
        "seccomp": status.get("Seccomp") == "2",
        "landlock": landlock if type(landlock) is int else 0,
        "no_new_privs": status.get("NoNewPrivs") == "1",
    }


class Usage(NamedTuple):
    """What a process takes of the host."""

    memory: int  # bytes, not of files; of its own where it was looked at closely, else also what a fork shares
    descriptors: int


def usage(pid: int, enough: int) -> Usage | None:
    """What it takes now; None if it has ended. Cheap where it has less than `enough` bytes of memory by any count.

    resident - shared counts also what a fork shares; to know what is only its own, the kernel walks its page tables.
    """
    try:
        process = psutil.Process(pid)
        memory = process.memory_info()
        own = memory.rss - memory.shared
        if own > enough:
            own = process.memory_full_info().uss
        return Usage(own, process.num_fds())
    except (psutil.Error, OSError):
        return None


def own_usage(pids: tuple[int, ...]) -> Usage | None:
    """What these take together of memory that is only theirs, and the first of descriptors; None if that has ended.

    About 0.9 ms a process, in which the kernel walks its page tables.
    """
    try:
        return Usage(Meter(pids).own(), psutil.Process(pids[0]).num_fds())
    except (psutil.Error, OSError):
        return None


class Meter:
    """CPU time and memory of a few processes together, read again and again at little cost.

    The caller knows that the pids are still those processes': it has not reaped them. One that is gone counts nothing.
    """

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._processes = [process for pid in pids if (process := _process(pid))]

    def usage(self) -> tuple[float, int]:
        """(CPU seconds so far, resident bytes), about 0.04 ms a process."""
        seconds, resident = 0.0, 0
        for process in self._processes:
            try:
                with process.oneshot():
                    cpu = process.cpu_times()
                    seconds, resident = seconds + cpu.user + cpu.system, resident + process.memory_info().rss
            except psutil.Error:
                continue
        return seconds, resident

    def own(self) -> int:
        """The bytes that would be free if they ended. The kernel walks their page tables for it: about 0.9 ms each."""
        own = 0
        for process in self._processes:
            try:
                own += process.memory_full_info().uss
            except psutil.Error:
                continue
        return own


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def parent_of(pid: int) -> int:
    """Return the process whose child it is; 0 if there is no such process (any number may be asked)."""
    try:
        return procfs.read_stat(pid).parent
    except OSError:
        return 0


def exit_code(pid: int) -> int | None:
    """Return the exit code of a child that is ending, negative for a signal's number; None if it lives.

    The kernel may take a while from here until the child can be reaped.
    """
    try:
        about = procfs.read_stat(pid)
    except OSError:  # there is no descriptor to be had
        return None
    if not about.is_exiting or about.exit_status is None:
        return None
    return os.waitstatus_to_exitcode(about.exit_status)


def _general(process: psutil.Process) -> dict[str, object]:
    uids, gids, cpu, memory = process.uids(), process.gids(), process.cpu_times(), process.memory_full_info()
    uptime = _uptime(process.pid)
    return {
        "pid": process.pid,
        "ppid": process.ppid(),
        "status": process.status(),
        "uids": {"real": uids.real, "effective": uids.effective, "saved": uids.saved},
        "gids": {"real": gids.real, "effective": gids.effective, "saved": gids.saved},
        "threads": process.num_threads(),
        "uptime_s": round(uptime, 2),
        "memory": {"rss": memory.rss, "pss": memory.pss, "own": memory.uss, "swap": memory.swap},
        "cpu": {
            "user_s": cpu.user,
            "system_s": cpu.system,
            "percent": round(100 * (cpu.user + cpu.system) / uptime, 2) if uptime > 0 else 0.0,
        },
    }


def _uptime(pid: int) -> float:
    """Seconds since it started, by a clock that nobody steps (psutil's create_time is wall time)."""
    started = procfs.read_stat(pid).start_time / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _descriptors(pid: int) -> dict[str, object]:
    """How many are open and what they are; one that is closed while we look is left out."""
    directory = Path(f"/proc/{pid}/fd")
    numbers = sorted(int(entry.name) for entry in directory.iterdir())
    listed = []
    for number in numbers[:MAX_DESCRIPTORS]:
        try:
            listed.append({"fd": number, "target": os.readlink(directory / str(number))})  # noqa: PTH115
        except OSError:
            continue
    return {"count": len(numbers), "open": listed}


def _capabilities(mask: str) -> list[str]:
    bits = int(mask, 16)
    return [
        _CAPABILITIES[number] if number < len(_CAPABILITIES) else f"capability {number}"
        for number in range(bits.bit_length())
        if bits >> number & 1
    ]


def _namespaces(pid: int) -> dict[str, int]:
    return {entry.name: entry.stat().st_ino for entry in sorted(Path(f"/proc/{pid}/ns").iterdir())}


def _container(pid: int | None) -> dict[str, int] | None:
    """The container's namespaces; None if it is not asked for, or has gone in the meantime."""
    try:
        return None if pid is None else _namespaces(pid)
    except OSError:
        return None


def _compare(own: dict[str, int], host: dict[str, int], container: dict[str, int] | None) -> dict[str, object]:
    compared: dict[str, object] = {}
    for kind, inode in own.items():
        entry: dict[str, object] = {"inode": inode, "host": _same(inode, host.get(kind))}
        if container is not None:
            entry["container"] = _same(inode, container.get(kind))
        compared[kind] = entry
    return compared


def _same(inode: int, other: int | None) -> str:
    return "same" if inode == other else "different"
