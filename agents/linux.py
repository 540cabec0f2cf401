"""Linux system calls that Python does not offer: the only module that uses ctypes.

Each wrapper is one call; a failure raises OSError that names the call (and the path where there is one). Policy is
elsewhere (confinement/entry.py). Import this module before an agent joins a namespace: ctypes then loads nothing later
on, and `oserror` needs no file.

Sources: the man page named in each docstring (section 2 unless noted otherwise) and linux/*.h for the numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1

IPC_NOWAIT = 0o4000
_MSGCTL_SIZE = 256  # bytes; struct msqid_ds has 120, struct msginfo 32
MSG_COPY = 0o40000

F_SETLEASE = 1024

MADV_POPULATE_WRITE = 23

# The same number on every architecture.
_NR_OPEN_TREE, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT, NR_OPENAT2 = 428, 430, 431, 432, 437
_NR_LANDLOCK_CREATE_RULESET, _NR_LANDLOCK_ADD_RULE, _NR_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_STATX_INO, _STATX_BTIME = 0x100, 0x800
OPEN_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_STATX = struct.Struct("=I28xQ40xqI164x")  # struct statx: stx_mask, stx_ino, stx_btime
_OPEN_TREE_CLONE = 1
_FSCONFIG_CMD_CREATE, _FS_CLOEXEC = 6, 1
_LANDLOCK_CREATE_RULESET_VERSION = 1
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SET_MODE_FILTER = 1
_PROT_READ, _MAP_SHARED = 1, 1
_FILTER_TSYNC, _FILTER_SPEC_ALLOW = 1, 4  # every thread; no brakes on speculation: an agent runs no foreign code
_BPF_INSTRUCTION = 8  # bytes of a struct sock_filter
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)
LIBC = _libc  # for inotify_simple (endpoints/watch.py)
# The C library loads it when a thread ends by pthread_exit; by then it would be the container's.
_libgcc = None
try:
    _libgcc = ctypes.CDLL("libgcc_s.so.1")
except OSError:
    pass  # a C library that does without, as musl
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.capset.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_libc.msgrcv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_int]
_libc.msgrcv.restype = ctypes.c_ssize_t
_libc.msgctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.msgsnd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# The same library for calls that do not wait and are made for every message: without giving up the GIL and without
# ctypes' own copy of errno a call takes 1.7 us instead of 3.2 (two loaded cores, Python 3.11).
_quick = ctypes.PyDLL(None)
_quick.msgrcv.argtypes, _quick.msgrcv.restype = _libc.msgrcv.argtypes, ctypes.c_ssize_t
_quick.msgsnd.argtypes = _libc.msgsnd.argtypes
_prepared_msgrcv = _quick["msgrcv"]  # takes ctypes' objects, and converts nothing
_prepared_msgrcv.restype = ctypes.c_ssize_t
_prepared_syscall = _quick["syscall"]
_prepared_syscall.restype = ctypes.c_long
_errno_location = _quick["__errno_location"]
_errno_location.restype = ctypes.POINTER(ctypes.c_int)


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def oserror(call: str, path: bytes | str | None = None) -> OSError:
    """Return the OSError for errno as the last wrapped call left it, with the call's name in its text."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", path)


