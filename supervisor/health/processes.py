"""Describes a process for `nsbridgectl inspect`, and measures its own memory. The only user of psutil.

Everything is read from the host's /proc, because a container's /proc cannot be trusted. `inspect` and `own_memory` read
files that take the process's mmap_lock. A hostile process can keep that lock; then the reader hangs and cannot
even be killed. So only bounded children call them (control/errands.py, measuring.py), never the loop.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.host import procfs

MAX_DESCRIPTORS = 256  # listed; all are counted
MAX_TARGET = 1000  # characters of a descriptor's target
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


def inspect(pid: int, container_pid: int | None = None, *, memory: bool = True) -> dict[str, object]:
    """Describe process `pid` as JSON values; memory in bytes, times in seconds.

    Without `memory`, read no file that takes the process's mmap_lock; values from such files are null.

    Namespaces are compared with our own, which are the host's, and with those of `container_pid` if it is given.
    NsbridgeError if the process has gone or cannot be read.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            facts = _general(process, memory=memory)
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


def own_memory(pid: int) -> int | None:
    """Return the bytes that would be free if the process ended; None if it has ended.

    The kernel walks its page tables for it under its mmap_lock, about 0.9 ms. Only a bounded child calls this.
    """
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except (psutil.Error, OSError):
        return None


def _general(process: psutil.Process, *, memory: bool) -> dict[str, object]:
    uids, gids, cpu = process.uids(), process.gids(), process.cpu_times()
    uptime = _uptime(process.pid)
    return {
        "pid": process.pid,
        "ppid": process.ppid(),
        "status": process.status(),
        "uids": {"real": uids.real, "effective": uids.effective, "saved": uids.saved},
        "gids": {"real": gids.real, "effective": gids.effective, "saved": gids.saved},
        "threads": process.num_threads(),
        "uptime_s": round(uptime, 2),
        "memory": _memory(process, exact=memory),
        "cpu": {
            "user_s": cpu.user,
            "system_s": cpu.system,
            "percent": round(100 * (cpu.user + cpu.system) / uptime, 2) if uptime > 0 else 0.0,
        },
    }


def _memory(process: psutil.Process, *, exact: bool) -> dict[str, int | None]:
    if exact:
        full = process.memory_full_info()
        return {"rss": full.rss, "pss": full.pss, "own": full.uss, "swap": full.swap}
    return {"rss": process.memory_info().rss, "pss": None, "own": None, "swap": None}


def _uptime(pid: int) -> float:
    """Return the seconds since it started, by a clock that is never set (psutil's create_time is wall time)."""
    started = procfs.read_stat(pid).start_time / procfs.TICKS
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _descriptors(pid: int) -> dict[str, object]:
    """Count the open descriptors by kind; one that is closed during the count is left out."""
    directory = Path(f"/proc/{pid}/fd")
    numbers = sorted(int(entry.name) for entry in directory.iterdir())
    listed = []
    for number in numbers[:MAX_DESCRIPTORS]:
        try:
            listed.append({"fd": number, "target": os.readlink(directory / str(number))[:MAX_TARGET]})  # noqa: PTH115
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
    """Return the container's namespaces; None if it is not wanted, or has gone in the meantime."""
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
