"""System calls that an agent may make, and why: a table for each kind of endpoint, no I/O.

A rule is one way to make one call. It has the call's name (with the way after a colon, if there are several), the
arguments that it allows, and the reason. The filter refuses everything that no rule allows (seccomp.py).
docs/security.md shows the table; `python -m tests.calls_table` writes it there.

An endpoint kind names its own rules, by side, in addition to those of every agent, and may bring rules of its own.
agents/endpoints/kinds.py registers them.

Some facts about calls, and what they mean here:
* A filter sees numbers, not what a pointer points to. openat2 takes its mode by pointer, so nothing can forbid it a
  setuid bit; but umask is refused, so such a file stays executable by its owner only, and fchmod may not change that.
* fcntl can have a signal sent to any process (F_SETOWN, F_SETSIG, O_ASYNC), so it is limited to what is used.
* The journal's lock and size, the agent's death signal and its children are set up before the filter is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from operator import or_

from nsbridge.agents.confinement import syscalls
from nsbridge.config.schema import AgentConfig, Delivery, Endpoint, RouteConfig


class Must(Enum):
    """The comparison of an argument. It covers 32 bits, which is all that the kernel looks at in these calls."""

    BE_ONE_OF = "is"
    HAVE_ALL_OF = "has"
    HAVE_NONE_OF = "has no"


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one argument; `values` are numbers, or PID for the agent's own."""

    argument: int
    must: Must
    values: tuple[int, ...]
    shown: str  # for people


@dataclass(frozen=True, slots=True)
class Rule:
    """Allow a call if all tests hold."""

    call: str
    reason: str
    tests: tuple[Condition, ...] = ()


PID = -1  # stands for the process that installs the filter

_F_DUPFD_CLOEXEC, _F_GETFL, _F_SETFD, _F_SETLEASE = 1030, 3, 2, 1024  # linux/fcntl.h
_PROT_EXEC = 4
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20  # MAP_SHARED_VALIDATE has the bit of MAP_SHARED too
_SETUID_SETGID_STICKY = 0o7000
_FIONBIO, _FIOCLEX = 0x5421, 0x5451
_IPC_RMID, _IPC_SET, _IPC_STAT, _IPC_INFO, _MSG_STAT_ANY = 0, 1, 2, 3, 13
_IPC_NOWAIT, _MSG_COPY = 0o4000, 0o40000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _SIGKILL = 1, 15, 9
_CLONE_VM, _CLONE_SIGHAND, _CLONE_THREAD = 0x100, 0x800, 0x1_0000
_THREAD_FLAGS = 0x007D_0F00  # what glibc and musl pass for a thread: no namespace, no CLONE_PARENT, no CLONE_PTRACE
_CHILD_FLAGS = (0x0120_0011, 0x11)  # SIGCHLD with or without CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID: fork(3)
_TSYNC_SPEC_ALLOW = 1 | 4
_MASK = 0xFFFF_FFFF


def _is(argument: int, shown: str, *values: int) -> tuple[Condition, ...]:
    return (Condition(argument, Must.BE_ONE_OF, values, shown),)


def _has_no(argument: int, shown: str, bits: int) -> tuple[Condition, ...]:
    return (Condition(argument, Must.HAVE_NONE_OF, (bits,), shown),)


def _has(argument: int, shown: str, bits: int) -> tuple[Condition, ...]:
    return (Condition(argument, Must.HAVE_ALL_OF, (bits,), shown),)


# With a dirty shared mapping of a FUSE file, the kernel waits for the container's server when the agent dies.
_NO_FILE = _has(3, "MAP_ANONYMOUS", _MAP_ANONYMOUS)
_NO_CODE = _has_no(2, "no PROT_EXEC", _PROT_EXEC)
_THREAD = _has(0, "CLONE_THREAD", _CLONE_VM | _CLONE_SIGHAND | _CLONE_THREAD) + _has_no(
    0, "and no other flag than a thread's", ~_THREAD_FLAGS & _MASK
)
_OWN = _is(0, "to itself", PID)

