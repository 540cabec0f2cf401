"""Opens paths that the operator names, only if root (or our own user) alone decides what they lead to.

The configuration, state_dir, the log file, pid files, runtimes' state files, `ns:` files and the control socket's
directory all go through the one walk below. The daemon is root: a user who can replace one of these files chooses what
root reads, writes or enters.

The rules, for each component from / to the end (`fault` is all of them but the fourth and fifth):
1. It belongs to root or to our own user. Any other owner could change it, or replace what is below it.
2. Neither its group nor others may write it. This covers ACLs too: an ACL's mask is the mode's group bits.
3. All users may write to a sticky directory (/tmp), but cannot replace another user's files in it. They can add a
   hard link to root's file there (the kernel's default of fs.protected_hardlinks is 0). So a file or a link directly in
   such a directory must have one name only.
4. A link must satisfy rules 1 and 3. Then the walk continues with its text under the same rules. /var/run is a link.
5. The files of our own /proc are the kernel's: rules 1 and 2 do not apply there. Its links below a process's directory
   lead to what that process chose (root, cwd, fd). They are refused, except our own descriptors and a namespace.

Each component is opened with O_NOFOLLOW relative to the one before, and the opened object is checked. So nothing can
change between the check and the use. `..` leads to a directory that is checked like any other.

Rejected: `realpath` and then stat, because the path may change in between; RESOLVE_NO_SYMLINKS, because /var/run is a
link on every host; checking the last component alone, because its directory may be replaced.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nsbridge.config.descriptors import closing
from nsbridge.config.text import escape

_MOST_LINKS = 40  # as the kernel's own walk has it (path_resolution(7))
_TRIES = 8  # at a file that comes and goes while it is opened
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NAMESPACE = re.compile(r"[a-z_]+:\[[0-9]+\]")  # the text of the link /proc/PID/ns/TYPE
_MAP_SIZE = 64  # bytes that are read of a uid_map: more than the line that maps every id to itself
_PROC_ROOT = 1  # inode number of the root of a proc file system (PROC_ROOT_INO of the kernel)


class UntrustedError(Exception):
    """An untrusted user decides what a path leads to; `str()` is one line with component, user and fix."""

    def __init__(self, what: str) -> None:
        super().__init__(escape(what))


@dataclass(frozen=True, slots=True)
class Parent:
    """The properties of a component's directory that the rules need."""

    everybody: bool = False  # all users may add names: it is sticky
    group: bool = False  # a group may, and the caller accepts that


def fault(path: str, about: os.stat_result, parent: Parent, owners: frozenset[int]) -> str:
    """Return how the component at `path` breaks a rule, and the fix; empty if it breaks none. `owners` are trusted."""
    kind, mode = about.st_mode, stat.S_IMODE(about.st_mode)
    if about.st_uid not in owners:
        if stat.S_ISLNK(kind):
            return f"{path} is a link of uid {about.st_uid}, who can let it lead elsewhere; name what it leads to"
        what = f"it belongs to uid {about.st_uid}"
        if stat.S_ISDIR(kind):
            fix = f"chown root {path}, or name a place in a directory of root's"
            return f"{path} can be changed by users other than root ({what}), who could put something else there; {fix}"
        return f"{path} can be changed by users other than root ({what}); chown root {path}"
    if (parent.everybody or parent.group) and not stat.S_ISDIR(kind) and about.st_nlink != 1:
        return (
            f"{path} has {about.st_nlink} names, and users other than root may make names there, so root need not have "
            "made this one; remove it, or name a place in a directory that only root may write"
        )
    if parent.group and stat.S_ISLNK(kind):
        return f"{path} is a link in a directory that a group may write; name what it leads to"
    if stat.S_ISLNK(kind) or stat.S_ISCHR(kind) or not mode & _OTHERS_WRITE:
        return ""
    if stat.S_ISDIR(kind) and mode & stat.S_ISVTX:
        return ""
    who = "everybody" if mode & stat.S_IWOTH else f"group {about.st_gid}"
    then = ", who could put something else there" if stat.S_ISDIR(kind) else ""
    return f"{path} can be changed by users other than root ({who} may write it){then}; chmod go-w {path}"


def pin(path: str, *, group_dir: bool = False) -> int:
    """Return an O_PATH descriptor of what `path` leads to; see open_file. Raises UntrustedError, OSError."""
    with _Walk(path, group_dir=group_dir) as walk:
        return walk.to_end()


