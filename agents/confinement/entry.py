"""Turns a forked child into an agent: everything is loaded and checked, ONE namespace joined, then power given up.

Containers are hostile, so the order is the point (each step says why). What runs after `setns` must not import, look
up a codec, open a source file or load a library: the file it would read could be the container's. Nothing is executed
from here on, and nothing is trusted that the container's /proc or /dev says.
"""

from __future__ import annotations

import codecs
import errno
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NamedTuple, Protocol, Self

from nsbridge.agents import limits, linux
from nsbridge.agents.confinement import callrules, landlock, seccomp
from nsbridge.agents.confinement.emptyns import EmptyNamespace
from nsbridge.agents.counter import Lease
from nsbridge.agents.fork import EXIT_AGAIN, has_ended
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.config.schema import AgentConfig, Confinement, DeadConfig, Namespace, RouteConfig

_CLONE_FLAG = {
    Namespace.MNT: linux.CLONE_NEWNS,
    Namespace.IPC: linux.CLONE_NEWIPC,
    Namespace.NET: linux.CLONE_NEWNET,
}
_MEND = {
    Confinement.SECCOMP: "use a kernel with CONFIG_SECCOMP_FILTER",
    Confinement.LANDLOCK: "use Linux 5.19 or newer with landlock in lsm= (CONFIG_LSM)",
}
_MACHINE = os.uname().machine  # asked here: an agent may not make that call
_MAX_DESCRIPTORS = 1024  # an agent has some twenty
for _codec in ("utf-8", "ascii", "latin-1"):  # in the supervisor, once: an agent finds them in the registry
    codecs.lookup(_codec)
# The import system's listings of the host's directories: dropped, but neither freed nor copied. To free thousands of
# names would write into 1 MB of memory that an agent shares with its supervisor.
_KEPT: list[object] = []


class RefusedForGood(Exception):
    """The agent may not enter: only a person can fix it."""


class Gone(Exception):
    """Something that the agent needs of its container is missing; it may come (back)."""


class Filters(NamedTuple):
    """An agent's filters of system calls, compiled before the fork; None on a machine that has no filter."""

    start: seccomp.FilterProgram | None
    serving: seccomp.FilterProgram | None  # without the calls that an agent needs to fork its senders
    sender: seccomp.FilterProgram | None

    @classmethod
    def of_agent(cls, agent: AgentConfig, route: RouteConfig, *, is_counted: bool = False) -> Self:
        """Return the filters of an agent, which has no senders if the kernel counts. Equal rules share a filter."""
        serving = callrules.rules(agent.endpoint, route.delivery, fsync=route.fsync, is_counted=is_counted)
        start = callrules.rules_at_start(agent, route, is_counted=is_counted)
        return cls(compiled(start), compiled(serving), compiled(callrules.SENDER))


