"""Opens files of a hostile container: by descriptor, regular files only, nothing that blocks.

Some facts about paths, and what they mean here:
* A path that was checked may lead elsewhere when it is used, so a directory is opened once and files are opened
  beneath its descriptor, by one name, without following a link. Links among the parents of a directory are followed
  (`/var/run` is one nearly everywhere), if a trusted user made them (identity/walk.py).
* A file can be mounted over another one. So no file is opened across a mount. The one exception is the endpoint's own
  file, if it was a mount when the agent first entered.
* Opening a FIFO or a device can block or have effects. O_PATH opens nothing; fstat then shows the kind. A regular file
  is opened again by its descriptor through the host's /proc/self/fd, which was opened before the join.
* Names are bytes: a container may use any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection

from nsbridge.agents import linux
from nsbridge.agents.confinement.entry import EntrySteps, Gone
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.opening import PreparedOpen
from nsbridge.agents.identity import filesystems
from nsbridge.agents.identity.walk import WalkEnd, redirector, redirects, shown, walk

_LEASE_ATTEMPTS = 4  # in a row; the writer is only some instructions away from being counted out
_DIRECTORY_BITS = 0o111  # a directory made with the files' mode can also be entered
LEASED = "a program of the container holds a lease on it"  # fcntl(2), F_SETLEASE: open(2) would wait up to 45 s
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_UNSAFE_BUT_FOR_MOUNTS = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_UNSAFE_ELSEWHERE = _UNSAFE_BUT_FOR_MOUNTS | linux.RESOLVE_NO_XDEV


def blocked_by(error: OSError, what: str) -> Blocked:
    """Return the exception with the reason that `status` shows for a failed call on `what`."""
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
    """The container's files, seen from its root. Create it after the join, and use it as the agent's user only."""

    def __init__(
        self,
        own_fds: int,
        granted: Collection[tuple[int, int]] = (),
        log: Callable[[str, str], None] | None = None,
        around: EntrySteps | None = None,
        container: str = "the container",
        ends: Collection[bytes] = (),
    ) -> None:
        self.own_fds = own_fds  # the host's /proc/self/fd
        self._granted = granted  # the directories that Landlock leaves us, by device and inode
        self._log = log  # called, with a level, for each file that was made
        self._around = around
        self._container = container
        self._ends = ends  # the endpoint's paths
        self._trusted = frozenset({0, os.getuid(), *(around.trusted if around else ())})  # identity/walk.py
        self._mounts = around.mounts if around else frozenset()  # names of the endpoint's own files that may be mounts
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        self._open_path = PreparedOpen(os.O_PATH | os.O_NOFOLLOW, _UNSAFE_ELSEWHERE)

    def close(self) -> None:
        """Close the root."""
        os.close(self._root)

    def open_directory(self, path: bytes, mode: int | None = None) -> int:
        """Open a directory for reading. With `mode` it is an endpoint: made if it is missing, never a link.

        Raises Blocked; Gone if its parent took the place of one that Landlock had left us, or it is a stranger's.
        """
        with self._walk(path, follow_last=mode is None) as place:
            try:
                fd = self._open_or_make(place, path, mode)
            except OSError as error:
                if error.errno == errno.EACCES and self._granted and not self._is_granted(place):
                    raise Gone(
                        f"{shown(path)} or a directory above it was replaced by another; entering anew"
                    ) from None
                raise blocked_by(error, shown(path)) from None
        if mode is not None and self._around is not None:
            self._around.check_directory(path, os.fstat(fd).st_uid)
        try:
            pseudo = filesystems.pseudo(fd)
        except OSError as error:
            os.close(fd)
            raise blocked_by(error, shown(path)) from None
        if pseudo:
            os.close(fd)
            raise Blocked(f"{shown(path)} leads into a {pseudo} file system, in which nothing is a message")
        return fd

    def leads_to(self, path: bytes, directory: int) -> bool:
        """True if `path` still leads to that open directory, or if no descriptor is free to check it."""
        try:
            with walk(self._root, path, follow_last=True) as place:
                return place.status is not None and os.path.samestat(place.status, os.fstat(directory))
        except OSError:
            return True  # for want of descriptors

    def _walk(self, path: bytes, *, follow_last: bool) -> WalkEnd:
        try:
            place = walk(self._root, path, follow_last=follow_last)
        except OSError as error:
            raise blocked_by(error, shown(path)) from None
        if step := redirector(place.steps, self._trusted):
            place.close()
            raise Blocked(redirects(step, path))
        return place

    def _is_granted(self, place: WalkEnd) -> bool:
        about = os.fstat(place.directory)
        return (about.st_dev, about.st_ino) in self._granted

    def _open_or_make(self, place: WalkEnd, path: bytes, mode: int | None) -> int:
        if place.error is not None and not (place.is_missing and mode is not None):
            if place.error.errno == errno.ENOENT and not place.is_missing:
                raise Blocked(self._create_parent(path))
            raise place.error
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        if not place.is_missing:
            return linux.openat2(place.directory, place.name, flags, 0, linux.RESOLVE_NO_SYMLINKS)
        os.mkdir(place.name, 0o700, dir_fd=place.directory)
        fd = linux.openat2(place.directory, place.name, flags, 0, _UNSAFE_ELSEWHERE)
        assert mode is not None  # noqa: S101  (or it would not be made)
        os.fchmod(fd, mode | (mode >> 2) & _DIRECTORY_BITS | 0o100)  # users who may read it may also enter it
        self._note_made(path, os.fstat(fd))
        return fd

    def _create_parent(self, path: bytes) -> str:
        """Return the reason that the parent directory of `path` is missing, and what will be made in it."""
        parent, name = os.path.split(path.rstrip(b"/"))
        inside = [end for end in map(os.path.split, self._ends) if end[0] == parent]
        names = " and ".join(shown(end[1]) for end in inside) or shown(name)
        return f"create {shown(parent)} in {self._container}; nsbridge then makes {names}"

    def open_file(self, directory: int, name: bytes, flags: int) -> int:
        """Open the regular file `name` without blocking. Raises OSError; NotAFileError also for a link or a mount.

        A file that is mounted over another one does not belong to this directory: a container may mount kernel files
        there. Only an endpoint's own file may be a mount, if it was one when the agent first entered.
        """
        return self.open_and_stat(directory, name, flags)[0]

    def open_and_stat(self, directory: int, name: bytes, flags: int) -> tuple[int, os.stat_result]:
        """Open a file as `open_file` does; return also its status, from just before it was opened."""
        try:
            handle = self._open_path(directory, name)
        except OSError as error:
            if error.errno == errno.EACCES and self._around is not None:
                self._around.recheck()  # the directory may not be searched any more: its owner may have changed
            if error.errno != errno.EXDEV:
                raise
            handle = self._open_mount(directory, name)
        try:
            status = os.fstat(handle)
            kind = status.st_mode
            if not stat.S_ISREG(kind):
                raise NotAFileError(
                    errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(kind), 'a directory')}, not a regular file", name
                )
            return os.open(b"%d" % handle, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.own_fds), status
        finally:
            os.close(handle)

    def make_file(self, directory: int, path: bytes, mode: int) -> int:
        """Make an empty file if there is none at `path`, in `directory`. Return its mtime (ns), 0 if there was one.

        Raises Blocked.
        """
        name = os.path.split(path)[1]
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise blocked_by(error, shown(path)) from None
        else:
            return 0
        try:
            fd = make_file(directory, name, mode)
        except FileExistsError:
            return 0
        except OSError as error:
            raise blocked_by(error, shown(path)) from None
        about = os.fstat(fd)
        os.close(fd)
        self._note_made(path, about)
        return about.st_mtime_ns

    def _note_made(self, path: bytes, about: os.stat_result) -> None:
        if self._log is not None:
            mode = f"mode {about.st_mode & 0o7777:04o}, owner {about.st_uid}:{about.st_gid}"
            self._log("info", f"{shown(path)} was missing and is made, {mode}")

    def _open_mount(self, directory: int, name: bytes) -> int:
        handle = linux.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, 0, _UNSAFE_BUT_FOR_MOUNTS)
        pseudo = filesystems.pseudo(handle)
        if name in self._mounts and not pseudo:
            return handle
        os.close(handle)
        what = f"a file of a {pseudo} file system is" if pseudo else "another file is"
        raise NotAFileError(errno.EINVAL, f"{what} mounted over it", name)


class CachedFile:
    """A file of one name that is opened again and again: it is looked up once for as long as the name leads to it.

    Its handle (O_PATH) is kept. So no other file can get its inode number, and an equal number proves the same file.
    """

    def __init__(self, tree: Tree, name: bytes) -> None:
        self._tree = tree
        self._name = name
        self._handle = -1
        self._opened_as = b""
        self._inode = (0, 0)

    def open(self, directory: int, flags: int) -> int:
        """Open the file as `Tree.open_file` does. Raises OSError, NotAFileError."""
        status = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
        if (status.st_dev, status.st_ino) != self._inode or self._handle < 0:
            self._look_up(directory)
        return os.open(self._opened_as, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._tree.own_fds)

    def _look_up(self, directory: int) -> None:
        handle = self._tree.open_file(directory, self._name, os.O_PATH)
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = handle
        self._opened_as = b"%d" % handle  # in own_fds
        status = os.fstat(handle)
        self._inode = (status.st_dev, status.st_ino)


class KeptFile:
    """A file of one name that is read again and again: it stays open for as long as the name leads to it.

    While it is open no other file can get its inode number, so an equal number proves the same file.
    """

    def __init__(self, tree: Tree, name: bytes) -> None:
        self._tree = tree
        self._name = name
        self._inode = (0, 0)
        self.fd = -1

    def lease(self, directory: int) -> bool | None:
        """Take a read lease, as `lease` does, on the file that is open; open what the name leads to if none is.

        Raises OSError, NotAFileError.
        """
        if self.fd < 0:
            self.fd, status = self._tree.open_and_stat(directory, self._name, os.O_RDONLY)
            self._inode = (status.st_dev, status.st_ino)
        for _ in range(_LEASE_ATTEMPTS):
            held = lease(self.fd)
            if held is not False:
                return held
            os.sched_yield()
        return False

    def named(self, directory: int) -> os.stat_result | None:
        """Return the status of what is open if the name leads to it, else None. Raises OSError."""
        status = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
        return status if (status.st_dev, status.st_ino) == self._inode else None

    def close(self) -> None:
        """Close what is open, if anything is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class NotAFileError(OSError):
    """A FIFO, device, socket or directory stands where a file should be."""