def open_file(path: str, flags: int = os.O_RDONLY, *, create: int | None = None, group_dir: bool = False) -> int:
    """Open what `path` leads to. `create` is the mode of a file that is made if there is none, under any umask.

    With `group_dir` a group may write the directory, as with /var/log on Ubuntu. Members can then replace the file by
    another file of root's that they move there. Raises UntrustedError, OSError; ValueError if it is not a file.
    """
    for _ in range(_TRIES):
        with _Walk(path, group_dir=group_dir) as walk:
            try:
                pinned = walk.to_end()
            except FileNotFoundError:
                if create is None or not walk.lacks_only_its_end:
                    raise
                try:
                    return walk.create(flags, create)
                except FileExistsError:
                    continue  # it has appeared meanwhile, and is checked like any other
        with closing(pinned):
            return _reopen(pinned, flags, is_own=walk.is_own)
    raise FileExistsError(0, "it keeps appearing and disappearing", path)


def open_directory(path: str, *, make: int | None = None) -> int:
    """Open the directory that `path` leads to. Missing ones are made with the mode `make`, under any umask.

    Raises UntrustedError, OSError.
    """
    with _Walk(path, make=make) as walk:
        pinned = walk.to_end()
    with closing(pinned):
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pinned)


def open_below(directory: int, name: str, owners: Container[int], path: str) -> int:
    """Open the directory `name` of an open directory; make it if it is missing. Set its mode to 0700.

    Messages call it `path`. Raises UntrustedError if it is a link or belongs to none of `owners`; OSError.
    """
    try:
        os.mkdir(name, stat.S_IRWXU, dir_fd=directory)
    except FileExistsError:
        pass
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except NotADirectoryError:
        raise UntrustedError(f"{path} is a link or a file, not a directory; move it away: it is made anew") from None
    try:
        about = os.fstat(fd)
        if about.st_uid not in owners:
            raise UntrustedError(f"{path} belongs to uid {about.st_uid}, not to root; move it away: it is made anew")
        if stat.S_IMODE(about.st_mode) != stat.S_IRWXU:
            os.fchmod(fd, stat.S_IRWXU)
    except BaseException:
        os.close(fd)
        raise
    return fd


def trusted_owners() -> frozenset[int]:
    """Return the trusted users: root, our own, and in a user namespace the uid that stands for the host's root."""
    ours = {0, os.geteuid()}
    return frozenset(ours if is_real_root() else {*ours, overflow_uid()})


def is_real_root() -> bool:
    """True if we are root of the first user namespace, which maps every id to itself (user_namespaces(7))."""
    if os.geteuid() != 0:
        return False
    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)  # three calls: every agent asks at its start
    try:
        return os.read(fd, _MAP_SIZE).split() == [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)