@cache
def compiled(rules: tuple[str, ...]) -> seccomp.FilterProgram | None:
    """Return the filter that allows only these rules (callrules.py); None if there is none for this machine."""
    machine = seccomp.ARCHITECTURES.get(_MACHINE)
    return None if machine is None else seccomp.compiled(machine, rules)


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that the supervisor gives a new agent. Descriptors are numbers in the forked process."""

    route: RouteConfig
    agent: AgentConfig
    peer_fd: int  # SOCK_SEQPACKET to the other agent, made once for each route
    control_fd: int  # SOCK_SEQPACKET to the supervisor
    scoreboard: Scoreboard
    container_pid: int  # init, 0 if there is only a namespace file, or for the host
    pidfd: int  # of init, -1 likewise
    ns_path: str  # the namespace file, if there is no pid
    state_dir: str
    init_user: tuple[int, int]  # uid and gid of init: who the agent is where no endpoint says it
    filters: Filters
    supervisor_pid: int
    beat_every: float  # seconds between its heartbeats while it is idle
    empty: tuple[EmptyNamespace, ...] = ()  # namespaces with nothing in them, in place of the host's
    require: tuple[Confinement, ...] = ()  # what the agent must not run without
    dead: DeadConfig = field(default_factory=DeadConfig)  # how many dead letters it may keep
    counter: Lease | None = None  # of the kernel's count of its messages
    held_fd: int = -1  # the socket that its source receives from, which outlives it; -1 if it needs none


class EntrySteps(Protocol):
    """An endpoint's steps of the entry; `enter` calls `confirm`, `look`, `reach` (identity/surroundings.py)."""

    trusted: frozenset[int]  # users who may redirect a path (identity/walk.py)
    mounts: frozenset[bytes]  # names of the endpoint's own files that may be mounts

    def confirm(self, inode: int) -> None:
        """Raise Gone if init has moved to other namespaces. Called when the one of `inode` is open, before the join."""

    def look(self) -> tuple[int, int]:
        """Return the agent's future uid and gid. Called after the join, with root's power. Raises Refused, Gone."""
        ...

    def reach(self) -> Sequence[int]:
        """Open the directories of the agent's files. Called as that user. Raises Gone, OSError."""
        ...

    def recheck(self) -> None:
        """Raise Gone if the agent should enter again, because the endpoint belongs to another user now."""

    def check_directory(self, path: bytes, uid: int) -> None:
        """Raise Gone if this agent must not use the endpoint's directory `path`, which belongs to user `uid`.

        The owner could move files there that the owner may not read, from another directory of the owner.
        """


@dataclass(frozen=True, slots=True)
class Confined:
    """Confinement by the kernel, beside the agent's having no power."""

    landlock: int = 0  # the ABI in force, 0 if none is
    seccomp: bool = False  # True if a filter of system calls is in force
    granted: frozenset[tuple[int, int]] = frozenset()  # device and inode of the directories that Landlock leaves it
    lacks: Mapping[Confinement, str] = field(default_factory=dict)  # what this kernel could not do, and why


@dataclass(frozen=True, slots=True)
class Entered:
    """Objects of the world outside that an agent keeps after it has joined."""

    ns_inode: int
    own_fds: int  # the host's /proc/self/fd: reopens a descriptor without trusting the container's /proc
    confined: Confined
    around: EntrySteps


def leave_the_supervisor(assignment: Assignment) -> int:
    """Cut every tie that the fork inherited but the named descriptors; returns the host's /proc/self/fd."""
    die_with_the_supervisor(assignment.supervisor_pid)
    linux.set_name(assignment.agent.name)
    counted = assignment.counter.slots if assignment.counter else -1
    keep = {assignment.peer_fd, assignment.control_fd, assignment.pidfd, counted, assignment.held_fd} - {-1}
    keep |= {of.fd for of in assignment.empty}
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # nothing of a container may reach the terminal or the daemon's log but by the control channel
        os.dup2(null, fd)
    close_all_but({0, 1, 2} | keep)
    os.umask(0o077)  # what is made gets its mode by fchmod: the daemon's umask decides nothing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # messages do not lie about in a core file
    limits.lower_descriptors(_MAX_DESCRIPTORS)
    with suppress(OSError, KeyError):  # root's keys, where there are any: whatever acts by a keyring finds none
        linux.leave_session_keyring(seccomp.ARCHITECTURES[_MACHINE].numbers["keyctl"])
    return linux.detached("/proc/self/fd")  # /proc/self/fd/../../.. would be the host's root