def make_file(directory: int, name: bytes, mode: int) -> int:
    """Create a file that is not there yet, with exactly `mode`, open for writing. Raises OSError."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


def read_up_to(fd: int, limit: int, size: int | None = None) -> bytes | None:
    """Return the whole content of a regular file; None if it exceeds `limit` bytes (also if it grows meanwhile).

    Nothing of a larger file is read, so a sparse terabyte costs no more than any file. `size`: its bytes, if known.
    """
    if size is None:
        size = os.fstat(fd).st_size
    if size > limit:
        return None
    first = size + 1 if size < 1 << 16 else 1 << 16  # the byte more shows that this is all
    data = os.pread(fd, first, 0)
    if len(data) < first:
        return data
    chunks, size = [data], len(data)
    while data and size <= limit:
        data = os.pread(fd, 1 << 20, size)
        chunks.append(data)
        size += len(data)
    return b"".join(chunks) if size <= limit else None


def write_all(fd: int, data: bytes) -> None:
    """Write every byte. Raises OSError."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[os.write(fd, view) :]


def lease(fd: int) -> bool | None:
    """Take a read lease: while it is held no process has the file open for writing. fcntl(2), F_SETLEASE.

    True: held until `end_lease`, or the close of `fd`. False: a process has it open for writing. None: no leases here
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