def overflow_uid() -> int:
    """Return the uid that stands for unmapped users in a user namespace; 65534 if /proc does not show it."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except OSError:
        return 65534


def _reopen(pinned: int, flags: int, *, is_own: bool) -> int:
    """Open the pinned object. Refuse a FIFO unless it is our own descriptor: opening it could block."""
    kind = os.fstat(pinned).st_mode
    if is_own and stat.S_ISFIFO(kind):
        return os.open(f"/proc/self/fd/{pinned}", flags | os.O_CLOEXEC)
    if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
        raise ValueError("is not a regular file")
    return os.open(f"/proc/self/fd/{pinned}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


class _Walk:
    """One walk from / along a path; a context manager that closes its descriptors."""

    def __init__(self, path: str, *, make: int | None = None, group_dir: bool = False) -> None:
        self._make = make
        self._group_dir = group_dir
        self._owners = trusted_owners()
        self._left = _components(path if os.path.isabs(path) else f"{os.getcwd()}/{path}")  # noqa: PTH109, PTH117
        self._links = 0
        self._here = -1
        self._about: os.stat_result | None = None  # of _here
        self._names: list[str] = []  # the directories that lead here
        self._missing = ""
        self.is_own = False  # the path led to one of our own descriptors (/dev/stdin)
        self._proc = _device("/proc/self")
        self._root = _device("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._move(-1)

    @property
    def lacks_only_its_end(self) -> bool:
        """True after FileNotFoundError if all but the last component is there."""
        return bool(self._missing) and not self._left

    def to_end(self) -> int:
        """Walk; the caller closes the descriptor of what the path leads to."""
        self._to_root()
        while self._left:
            name = self._left.pop()
            fd = self._open(name)
            taken = -1
            try:
                taken = self._step(name, fd)
            finally:
                if taken != fd:
                    os.close(fd)
            if taken >= 0:
                self._move(taken)
        end, self._here = self._here, -1
        return end

    def create(self, flags: int, mode: int) -> int:
        """Make the missing file. Raises FileExistsError if it has appeared meanwhile, OSError."""
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._missing, flags, mode, dir_fd=self._here)
        os.fchmod(fd, mode)
        return fd

    def _open(self, name: str) -> int:
        if name == "..":
            return os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._here)
        pinned = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, pinned, dir_fd=self._here)
        except FileNotFoundError:
            if self._make is None:
                self._missing = name
                raise
        try:
            os.mkdir(name, 0o700, dir_fd=self._here)
            os.chmod(name, self._make, dir_fd=self._here)
        except FileExistsError:
            pass
        return os.open(name, pinned, dir_fd=self._here)

    def _step(self, name: str, fd: int) -> int:
        """Check a component; return the descriptor to continue from (maybe `fd`), or -1 after a link."""
        about = os.fstat(fd)
        self._check(name, about)
        if stat.S_ISLNK(about.st_mode):
            return self._follow(name, fd, about)
        self._names = self._names[:-1] if name == ".." else [*self._names, name]
        if not stat.S_ISDIR(about.st_mode) or name == ".." or about.st_dev == self._root:
            return fd
        opened = self._mounted(name, fd)
        if opened < 0:
            return fd
        try:
            self._check("", os.fstat(opened))
        except BaseException:
            os.close(opened)
            raise
        return opened

    def _mounted(self, name: str, fd: int) -> int:
        """Open a directory to trigger its automount, which O_PATH does not do; -1 if it is mounted already."""
        try:
            opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._here)
        except OSError:
            return -1
        if os.path.samestat(os.fstat(fd), os.fstat(opened)):
            os.close(opened)
            return -1
        return opened

    def _check(self, name: str, about: os.stat_result) -> None:
        if about.st_dev == self._proc:
            return
        path = self._path(name)
        above = self._about.st_mode if self._about else 0
        others = above & _OTHERS_WRITE if self._about and self._about.st_dev != self._proc else 0
        is_group_dir = self._is_group_dir(self._about) if self._about and not self._left else False
        parent = Parent(bool(others and above & stat.S_ISVTX), is_group_dir)
        wrong = fault(path, about, parent, self._owners)
        if wrong and not (len(self._left) == 1 and self._is_group_dir(about)):
            raise UntrustedError(wrong)

    def _is_group_dir(self, about: os.stat_result) -> bool:
        writers = about.st_mode & (_OTHERS_WRITE | stat.S_ISVTX)
        is_bearable = self._group_dir and stat.S_ISDIR(about.st_mode) and about.st_uid in self._owners
        return is_bearable and writers == stat.S_IWGRP

    def _follow(self, name: str, fd: int, about: os.stat_result) -> int:
        """Replace a link by its text in the rest of the path. Open and return the object of a magic link."""
        is_magic = about.st_dev == self._proc and self._about is not None and self._about.st_ino != _PROC_ROOT
        try:
            text = os.readlink("", dir_fd=fd)
        except OSError:
            if not is_magic:
                raise
            text = ""
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path(name))
        if is_magic:
            return self._magic(name, text)
        self._left += _components(text)
        if text.startswith("/"):
            self._to_root()
        return -1

    def _magic(self, name: str, text: str) -> int:
        self.is_own = os.path.samestat(os.fstat(self._here), os.stat("/proc/self/fd"))  # noqa: PTH116
        if self._left or not (self.is_own or _NAMESPACE.fullmatch(text)):
            raise UntrustedError(
                f"{self._path(name)} leads to what that process chooses; name the place itself, as this host sees it"
            )
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._here)

    def _to_root(self) -> None:
        self._names = []
        self._about = None
        self._move(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self._check("", os.fstat(self._here))

    def _move(self, fd: int) -> None:
        if self._here >= 0:
            os.close(self._here)
        self._here = fd
        self._about = os.fstat(fd) if fd >= 0 else None

    def _path(self, name: str) -> str:
        return "/" + "/".join((*self._names, name) if name else self._names)


def _components(path: str) -> list[str]:
    """Return the names along a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _device(path: str) -> int:
    """Return the device number at `path`; -1 if nothing is there."""
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1