def syscall(call: str, number: int, *arguments: int | bytes | bytearray) -> int:
    """Make the system call of that number; a buffer is passed by its address. Raises OSError that names `call`."""
    passed = [
        ctypes.c_long(address_of(one) if isinstance(one, bytearray) else one) if not isinstance(one, bytes) else one
        for one in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        raise oserror(call)
    return result


def setns(fd: int, nstype: int) -> None:
    """Join the namespace that `fd` refers to; `nstype` is the CLONE_NEW… it must be. setns(2)."""
    if _libc.setns(fd, nstype) < 0:
        raise oserror("setns")


def unshare(flags: int) -> None:
    """Leave the named namespaces for new ones of one's own. unshare(2)."""
    if _libc.unshare(flags) < 0:
        raise oserror("unshare")


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Attach a file system. mount(2)."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, fstype)]
    if _libc.mount(*arguments, flags, None if data is None else data.encode()) < 0:
        raise oserror("mount", target)


def own_mount(filesystem: str) -> int:
    """Return a handle of a new mount that no other process sees. fsopen(2), fsconfig(2), fsmount(2)."""
    context = syscall("fsopen", _NR_FSOPEN, filesystem.encode() + b"\0", _FS_CLOEXEC)
    try:
        syscall("fsconfig", _NR_FSCONFIG, context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        return syscall("fsmount", _NR_FSMOUNT, context, _FS_CLOEXEC, 0)
    finally:
        os.close(context)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0) -> int:
    """Operate on the calling process; the result's meaning depends on `option`. prctl(2)."""
    result: int = _libc.prctl(option, arg2, arg3, arg4, 0)
    if result < 0:
        raise oserror(f"prctl {option}")
    return result


def set_name(name: str) -> None:
    """Set the thread's name as ps shows it, cut to 15 bytes. PR_SET_NAME of prctl(2)."""
    buffer = ctypes.create_string_buffer(name.encode("ascii", "replace")[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def drop_bounding_set() -> None:
    """Make every capability unobtainable for good; needs CAP_SETPCAP. PR_CAPBSET_DROP of prctl(2)."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: past the last capability that this kernel has
                raise
            return


def clear_capabilities() -> None:
    """Empty the ambient, effective, permitted and inheritable sets. capabilities(7), capset(2)."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, empty) < 0:
        raise oserror("capset")


def set_seccomp_filter(call: int, program: bytes) -> None:
    """Have every later system call judged by the BPF program; `call` is seccomp's own number. seccomp(2), Linux 4.17.

    Raises OSError: ENOSYS or EINVAL without CONFIG_SECCOMP_FILTER, EACCES without no_new_privs.
    """
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = _SockFprog(len(program) // _BPF_INSTRUCTION, ctypes.addressof(code))
    if _libc.syscall(call, _SET_MODE_FILTER, _FILTER_TSYNC | _FILTER_SPEC_ALLOW, ctypes.byref(filter_)) != 0:
        raise oserror("seccomp")


def detached(path: str) -> int:
    """Open a directory of ours so that no path leads out of it, in any hands: `..` of its root is itself.

    It is a mount of its own that is attached nowhere (open_tree, Linux 5.2). Where that may not be made, in a user
    namespace without a mount namespace, it is opened as it is. Raises OSError, ENOTDIR or ELOOP for a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    how = _OPEN_TREE_CLONE | _AT_SYMLINK_NOFOLLOW | os.O_CLOEXEC
    tree = _libc.syscall(_NR_OPEN_TREE, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), how)
    if tree < 0:
        return os.open(path, flags | os.O_NOFOLLOW)
    try:
        return os.open(".", flags, dir_fd=tree)
    finally:
        os.close(tree)


def leave_session_keyring(call: int) -> None:
    """Have an empty session keyring of one's own; `call` is keyctl's number. keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.

    Raises OSError: ENOSYS without CONFIG_KEYS, EPERM where a container's filter refuses it.
    """
    syscall("keyctl", call, _KEYCTL_JOIN_SESSION_KEYRING, 0)


def landlock_abi() -> int:
    """Return the version of this kernel's Landlock; 0 if it has none, or it is off. landlock_create_ruleset(2)."""
    return max(
        0, int(_libc.syscall(_NR_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    )


def landlock_restrict(ruleset: bytes, rules: Iterable[tuple[int, bytes]]) -> None:
    """Restrict this thread, and what it starts, to what the rules grant (confinement/landlock.py). Raises OSError.

    landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2); needs no_new_privs.
    """
    fd = syscall("landlock_create_ruleset", _NR_LANDLOCK_CREATE_RULESET, ruleset, len(ruleset), 0)
    try:
        for kind, rule in rules:
            syscall("landlock_add_rule", _NR_LANDLOCK_ADD_RULE, fd, kind, rule, 0)
        syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)


def wait_msgrcv(queue: int, address: int, size: int, mtype: int) -> int:
    """Receive a msgbuf (type, then at most `size` bytes) at `address`, wait for one; its length, or minus errno.

    msgrcv(2). Releases the GIL. E2BIG when the message is longer (it stays), EINTR after a signal, EIDRM or EINVAL when
    the queue is gone, EACCES, EFAULT (the message is lost: `address` must be resident).
    """
    length: int = _libc.msgrcv(queue, address, size, mtype, 0)
    return length if length >= 0 else -ctypes.get_errno()


def try_msgrcv(queue: int, address: int, size: int, mtype: int, flags: int) -> int:
    """Receive like `wait_msgrcv`, but do not wait: IPC_NOWAIT must be in the flags. ENOMSG without a message."""
    length: int = _quick.msgrcv(queue, address, size, mtype, flags)
    return length if length >= 0 else -_errno_location()[0]


class PreparedReceive:
    """A `try_msgrcv` to `place.value`; its `call` returns -1 if `call_failed` has the errno. 2.5 us in place of 3.0."""

    def __init__(self, queue: int, size: int, mtype: int) -> None:
        self.place = ctypes.c_void_p()
        prepared = (ctypes.c_int(queue), self.place, ctypes.c_size_t(size), ctypes.c_long(mtype))
        self.call: Callable[[], int] = partial(_prepared_msgrcv, *prepared, ctypes.c_int(IPC_NOWAIT))


class Changeable(Protocol):
    """An argument of a prepared call: an address or number, or bytes."""

    value: Any


def prepared(number: int, *arguments: int | bytes) -> tuple[Callable[[], int], Sequence[Changeable]]:
    """Return a system call that does not wait, and its arguments, to be changed between calls.

    It is for a call that is made for every message; it returns -1 if `call_failed` has the errno.
    """
    passed = [ctypes.c_char_p(one) if isinstance(one, bytes) else ctypes.c_long(one) for one in arguments]
    return partial(_prepared_syscall, ctypes.c_long(number), *passed), passed


def call_failed() -> int:
    """Return minus the errno of a prepared call that has just failed."""
    return -int(_errno_location()[0])


def try_msgsnd(queue: int, address: int, size: int) -> int:
    """Send the msgbuf at `address`, `size` bytes beside its type, without waiting; returns 0 or errno. msgsnd(2).

    A full queue is no exception: EAGAIN. EIDRM or EINVAL when the queue is gone, EACCES.
    """
    return _errno_location()[0] if _quick.msgsnd(queue, address, size, IPC_NOWAIT) < 0 else 0


def wait_msgsnd(queue: int, address: int, size: int) -> int:
    """Send like `try_msgsnd`, but wait for room; EINTR after a signal. Releases the GIL."""
    return ctypes.get_errno() if _libc.msgsnd(queue, address, size, 0) < 0 else 0


def msgctl(queue: int, command: int) -> tuple[int, bytes]:
    """Return what msgctl(2) returns, or minus errno, and what it has stored."""
    stored = bytearray(_MSGCTL_SIZE)
    result: int = _libc.msgctl(queue, command, address_of(stored))
    return (result if result >= 0 else -ctypes.get_errno()), bytes(stored)


def address_of(buffer: memoryview | bytearray) -> int:
    """Return the address of a writable buffer in memory; the buffer must outlive the use of the address."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def map_shared(fd: int, size: int, offset: int) -> memoryview:
    """Map a file read-only for the life of this process; unlike mmap.mmap, it keeps no descriptor. mmap(2)."""
    address = _libc.mmap(None, size, _PROT_READ, _MAP_SHARED, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        raise oserror("mmap")
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def openat2(directory: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` relative to `directory` under the RESOLVE_… rules; always close-on-exec. openat2(2), Linux 5.6."""
    how = ctypes.c_char_p(OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve))
    fd: int = _libc.syscall(NR_OPENAT2, directory, ctypes.c_char_p(path), how, ctypes.c_size_t(OPEN_HOW.size))
    if fd < 0:
        raise oserror("openat2", path)
    return fd


def filesystem(fd: int) -> int:
    """Return the kind of file system that `fd` is on, a number of linux/magic.h. f_type of fstatfs(2)."""
    status = (ctypes.c_long * 32)()  # struct statfs has 120 bytes, and begins with it
    if _libc.fstatfs(fd, status) < 0:
        raise oserror("fstatfs")
    return status[0] & 0xFFFF_FFFF


def syncfs(fd: int) -> None:
    """Write the file system that `fd` is on to its device. syncfs(2)."""
    if _libc.syncfs(fd) < 0:
        raise oserror("syncfs")


def rename_noreplace(directory: int, old: bytes, new: bytes, other: int | None = None) -> None:
    """Rename within one directory, or to the `other` one; EEXIST if `new` is there. renameat2(2)."""
    if _libc.renameat2(directory, old, directory if other is None else other, new, RENAME_NOREPLACE) < 0:
        raise oserror("renameat2", new)


def birth(directory: int, name: bytes) -> tuple[int, int]:
    """Return a file's inode and its time of birth in ns, 0 where the file system does not keep it. Follows no link.

    The time is from 1970 to 2262, whatever the file system says: the server of a FUSE file system may say anything.
    With an empty name it is the open file `directory` itself. statx(2).
    """
    about = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(directory, name, _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH, _STATX_INO | _STATX_BTIME, about) < 0:
        raise oserror("statx", name)
    mask, inode, seconds, nanoseconds = _STATX.unpack(about)
    born = seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0
    return inode, min(max(born, 0), (1 << 63) - 1)