def die_with_the_supervisor(supervisor_pid: int) -> None:
    """Be killed when it dies; if it already has, die now: the signal is only sent for a death that is still to come."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os._exit(EXIT_AGAIN)


def close_all_but(keep: set[int]) -> None:
    """Close every other descriptor: a leaked directory is a way out of the container (CVE-2024-21626)."""
    start = 0
    for fd in sorted(keep):
        if start < fd:  # os.closerange(0, 0) closes everything: it asks the kernel for 0 to -1
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)


def freeze_imports() -> None:
    """Let nothing be imported any more: after the join an import would run the container's file as host root.

    Nor a codec looked up, nor the local time zone, whose file could be a FIFO: from here on local time is UTC. Nor is
    a traceback printed: it opens the source files that it names. Whatever Python wants to say is one line.
    """
    sys.excepthook = _last_words
    sys.unraisablehook = lambda unraisable: print_in_one_line(unraisable.exc_value)
    threading.excepthook = lambda arguments: print_in_one_line(arguments.exc_value)
    warnings.showwarning = lambda message, *_about: print_in_one_line(message)
    os.environ["TZ"] = "UTC0"
    time.tzset()
    sys.meta_path[:] = [_NoImports()]
    sys.path_hooks.clear()
    sys.path.clear()
    _KEPT.append(sys.path_importer_cache)
    sys.path_importer_cache = {}


def print_in_one_line(error: BaseException | str | None) -> None:
    """Write the error to stderr, and open no file for that."""
    os.write(2, f"nsbridged: agent: {type(error).__name__}: {error}\n".encode(errors="backslashreplace"))


def _last_words(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    print_in_one_line(error)
    os._exit(EXIT_AGAIN)


class _NoImports:
    """A finder that refuses: the only one an agent has."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        raise ImportError(f"import of {name!r} in an agent: it would be read from the container")


def leave_host_namespaces(assignment: Assignment) -> None:
    """Join the empty namespaces, so that an agent cannot change the host's by accident.

    A file of /proc/sys that a container mounts over the endpoint would act on the namespaces of its writer.
    """
    for namespace in assignment.empty:
        if namespace.flag != _CLONE_FLAG[assignment.agent.namespace]:
            linux.setns(namespace.fd, namespace.flag)
        os.close(namespace.fd)


