"""The numbers of the system calls that the filter lists, for each architecture: a table, no I/O.

Sources: asm/unistd_64.h and asm-generic/unistd.h; linux/audit.h for AUDIT_ARCH_….
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# name, number on x86_64, number on aarch64 (- if it has none). The filter tests them in this order: calls that move
# messages first, then calls with tested arguments, because an old kernel runs the program for each call.
_TABLE = """
read                    0    63
write                   1    64
sendto                 44   206
recvfrom               45   207
epoll_wait            232     -
epoll_pwait           281    22
futex                 202    98
msgrcv                 70   188
msgsnd                 69   189
msgctl                 71   187
sched_yield            24   124
fcntl                  72    25
fchmod                 91    52
mmap                    9   222
mprotect               10   226
fallocate             285    47
pread64                17    67
newfstatat            262    79
readlinkat            267    78
fstat                   5    80
close                   3    57
openat                257    56
openat2               437   437
unlinkat              263    35
renameat              264    38
renameat2             316   276
getdents64            217    61
fsync                  74    82
fdatasync              75    83
syncfs                306   267
lseek                   8    62
statx                 332   291
fstatfs               138    44
mkdirat               258    34
stat                    4     -
lstat                   6     -
inotify_init1         294    26
inotify_add_watch     254    27
inotify_rm_watch      255    28
chdir                  80    49
fchdir                 81    50
msgget                 68   186
clone                  56   220
kill                   62   129
tgkill                234   131
set_robust_list       273    99
rseq                  334   293
close_range           436   436
pidfd_open            434   434
wait4                  61   260
waitid                247    95
sched_getaffinity     204   123
sched_setaffinity     203   122
prctl                 157   167
ioctl                  16    29
epoll_ctl             233    21
eventfd2              290    19
poll                    7     -
ppoll                 271    73
clock_gettime         228   113
gettimeofday           96   169
time                  201     -
clock_nanosleep       230   115
nanosleep              35   101
brk                    12   214
munmap                 11   215
mremap                 25   216
madvise                28   233
getrandom             318   278
getpid                 39   172
gettid                186   178
getppid               110   173
getuid                102   174
geteuid               107   175
getgid                104   176
getegid               108   177
rt_sigprocmask         14   135
rt_sigaction           13   134
rt_sigreturn           15   139
sigaltstack           131   132
restart_syscall       219   128
exit                   60    93
exit_group            231    94
getsockname            51   204
getsockopt             55   209
connect                42   203
getpeername            52   205
setsockopt             54   208
shutdown               48   210
seccomp               317   277
clone3                435   435
keyctl                250   219
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture: its AUDIT_ARCH_… and its numbers of the calls that matter here, in the filter's order."""

    audit_arch: int
    numbers: dict[str, int]
    has_x32: bool = False


def _machine(column: int, audit_arch: int, *, has_x32: bool = False) -> Architecture:
    rows = [line.split() for line in _TABLE.split("\n") if line]
    return Architecture(audit_arch, {row[0]: int(row[column]) for row in rows if row[column] != "-"}, has_x32)


ARCHITECTURES = {
    "x86_64": _machine(1, 0xC000_003E, has_x32=True),
    "aarch64": _machine(2, 0xC000_00B7),
}
NEWEST = 469  # of the numbers that were known when this was written (Linux 6.17)


def add(numbers: Mapping[str, tuple[int, int]]) -> None:
    """Add calls with their numbers on x86_64 and aarch64; a call that is known keeps its number."""
    for call, (x86_64, aarch64) in numbers.items():
        ARCHITECTURES["x86_64"].numbers.setdefault(call, x86_64)
        ARCHITECTURES["aarch64"].numbers.setdefault(call, aarch64)