# Rules that have another name than their call, or that test arguments.
_LIMITED: dict[str, Rule] = {
    "fcntl:list": Rule(
        "fcntl",
        "list a directory by its descriptor",
        _is(1, "F_DUPFD_CLOEXEC, F_GETFL, F_SETFD", _F_DUPFD_CLOEXEC, _F_GETFL, _F_SETFD),
    ),
    "fcntl:lease": Rule("fcntl", "see whether a file is still open for writing", _is(1, "F_SETLEASE", _F_SETLEASE)),
    "fchmod": Rule(
        "fchmod",
        "give a new file or directory its configured mode",
        _has_no(1, "no setuid, setgid, sticky bit", _SETUID_SETGID_STICKY),
    ),
    "mkdirat": Rule(
        "mkdirat",
        "make a directory of the endpoint that is missing",
        _has_no(2, "no setuid, setgid, sticky bit", _SETUID_SETGID_STICKY),
    ),
    "fallocate": Rule("fallocate", "give the journal its pages before they are written", _is(1, "mode 0", 0)),
    "mmap": Rule("mmap", "memory", (*_NO_CODE, *_NO_FILE, *_has_no(3, "no MAP_SHARED", _MAP_SHARED))),
    "mmap:shared": Rule("mmap", "memory that it shares with its senders", (*_NO_CODE, *_NO_FILE)),
    "mprotect": Rule("mprotect", "memory of a new thread or a growing heap", _NO_CODE),
    "ioctl": Rule("ioctl", "make a socket non-blocking, close a descriptor on exec",
                  _is(1, "FIONBIO, FIOCLEX", _FIONBIO, _FIOCLEX)),
    "msgctl:look": Rule("msgctl", "look at a queue's limits, fill and owner",
                        _is(1, "IPC_STAT, IPC_INFO, MSG_STAT_ANY", _IPC_STAT, _IPC_INFO, _MSG_STAT_ANY)),
    "msgctl:limit": Rule("msgctl", "give a queue that it makes its max_bytes, or remove it again",
                         _is(1, "IPC_SET, IPC_RMID", _IPC_SET, _IPC_RMID)),
    "msgrcv:copy": Rule("msgrcv", "look for a message without taking it",
                        _has(4, "MSG_COPY and IPC_NOWAIT", _MSG_COPY | _IPC_NOWAIT)),
    "clone:thread": Rule("clone", "start the thread that waits at the queue", _THREAD),
    "tgkill": Rule("tgkill", "wake the thread that waits in msgrcv", _OWN),
    "kill": Rule("kill", "end itself when one of its senders has died", _OWN),
    "clone:child": Rule("clone", "fork its two senders",
                        _is(0, "fork's own flags", *_CHILD_FLAGS)),
    "prctl:death": Rule("prctl", "a sender dies with its agent",
                        _is(0, "PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG) + _is(1, "SIGKILL", _SIGKILL)),
    "prctl:name": Rule("prctl", "a sender has a name that ps shows", _is(0, "PR_SET_NAME", _PR_SET_NAME)),
    "sched_setaffinity": Rule("sched_setaffinity", "both senders stay on one processor", _is(0, "of itself", 0)),
    "seccomp": Rule("seccomp", "put the stricter filter on top, which can only refuse more",
                    _is(0, "SECCOMP_SET_MODE_FILTER", 1) + _is(1, "for all threads", _TSYNC_SPEC_ALLOW)),
}  # fmt: skip

# The others: a call, and its reason.
_PLAIN = """
read                descriptors: files, journals, eventfds, inotify
write               descriptors: files, journals, eventfds
sendto              the sockets to the other agent and to the supervisor
recvfrom            the sockets to the other agent and to the supervisor
getsockname         Python adopts the socket to the other agent
getsockopt          Python adopts the socket to the other agent
epoll_ctl           the event loop
epoll_wait          the event loop
epoll_pwait         the event loop, where there is no epoll_wait
eventfd2            what wakes the event loop or a sender
futex               locks of Python and the C library
openat              dead letters, and files of the endpoint
close               descriptors
fstat               what a descriptor is
newfstatat          what a name in an open directory is
stat                the same, as an older C library asks
lstat               the same, as an older C library asks
pread64             read a journal or a file at an offset
unlinkat            remove a file that has been delivered, or a dead letter that was taken again or is too old
renameat            a dead letter appears whole, and is claimed before it is taken again
getdents64          list a directory
fsync               with `fsync = true`: a claimed dead letter is on the disk
fdatasync           with `fsync = true`: the journal is on the disk before anything is confirmed
syncfs              with `fsync = true`: what was delivered is on the disk before it is confirmed
openat2             open files beneath a directory, without following links
fstatfs             leave room for others where dead letters are; refuse pseudo file systems
readlinkat          walk to the endpoint again, which may belong to another user by now
renameat2           a delivered file appears whole and replaces nothing
lseek               list a directory from its beginning; where a log ends; replace the list of names that wait
statx               when a log file was made: which of two came first; which refused file was counted
inotify_init1       get events for new files
inotify_add_watch   get events for new files
inotify_rm_watch    get events for new files
connect             a connection to a NATS server
getpeername         asyncio notes the address of the server
setsockopt          asyncio has small packets sent at once
shutdown            end a connection to a NATS server, or a socket whose path is lost
chdir               inotify takes names only: a directory that is open is watched as "."
fchdir              inotify takes names only: a directory that is open is watched as "."
msgget              find or make the queue
msgrcv              take messages
msgsnd              hand messages over
set_robust_list     the C library, when a thread or child begins
rseq                the C library, when a thread begins
waitid              see that a sender is stopped
close_range         a sender closes what is not its own
pidfd_open          get an event when a sender dies
wait4               a sender that cannot be watched is ended
sched_getaffinity   both senders stay on one processor
getppid             a sender sees whether its agent still lives
sched_yield         let the other run, whose turn it is
clock_gettime       the clock, where the kernel offers it no other way
gettimeofday        the clock, where the kernel offers it no other way
time                the clock, where the kernel offers it no other way
clock_nanosleep     pause
nanosleep           the same, in an older C library
poll                the C library waits for one descriptor
ppoll               the C library waits for one descriptor
brk                 memory
munmap              memory
mremap              memory
madvise             memory; a journal's pages are there before the kernel writes into them
getrandom           a new epoch; a queue's senders choose a processor
getpid              who it is
gettid              which thread it is
getuid              who it is, for messages to people
geteuid             who it is, for messages to people
getgid              who it is, for messages to people
getegid             who it is, for messages to people
rt_sigprocmask      threads take no signals but their own
rt_sigaction        the signal that wakes the queue's thread
rt_sigreturn        the end of a signal handler
sigaltstack         the end of a thread
restart_syscall     the kernel resumes a wait after SIGSTOP and SIGCONT
exit                the end of a thread
exit_group          the end of the agent
"""
RULES: dict[str, Rule] = _LIMITED | {
    name: Rule(name, reason) for name, reason in (line.split(None, 1) for line in _PLAIN.splitlines() if line)
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BASE = _names(
    "read write sendto recvfrom getsockname getsockopt epoll_ctl epoll_wait epoll_pwait eventfd2 "
    "futex openat close fstat newfstatat stat lstat pread64 renameat unlinkat getdents64 lseek fcntl:list ioctl "
    "poll ppoll clock_gettime gettimeofday time brk clock_nanosleep nanosleep mmap munmap mremap mprotect madvise "
    "getrandom getpid gettid getuid geteuid getgid getegid rt_sigprocmask rt_sigreturn sigaltstack "
    "restart_syscall exit exit_group"
)
SOURCE = _names("fallocate")
SINK = _names("fstatfs")
FSYNC = _names("fsync fdatasync syncfs")
TREE = _names(  # what every endpoint of files makes
    "openat2 readlinkat fstatfs mkdirat fchmod inotify_init1 inotify_add_watch inotify_rm_watch chdir fchdir"
)
THREADS = _names("clone:thread set_robust_list rseq")
# An agent with senders has these rules until it has forked them, some milliseconds after its start.
FORKING = _names(
    "clone:child mmap:shared seccomp prctl:death prctl:name set_robust_list rseq rt_sigaction close_range pidfd_open "
    "wait4 getppid sched_getaffinity sched_setaffinity"
)
SENDER = _names(
    "read write futex msgsnd sched_yield brk mmap munmap mremap mprotect madvise getpid rt_sigprocmask rt_sigreturn "
    "restart_syscall exit exit_group"
)


@dataclass(frozen=True, slots=True)
class KindCalls:
    """The rules that an endpoint kind adds to BASE, by what the agent does."""

    always: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    sink: tuple[str, ...] = ()
    exact_sink: tuple[str, ...] | None = None  # instead of `sink` if the route promises exactly-once
    forks: bool = False  # True if such a sink has senders
    configured: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the endpoint's key that asks for them
    rules: Mapping[str, Rule] = field(default_factory=dict)  # that RULES does not have yet
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of calls that syscalls.py does not have
    rights: int = 0  # of Landlock, in the directories of the endpoint, beyond what every agent has (landlock.py)
    configured_rights: Mapping[str, int] = field(default_factory=dict)  # more of them, by the key that asks for them
    needs_abi: Mapping[str, int] = field(default_factory=dict)  # the first Landlock ABI that allows what a key asks for


KINDS: dict[str, KindCalls] = {}  # by the name of the endpoint kind


def register(name: str, calls: KindCalls) -> None:
    """Add an endpoint kind. Raises ValueError if a rule of that name exists."""
    if taken := calls.rules.keys() & RULES.keys():
        raise ValueError(f"endpoint kind {name}: {', '.join(sorted(taken))}: such a rule exists")
    RULES.update(calls.rules)
    syscalls.add(calls.numbers)
    KINDS[name] = calls


def rules(endpoint: Endpoint, delivery: Delivery, *, fsync: bool, is_counted: bool = False) -> tuple[str, ...]:
    """Return the names of the rules for an agent once it serves that endpoint.

    If the kernel counts its messages, an agent needs no senders, whatever its route promises.
    """
    kind = KINDS[endpoint.name]
    exactly = kind.exact_sink is not None and delivery is Delivery.EXACTLY_ONCE and not is_counted
    names = [*BASE, *kind.always]
    if endpoint.out:
        names += [*SOURCE, *kind.source]
    if endpoint.in_:
        names += SINK
        names += (kind.exact_sink or ()) if exactly else kind.sink
    for key, more in kind.configured.items():
        names += more if getattr(endpoint, key) else ()
    if fsync:
        names += FSYNC
    return tuple(dict.fromkeys(names))


def rights(endpoint: Endpoint) -> int:
    """Return the rights of Landlock that an endpoint needs beyond what every agent has."""
    kind = KINDS[endpoint.name]
    asked = (more for key, more in kind.configured_rights.items() if getattr(endpoint, key) is not None)
    return reduce(or_, asked, kind.rights)


def forks(endpoint: Endpoint, delivery: Delivery) -> bool:
    """True if an agent with that endpoint has senders."""
    return KINDS[endpoint.name].forks and bool(endpoint.in_) and delivery is Delivery.EXACTLY_ONCE


def rules_at_start(agent: AgentConfig, route: RouteConfig, *, is_counted: bool = False) -> tuple[str, ...]:
    """Return the names of the rules for an agent when it enters, including those for starting its senders."""
    begin = (*FORKING, *SENDER) if forks(agent.endpoint, route.delivery) and not is_counted else ()
    return tuple(
        dict.fromkeys((*rules(agent.endpoint, route.delivery, fsync=route.fsync, is_counted=is_counted), *begin))
    )
