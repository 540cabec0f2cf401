"""How an agent touches files of a hostile container: by descriptor, regular files only, nothing that blocks.

Some facts about paths, and what they mean here:
* A path that was checked may be another thing when it is used, so a directory is opened once and files are opened
  beneath its descriptor, by one name, without following a link. Links among the parents of a directory are followed
  (`/var/run` is one nearly everywhere), within the container's root and never through /proc's magic links.
* Opening a FIFO or a device can block or act. O_PATH opens nothing; fstat then says what it is, and the descriptor of
  a regular file is opened again through the host's /proc/self/fd, which was opened before the join.
* Names are bytes: a container may use any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.entry import Gone

_DIRECTORY_BITS = 0o111  # a directory made with the files' mode can also be entered
LEASED = "a program of the container holds a lease on it"  # fcntl(2), F_SETLEASE: open(2) would wait up to 45 s
_PSEUDO = {  # file systems whose files are no files: what is written there acts on the kernel (linux/magic.h)
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0x62656570: "configfs",
    0xCAFE4A11: "bpf",
    0x6165676C: "pstore",
    0xDE5E81E4: "efivarfs",
    0xF97CFF8C: "selinux",
    0x42494E4D: "binfmt_misc",
    0x1CD1: "devpts",
}
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_UNSAFE_ELSEWHERE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS


def shown(path: bytes) -> str:
    """A path for people; bytes that are no UTF-8 come as escapes (control characters are escaped by the log)."""
    return path.decode("utf-8", "backslashreplace")


def blocked_by(error: OSError, what: str) -> Blocked:
    """The reason that status shows for a failed call on `what`."""
    number = error.errno or 0
    text = str(error.strerror) if isinstance(error, NotAFileError) else os.strerror(number)
    if number in (errno.EACCES, errno.EPERM):
        text += f" for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or the owner in the container)"
    elif number == errno.EAGAIN:
        text = LEASED
    elif number in (errno.ELOOP, errno.ENOTDIR):
        text += " (links are not followed here)"
    return Blocked(f"{what}: {text}")


class Tree:
    """The container's files, seen from its root. Made after the join."""

    def __init__(
        self, own_fds: int, granted: Collection[tuple[int, int]] = (), log: Callable[[str, str], None] | None = None
    ) -> None:
        self.own_fds = own_fds  # the host's /proc/self/fd
        self._granted = granted  # the directories that Landlock leaves us, by device and inode
        self._log = log  # hears, with a level, of what was made
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        """Let go of the root."""
        os.close(self._root)

    def open_parent(self, path: bytes) -> tuple[int, bytes]:
        """Open the directory that holds `path`; returns its descriptor (O_PATH) and the last name. Raises OSError."""
        parent, name = os.path.split(path.rstrip(b"/"))
        how = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
        fd = linux.openat2(self._root, parent or b"/", os.O_PATH | os.O_DIRECTORY, 0, how)
        return fd, name or b"."  # the root is its own parent

    def open_directory(self, path: bytes, mode: int | None = None) -> int:
        """Open a directory for reading, making it with `mode` if it is missing and mode is given.

        Raises Blocked; Gone if its parent took the place of one that Landlock had left us.
        """
        where = shown(os.path.split(path.rstrip(b"/"))[0])
        try:
            parent, name = self.open_parent(path)
        except FileNotFoundError:
            raise Blocked(f"{where} is not there in the container: make it ({shown(path)} is made in it)") from None
        except OSError as error:
            raise blocked_by(error, where) from None
        try:
            fd = self._open_or_make(parent, name, path, mode)
        except OSError as error:
            if error.errno == errno.EACCES and self._granted and not self._is_granted(path):
                raise Gone(f"{shown(path)} or a directory above it was replaced by another; entering anew") from None
            raise blocked_by(error, shown(path)) from None
        finally:
            os.close(parent)
        pseudo = _PSEUDO.get(linux.filesystem(fd))
        if pseudo:
            os.close(fd)
            raise Blocked(f"{shown(path)} leads into a {pseudo} file system, in which nothing is a message")
        return fd

    def leads_to(self, path: bytes, directory: int) -> bool:
        """Whether `path` still leads to that open directory; yes if it cannot be told, for want of a descriptor."""
        try:
            parent, name = self.open_parent(path)
            try:
                return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(directory))
            finally:
                os.close(parent)
        except OSError as error:
            return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

    def nearest(self, path: bytes) -> int:
        """Open (O_PATH) the directory that holds `path`, or where that is missing, the nearest one above it."""
        while True:
            path = os.path.split(path.rstrip(b"/"))[0]
            try:
                return self.open_parent(path + b"/.")[0]
            except OSError:
                if path in (b"", b"/"):
                    raise

    def _is_granted(self, path: bytes) -> bool:
        fd = self.nearest(path)
        about = os.fstat(fd)
        os.close(fd)
        return (about.st_dev, about.st_ino) in self._granted

    def _open_or_make(self, parent: int, name: bytes, path: bytes, mode: int | None) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            return linux.openat2(parent, name, flags, 0, _UNSAFE_ELSEWHERE)
        except FileNotFoundError:
            if mode is None:
                raise
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = linux.openat2(parent, name, flags, 0, _UNSAFE_ELSEWHERE)
        os.fchmod(fd, mode | (mode >> 2) & _DIRECTORY_BITS | 0o100)  # whoever may read it may also enter it
        if self._log is not None:
            self._log("info", f"{shown(path)} was missing and is made, mode {os.fstat(fd).st_mode & 0o7777:04o}")
        return fd

    def open_file(self, directory: int, name: bytes, flags: int) -> int:
        """Open the regular file `name` without blocking. Raises OSError; NotAFileError also for a link."""
        handle = linux.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, 0, _UNSAFE_ELSEWHERE)
        try:
            kind = os.fstat(handle).st_mode
            if not stat.S_ISREG(kind):
                raise NotAFileError(
                    errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(kind), 'a directory')}, not a regular file", name
                )
            return os.open(b"%d" % handle, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.own_fds)
        finally:
            os.close(handle)

    def owner(self, path: bytes) -> tuple[int, int] | None:
        """uid and gid of what is at `path`, else of its directory; None if that is missing too."""
        try:
            parent, name = self.open_parent(path)
        except OSError:
            return None
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            status = os.fstat(parent)
        except OSError:
            return None
        finally:
            os.close(parent)
        return status.st_uid, status.st_gid


