"""Walk a path of a hostile container one name at a time, and note which users could redirect it.

Facts:
* The owner of a directory can replace every name in it, and the owner of a link chose its target. Both can redirect a
  later walk. No other user can: in a directory that others may write to, they can only add links or directories of
  their own, and the walk notes these owners as well. Without the sticky bit they can also swap root's own directories
  that lie in it side by side.
* A link that an unprivileged user made can lead to the files of root. It harms only a process with more power than
  that user has.
* A path can change before the next look. So the walk opens each name (O_PATH, never through a link), and then reads
  the owner of the opened object.

What follows from them:
* One rule (`redirector`) decides: each user who can redirect the path is root, the container's root, or the agent's
  own user. So the path leads only to objects that this user could have used anyway.
* The walk itself opens nothing but O_PATH handles, so it may be done with root's power, to find out who owns the
  endpoint. What an agent uses comes from a second walk, which it makes as the user that it has become.

Rejected:
* openat2(2) with RESOLVE_IN_ROOT alone, as before. It stays in the container, but does not report the owners of links,
  and it fails (EAGAIN) at ".." when anything on the machine is renamed meanwhile.
* RESOLVE_NO_SYMLINKS. It refuses /var/run, which is a link of root's nearly everywhere.
* Refusing each step from a user's directory to one of root's (systemd's CHASE_SAFE). It refuses absolute links, which
  programs make for their own files ("/home/app/current"); here only the end of the path has to be the user's own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

from nsbridge.agents.identity import filesystems

_MAX_LINKS = 40  # as the kernel follows at most, path_resolution(7)
_MAX_NAMES = 1024  # looked up in one walk; a container could make more of them by links within links


def shown(path: bytes) -> str:
    """Return a path for people; bytes that are no UTF-8 become escapes (the log escapes control characters)."""
    return path.decode("utf-8", "backslashreplace")


class Step(NamedTuple):
    """A directory in which a name was looked up, or a link that was followed."""

    path: bytes
    uid: int


class WalkEnd:
    """The end of a walk. It holds O_PATH descriptors: close it, or use it as a context manager."""

    def __init__(self, root: int) -> None:
        self.directory = os.open(".", os.O_PATH | os.O_DIRECTORY, dir_fd=root)  # holds the last name that was looked up
        self.name = b"."  # in `directory`
        self.fd = -1  # the object at the end, which may be a link; -1 if the walk ended before
        self.error: OSError | None = None  # why it ended before
        self.is_parent_there = True  # nothing but the last name is missing
        self.steps: list[Step] = []

    @property
    def status(self) -> os.stat_result | None:
        """Return the status of the object at the end of the path; None if the walk ended before."""
        return os.fstat(self.fd) if self.fd >= 0 else None

    @property
    def is_missing(self) -> bool:
        """True if the last name is not there, and all before it is."""
        return self.error is not None and self.error.errno == errno.ENOENT and self.is_parent_there

    @property
    def is_refused(self) -> bool:
        """True if the user may not search a directory on the way."""
        return self.error is not None and self.error.errno == errno.EACCES

    def end(self, error: OSError) -> None:
        """Note why the walk ended before the end of the path."""
        self.error = error
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close its descriptors."""
        for fd in {self.directory, self.fd} - {-1}:
            os.close(fd)
        self.directory = self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_about: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def walk(root: int, path: bytes, *, follow_last: bool = False) -> WalkEnd:
    """Follow `path` from the directory `root` (a descriptor, for this path the root) as far as it leads.

    A link at the end is followed only if `follow_last`. Errors of a name (ENOENT, EACCES, ENOTDIR, ELOOP) are in
    `Place.error`; raises OSError for want of descriptors.
    """
    place = WalkEnd(root)
    try:
        _Walker(root, place, follow_last=follow_last).go(path)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            place.close()
            raise
        place.end(error)
    except BaseException:
        place.close()
        raise
    return place


def redirector(steps: Iterable[Step], trusted: frozenset[int]) -> Step | None:
    """Return the first step of an untrusted user, None if there is none. This is the rule at the top of this file."""
    return next((step for step in steps if step.uid not in trusted), None)


def redirects(step: Step, path: bytes) -> str:
    """Return the sentence for an operator about the step that `redirector` found on the way to `path`."""
    where, end = (text.decode("utf-8", "backslashreplace") for text in (step.path, path))
    return (
        f"{where} belongs to uid {step.uid}, who could make {end} lead anywhere: chown it to root or to the owner of "
        f"{end}, or set user on the agent to uid {step.uid}"
    )


class _Walker:
    """The state of one walk."""

    def __init__(self, root: int, place: WalkEnd, *, follow_last: bool) -> None:
        self._root = root
        self._place = place
        self._follow_last = follow_last
        self._names: deque[bytes] = deque()
        self._where: list[bytes] = []  # names that led to `place.directory`
        self._links = 0

    def go(self, path: bytes) -> None:
        self._names.extend(_names(path))
        self._place.fd = os.dup(self._place.directory)
        for _ in range(_MAX_NAMES):
            if not self._names:
                return
            self._look_up(self._names.popleft())
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _look_up(self, name: bytes) -> None:
        place = self._place
        self._enter()
        place.name = name
        place.is_parent_there = not self._names
        here = os.fstat(place.directory)
        place.steps.append(Step(b"/" + b"/".join(self._where), here.st_uid))
        if name == b".." and os.path.samestat(here, os.fstat(self._root)):
            name = b"."  # the kernel does so only at the root of the process
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
        place.fd = fd  # closed by `end` if the file system does not answer
        about = os.fstat(fd)
        if stat.S_ISLNK(about.st_mode) and (self._names or self._follow_last):
            place.fd = -1
            try:
                self._follow(fd, name, about.st_uid)
            finally:
                os.close(fd)
            return
        if name == b"..":
            del self._where[-1:]
        elif name != b".":
            self._where.append(name)

    def _enter(self) -> None:
        """Continue in the object that was found, which must be a directory."""
        place = self._place
        if not stat.S_ISDIR(os.fstat(place.fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.close(place.directory)
        place.directory, place.fd = place.fd, -1

    def _follow(self, link: int, name: bytes, uid: int) -> None:
        place = self._place
        place.steps.append(Step(b"/" + b"/".join([*self._where, name]), uid))
        self._links += 1
        if self._links > _MAX_LINKS or filesystems.pseudo(link):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(b"", dir_fd=link)
        if target.startswith(b"/"):
            os.close(place.directory)
            place.directory = os.open(".", os.O_PATH | os.O_DIRECTORY, dir_fd=self._root)
            self._where.clear()
        place.name = b"."
        place.fd = os.dup(place.directory)
        self._names.extendleft(reversed(_names(target)))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]