def join(assignment: Assignment, confirm: Callable[[int], None] = lambda _inode: None) -> int:
    """Join the one namespace; returns its inode. Init is proved alive after its files were opened.

    `confirm` gets that inode once the files are open, and raises Gone if what was found out about init holds no more.

    setns leads to the root of the mount namespace; init's own root is taken, which chroot may have put elsewhere.
    """
    namespace = assignment.agent.namespace
    own = os.stat(f"/proc/self/ns/{namespace}").st_ino  # noqa: PTH116  (a magic link, not a path)
    if assignment.agent.container.kind.is_host:
        return own
    path = assignment.ns_path or f"/proc/{assignment.container_pid}/ns/{namespace}"
    root = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if namespace is Namespace.MNT and assignment.container_pid:
            root = os.open(f"/proc/{assignment.container_pid}/root", os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(f"{path} is not there any more") from None
    if assignment.pidfd >= 0 and has_ended(assignment.pidfd):
        raise Gone("its init process has ended")
    inode = os.fstat(fd).st_ino
    if inode == own:
        raise RefusedForGood(
            f"the {namespace} namespace of {assignment.agent.container} is the host's own; "
            f'if that is what you want, write container = "host"'
        )
    confirm(inode)
    linux.setns(fd, _CLONE_FLAG[namespace])
    os.close(fd)
    if root >= 0:
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
    return inode


def may_set_groups() -> bool:
    """True if this user namespace lets any process call setgroups (user_namespaces(7)); call it before the join."""
    return Path("/proc/self/setgroups").read_bytes() != b"deny\n"


def drop_privileges(uid: int, gid: int) -> None:
    """Become `uid` and `gid` for good, without any capability; not dumpable, so no process inside may trace it."""
    linux.drop_bounding_set()
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    linux.clear_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def enter(assignment: Assignment, own_fds: int, given: Sequence[int], around: EntrySteps) -> Entered:
    """Enter the container, in the order that docs/security.md gives.

    Call it after `leave_the_supervisor`, and after opening everything that is needed of the host. `given` are
    directories of the host that will belong to the agent's user. Raises Refused, Gone, or OSError.
    """
    forget_groups = may_set_groups()
    freeze_imports()
    leave_host_namespaces(assignment)
    ns_inode = join(assignment, around.confirm)
    if assignment.pidfd >= 0:
        os.close(assignment.pidfd)  # who holds it could signal the container's init
    if assignment.agent.namespace is not Namespace.MNT and given:
        os.fchdir(given[0])
        os.chroot(".")  # it stays in the host's mount namespace, and needs no file there but its dead letters
    os.chdir("/")
    uid, gid = around.look()
    for fd in given:
        os.fchown(fd, uid, gid)
    if forget_groups:
        os.setgroups([])
    drop_privileges(uid, gid)
    die_with_the_supervisor(assignment.supervisor_pid)  # a change of user has cleared it
    directories = around.reach()  # nothing that was opened with root's power is used
    confined = confine(assignment, directories, given)
    for fd in directories:
        os.close(fd)
    return Entered(ns_inode, own_fds, confined, around)


def confine(assignment: Assignment, directories: Sequence[int], given: Sequence[int] = ()) -> Confined:
    """Have the kernel refuse what an agent never does; the last step of the entry. Raises RefusedForGood.

    It leaves the agent the endpoint's `directories`, and those of the host that are `given` to it.
    """
    lacks: dict[Confinement, str] = {}
    abi, granted, filtered = 0, frozenset[tuple[int, int]](), False
    try:
        abi = restrict_files(assignment.agent, directories, given)
        granted = frozenset((about.st_dev, about.st_ino) for about in map(os.fstat, [*directories, *given]))
    except OSError as error:
        lacks[Confinement.LANDLOCK] = str(error.strerror)
    try:
        filter_system_calls(assignment.filters.start)
        filtered = True
    except OSError as error:
        lacks[Confinement.SECCOMP] = str(error.strerror)
    for required in assignment.require:
        if required in lacks:
            raise RefusedForGood(
                f"{required} is required and cannot be had here ({lacks[required]}): {_MEND[required]}, "
                f"or take it out of require in [daemon]"
            )
    return Confined(abi, filtered, granted, lacks)


def restrict_files(agent: AgentConfig, directories: Sequence[int], given: Sequence[int] = ()) -> int:
    """Have Landlock refuse every file that is not beneath these; its ABI. Raises OSError if there is none to be had."""
    calls = callrules.KINDS[agent.endpoint.name]
    abi = linux.landlock_abi()
    if not abi:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock, or it is off")
    for key, needed in calls.needs_abi.items():
        if abi < needed and getattr(agent.endpoint, key) is not None:
            raise OSError(errno.EOPNOTSUPP, f"Landlock ABI {abi} does not allow what {key} needs, ABI {needed} does")
    rules = [landlock.rule(abi, directory, callrules.rights(agent.endpoint)) for directory in directories]
    rules += [landlock.rule(abi, directory) for directory in given]
    linux.landlock_restrict(landlock.ruleset(abi), rules + landlock.port_rules(abi, agent.endpoint.ports))
    return abi


def filter_system_calls(program: seccomp.FilterProgram | None) -> None:
    """Install a filter of system calls, in every thread and every future child.

    A second filter adds to the first: both must allow a call. Raises OSError if no filter can be installed.
    """
    if program is None:
        raise OSError(errno.ENOSYS, f"no filter has been written for {_MACHINE}")
    linux.set_seccomp_filter(seccomp.ARCHITECTURES[_MACHINE].numbers["seccomp"], program.of_process(os.getpid()))


def forbid_forks(assignment: Assignment, confined: Confined) -> None:
    """Install a filter without the calls that an agent needed to fork its senders. Raises OSError."""
    if confined.seccomp:
        filter_system_calls(assignment.filters.serving)


def confine_sender(assignment: Assignment, confined: Confined) -> None:
    """Install the filter of a sender in this process: it may only send. Raises OSError."""
    if confined.seccomp:
        filter_system_calls(assignment.filters.sender)
