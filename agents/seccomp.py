"""Which system calls an agent may make, as a table, and the BPF program that the kernel is given for it: no I/O.

It is a list of what is allowed, so what the next kernel brings is refused until somebody has thought about it. What an
agent does was traced (docs/security.md says how); what is not in the table gives EPERM, which the agent's last words
then show. Nobody is killed for it: a C library that tries something new goes on without it. So that it does, what is
newer than the table, and clone3, whose flags no filter can see, give ENOSYS: "not this kernel".

Some facts about filters, and what they mean here:
* A program sees the call's number and arguments, never what a pointer points to. So paths are left to Landlock.
* Numbers belong to an architecture; a process of x86_64 can also make i386's and x32's calls. Both are refused.
* Since Linux 5.11 a call that is allowed by its number alone costs nothing: the kernel remembers it in a bitmap. On an
  older one the program is run each time, so the calls that move a message stand first.

Sources: seccomp(2), linux/filter.h, linux/seccomp.h, linux/audit.h; asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nsbridge.config.schema import Namespace

# name, number on x86_64, number on aarch64 (- where it has none). The order is the order of the program.
_BOTH = """
read                    0    63
write                   1    64
sendto                 44   206
recvfrom               45   207
epoll_wait            232     -
epoll_pwait           281    22
futex                 202    98
pread64                17    67
newfstatat            262    79
readlinkat            267    78
close                   3    57
openat                257    56
openat2               437   437
fcntl                  72    25
unlinkat              263    35
renameat              264    38
renameat2             316   276
getdents64            217    61
lseek                   8    62
pwrite64               18    68
readv                  19    65
writev                 20    66
preadv                295    69
pwritev               296    70
epoll_ctl             233    21
epoll_create1         291    20
eventfd2              290    19
clock_gettime         228   113
clock_nanosleep       230   115
nanosleep              35   101
gettimeofday           96   169
time                  201     -
stat                    4     -
lstat                   6     -
fstat                   5    80
statx                 332   291
fstatfs               138    44
dup                    32    23
mkdirat               258    34
fchmod                 91    52
ftruncate              77    46
fallocate             285    47
flock                  73    32
fsync                  74    82
fdatasync              75    83
syncfs                306   267
chdir                  80    49
fchdir                 81    50
getcwd                 79    17
umask                  95   166
brk                    12   214
munmap                 11   215
mremap                 25   216
madvise                28   233
poll                    7     -
ppoll                 271    73
select                 23     -
pselect6              270    72
getrandom             318   278
getpid                 39   172
gettid                186   178
getppid               110   173
getuid                102   174
geteuid               107   175
getgid                104   176
getegid               108   177
uname                  63   160
getrusage              98   165
rt_sigprocmask         14   135
rt_sigaction           13   134
rt_sigreturn           15   139
sigaltstack           131   132
restart_syscall       219   128
exit                   60    93
exit_group            231    94
sched_yield            24   124
sched_getaffinity     204   123
getsockname            51   204
getsockopt             55   209
"""
_FILES = """
inotify_init1         294    26
inotify_add_watch     254    27
inotify_rm_watch      255    28
"""
# A queue is waited for by threads, and sent into by processes of their own (endpoints/senders.py).
_QUEUES = """
msgrcv                 70   188
msgsnd                 69   189
msgget                 68   186
msgctl                 71   187
set_robust_list       273    99
rseq                  334   293
close_range           436   436
pidfd_open            434   434
wait4                  61   260
waitid                247    95
membarrier            324   283
"""
# Allowed with some arguments only, as _CHECKS says.
_CHECKED = """
mmap                    9   222
mprotect               10   226
ioctl                  16    29
prctl                 157   167
kill                   62   129
"""
_CHECKED_QUEUES = """
clone                  56   220
tgkill                234   131
sched_setaffinity     203   122
"""
# Not for the filter: what linux.py and the filter itself must know beside these.
_OTHERS = """
clone3                435   435
seccomp               317   277
keyctl                250   219
"""
_NEWEST = 469  # of the numbers that were known when this was written (Linux 6.17): what is above is not yet thought of

_PROT_EXEC = 4
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20  # MAP_SHARED_VALIDATE has the bit of MAP_SHARED too
_CLONE_FLAGS = 0x017D_0FFF  # of threads and plain children: no CLONE_NEW…, CLONE_PARENT, CLONE_PTRACE
_IOCTLS = (0x5421, 0x5450, 0x5451, 0x541B)  # FIONBIO, FIONCLEX, FIOCLEX, FIONREAD: nothing of terminals or devices
_PRCTLS = (1, 15)  # PR_SET_PDEATHSIG, PR_SET_NAME

_X32_BIT = 0x4000_0000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data; an argument has 8 bytes, the low half first

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|…|K, BPF_RET|K
_ALLOW = 0x7FFF_0000
_REFUSE = 0x0005_0000 | errno.EPERM
_UNKNOWN = 0x0005_0000 | errno.ENOSYS
_KILL = 0x8000_0000  # the process

_Instruction = tuple[int, int, int, int]  # code, steps over the next ones if it holds, if it does not, operand


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture: its AUDIT_ARCH_… and its numbers of the calls that matter here."""

    audit_arch: int
    numbers: Mapping[str, int]
    has_x32: bool = False