class Kept:
    """A file of one name that is opened again and again: it is looked up once for as long as the name leads to it.

    Its handle (O_PATH) is kept, so its inode's number cannot be given to another file and tells that it is the same.
    """

    def __init__(self, tree: Tree, name: bytes) -> None:
        self._tree = tree
        self._name = name
        self._handle = -1
        self._inode = (0, 0)

    def open(self, directory: int, flags: int) -> int:
        """As `Tree.open_file`. Raises OSError, NotAFileError."""
        status = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
        if (status.st_dev, status.st_ino) != self._inode or self._handle < 0:
            self._look_up(directory)
        return os.open(b"%d" % self._handle, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._tree.own_fds)

    def _look_up(self, directory: int) -> None:
        handle = self._tree.open_file(directory, self._name, os.O_PATH)
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = handle
        status = os.fstat(handle)
        self._inode = (status.st_dev, status.st_ino)


class NotAFileError(OSError):
    """A FIFO, device, socket or directory stands where a file should be."""


def make_file(directory: int, name: bytes, mode: int) -> int:
    """Create a file that is not there yet, with exactly `mode`, open for writing. Raises OSError."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


def read_up_to(fd: int, limit: int, size: int | None = None) -> bytes | None:
    """The whole content of a regular file; None if it is more than `limit` bytes (also if it grows meanwhile).

    Of what is larger nothing is read: a sparse file of a terabyte costs as much as any. `size`: its bytes, if known.
    """
    if (os.fstat(fd).st_size if size is None else size) > limit:
        return None
    data = os.read(fd, limit + 1 if limit < 1 << 16 else 1 << 16)
    if len(data) < 1 << 16:
        return data if len(data) <= limit else None
    chunks, size = [data], len(data)
    while data and size <= limit:
        data = os.read(fd, 1 << 20)
        chunks.append(data)
        size += len(data)
    return b"".join(chunks) if size <= limit else None


def write_all(fd: int, data: bytes) -> None:
    """Write every byte. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def lease(fd: int) -> bool | None:
    """Take a read lease: while it is held nobody has the file open for writing. fcntl(2), F_SETLEASE.

    True: held, closing `fd` ends it. False: somebody has it open for writing. None: no leases to be had here
    (a foreign owner, or a file system without them).
    """
    try:
        fcntl.fcntl(fd, linux.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def end_lease(fd: int) -> None:
    """Give back what `lease` took."""
    fcntl.fcntl(fd, linux.F_SETLEASE, fcntl.F_UNLCK)
