r"""The one reader of /proc/PID/stat and /proc/PID/status (proc_pid_stat(5), proc_pid_status(5)).

Some facts about these files, and what they mean here:
* A process chooses its own name (comm), up to 15 bytes of anything but NUL. In `stat` the name stands in brackets and
  may hold ")" and newlines itself: it ends at the *last* ")".
* In `status` the kernel escapes `\n` and `\` of the name, and nothing else. So a line ends at `\n` and nowhere else.
  bytes.splitlines() also ends one at `\r`, and str.splitlines() at `\x85`, `\u2028` and five others: with these a
  process could forge a `Uid:` line. Both files are read as bytes and split at b"\n" only.
* No key comes twice, and the name's line is the first one. The first line of a key counts.
* `Groups` may have 65,536 numbers, and stands before NSpid, the memory and the capabilities: `status` may be long.
* A thread reads both without taking the process's mmap_lock, so a process that holds it delays no reader. `smaps`,
  `smaps_rollup`, `maps`, `cmdline`, `environ` and `numa_maps` do take it: only a bounded child reads these
  (health/measuring.py, control/errands.py).
* Both hold the process's address space for some microseconds. If the process exits within these, the reader takes it
  apart, and a dirty shared mapping of a FUSE file then waits for its server (fuse_vma_close). An agent cannot have one:
  the seccomp filter lets it map nothing but private anonymous memory. Where there is no seccomp, that chance is left.
* `task/PID/children` and the link `exe` hold no address space at all. `exe` is gone as soon as the address space is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

MAX_THREADS = 64  # threads whose children are read
STAT_LIMIT = 16 << 10  # bytes read of /proc/PID/stat, which has a few hundred
STATUS_LIMIT = 1 << 20  # bytes read of /proc/PID/status: 65,536 groups of ten digits fit
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h
_CAP_SYS_ADMIN = 21
_EXITING = 4  # PF_EXITING
_STAT_FIELDS = 22  # after the name: up to field 24, the resident pages
TICKS = os.sysconf("SC_CLK_TCK")  # a second
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/PID/stat."""

    comm: str  # chosen by the process: hostile, escape it before showing
    state: str  # one letter; Z and X are dead
    parent: int
    flags: int  # PF_… of include/linux/sched.h
    faults: int  # minor page faults since its fork
    cpu_ticks: int  # clock ticks spent in user and kernel mode
    start_time: int  # clock ticks since boot
    resident: int  # bytes of memory, of files too
    exit_status: int | None  # as in waitpid(2), once the process is exiting; None if the caller may not read it

    @property
    def is_dead(self) -> bool:
        """True if it is a zombie or gone. A zombie keeps its number but has left its namespaces."""
        return self.state in "ZXx"

    @property
    def is_kernel_thread(self) -> bool:
        """True if it never had a user space."""
        return bool(self.flags & _KERNEL_THREAD)

    @property
    def is_exiting(self) -> bool:
        """True if it has begun to exit, though it may not be a zombie yet."""
        return bool(self.flags & _EXITING)


def read(pid: int, name: str, limit: int = STAT_LIMIT) -> bytes:
    """Return the first `limit` bytes of /proc/PID/NAME. Raises OSError (ENOENT, ESRCH: the process has ended)."""
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


def read_stat(pid: int) -> ProcessStat:
    """Read and parse /proc/PID/stat. Raises OSError."""
    return parse_stat(read(pid, "stat"))


def read_status(pid: int) -> dict[str, str]:
    """Read and parse /proc/PID/status. Raises OSError."""
    return parse_status(read(pid, "status", STATUS_LIMIT))


def children(pid: int) -> set[int]:
    """Return the children of the process's threads; none if it has ended.

    Also none if the kernel has no such files (CONFIG_PROC_CHILDREN). proc_pid_task_tid_children(5).
    """
    found: set[int] = set()
    try:
        for thread in islice(os.listdir(f"/proc/{pid}/task"), MAX_THREADS):  # noqa: PTH208
            text = read(pid, f"task/{thread}/children")
            words = text.split() if len(text) < STAT_LIMIT else text.split()[:-1]  # the last one may be cut
            found |= set(map(int, words))
    except OSError:
        pass  # it or a thread has just ended
    return found


def has_left_user_space(pid: int) -> bool:
    """True if the process is exiting and has given up its memory, so that reading its `stat` holds nothing of it."""
    try:
        os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115
    except FileNotFoundError:
        return True
    except OSError:
        pass  # ESRCH: it is reaped; EACCES: we may not read it
    return False


def parse_stat(text: bytes) -> ProcessStat:
    """Parse the line of /proc/PID/stat. Raises ValueError if it is malformed."""
    opening, closing = text.find(b"("), text.rfind(b")")
    fields = text[closing + 1 :].split()  # field 3 and those after it
    if opening < 0 or closing < opening or len(fields) < _STAT_FIELDS:
        raise ValueError("not a line of /proc/PID/stat")
    return ProcessStat(
        comm=os.fsdecode(text[opening + 1 : closing]),
        state=fields[0].decode("ascii", "replace"),
        parent=int(fields[1]),
        flags=int(fields[6]),
        faults=int(fields[7]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_time=int(fields[19]),
        resident=int(fields[21]) * _PAGE,
        exit_status=int(fields[49]) if len(fields) > 49 else None,  # noqa: PLR2004  (field 52)
    )


def parse_status(text: bytes) -> dict[str, str]:
    """Return the lines of /proc/PID/status by their keys, without the colon; each value without space around it."""
    found: dict[str, str] = {}
    for line in text.split(b"\n"):
        key, colon, value = line.partition(b":")
        if colon:
            found.setdefault(os.fsdecode(key), os.fsdecode(value.strip(b" \t")))
    return found


def capabilities_lacking(wanted: Mapping[int, str]) -> list[str]:
    """Return the names, sorted, of the capabilities (by number) that this process lacks; none with CAP_SYS_ADMIN."""
    effective = int(read_status(os.getpid())["CapEff"], 16)
    if effective >> _CAP_SYS_ADMIN & 1:
        return []
    return sorted(name for number, name in wanted.items() if not effective >> number & 1)


def parse_effective_ids(text: bytes) -> tuple[int, int]:
    """Return the effective (uid, gid) from /proc/PID/status. Raises ValueError if the text is malformed.

    The columns of `Uid` and `Gid` are real, effective, saved, file system.
    """
    status = parse_status(text)
    try:
        return int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
    except (KeyError, IndexError):
        raise ValueError("not a /proc/PID/status") from None


def parse_is_init(text: bytes) -> bool:
    """True if /proc/PID/status is of the init of a pid namespace below the reader's own.

    `NSpid` has the number in each pid namespace, from the reader's own downwards.
    """
    numbers = parse_status(text).get("NSpid", "").split()
    return len(numbers) > 1 and numbers[-1] == "1"


def confinement(pid: int, landlock: object) -> dict[str, object] | None:
    """Return how the kernel confines the process, for `status`; None if the process has ended.

    `landlock` is the ABI version that the process reported: the kernel does not show it to others. Call this when an
    agent becomes ready for the first time. It has read nothing from its container by then: its report can be trusted.
    """
    try:
        status = read_status(pid)
    except OSError:
        return None
    return {
        "seccomp": status.get("Seccomp") == "2",
        "landlock": landlock if type(landlock) is int else 0,
        "no_new_privs": status.get("NoNewPrivs") == "1",
    }