def _machine(column: int, audit_arch: int, *, has_x32: bool = False) -> Machine:
    rows = [line.split() for table in _TABLES for line in table.split("\n") if line]
    return Machine(audit_arch, {row[0]: int(row[column]) for row in rows if row[column] != "-"}, has_x32)


_TABLES = (_BOTH, _FILES, _QUEUES, _CHECKED, _CHECKED_QUEUES, _OTHERS)
MACHINES = {
    "x86_64": _machine(1, 0xC000_003E, has_x32=True),
    "aarch64": _machine(2, 0xC000_00B7),
}


def allowed(namespace: Namespace) -> list[str]:
    """The names of the calls that an agent in that kind of namespace may make, also those with some arguments only."""
    queues = namespace is Namespace.IPC
    tables = (_BOTH, _QUEUES if queues else _FILES, _CHECKED, _CHECKED_QUEUES if queues else "")
    return [line.split()[0] for table in tables for line in table.split("\n") if line]


def program(machine: Machine, namespace: Namespace, pid: int) -> bytes:
    """The filter for an agent with that pid, as an array of struct sock_filter; its senders inherit it."""
    checks = _checks(pid, namespace)
    lines: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine.has_x32:
        lines += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _REFUSE)]
    for name in allowed(namespace):
        if name in machine.numbers:
            verdict = checks.get(name, [(_RETURN, 0, 0, _ALLOW)])
            lines += [(_EQUAL, 0, len(verdict), machine.numbers[name]), *verdict]
    lines += [
        (_EQUAL, 1, 0, machine.numbers["clone3"]),
        (_AT_LEAST, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, _UNKNOWN),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _checks(pid: int, namespace: Namespace) -> dict[str, list[_Instruction]]:
    """What is looked at beside the number, by the name of the call; each ends with a verdict."""
    return {
        "mmap": _own_memory(namespace),
        "mprotect": _without(2, _PROT_EXEC),
        "clone": _without(0, ~_CLONE_FLAGS & 0xFFFF_FFFF),
        "ioctl": _one_of(1, _IOCTLS),
        "prctl": _one_of(0, _PRCTLS),
        "kill": _one_of(0, (pid,)),  # the pid namespace is the host's, where others have the same user
        "tgkill": _one_of(0, (pid,)),
        "sched_setaffinity": _one_of(0, (0,)),  # only one's own
    }


def _own_memory(namespace: Namespace) -> list[_Instruction]:
    """Allow only memory without a file that is not executable: no code is loaded any more, and no file is mapped.

    A dirty shared mapping of a FUSE file makes whoever takes its memory apart wait for a server of the container. An
    agent with queues shares memory with its senders, which it makes after the filter is there; one with files does not.
    """
    shared = 0 if namespace is Namespace.IPC else _MAP_SHARED
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * 2),
        (_HAS_BITS, 3, 0, _PROT_EXEC),
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * 3),
        (_HAS_BITS, 1, 0, shared),
        (_HAS_BITS, 1, 0, _MAP_ANONYMOUS),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _without(argument: int, bits: int) -> list[_Instruction]:
    """Allowed if the argument has none of these bits; those above the 32nd mean nothing to the calls in question."""
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_HAS_BITS, 0, 1, bits),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _one_of(argument: int, values: Sequence[int]) -> list[_Instruction]:
    """Allowed if the argument, of 32 bits, is one of these."""
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        *tests,
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
