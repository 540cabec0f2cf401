"""Examines an agent's container before the agent is confined: which user it becomes, and where its files are.

The order matters. `look` runs with root's power and opens only O_PATH handles. `reach` walks the same paths again as
the user that the agent has become, and the agent uses only files that this walk opened (walk.py, identity.py).
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from nsbridge.agents import linux
from nsbridge.agents.confinement.entry import Assignment, Gone
from nsbridge.agents.identity import identity
from nsbridge.agents.identity.identity import IdMap, Ids, UserEvidence, UserRecord
from nsbridge.agents.identity.walk import Step, WalkEnd, redirector, redirects, shown, walk
from nsbridge.agents.places import ENDS
from nsbridge.config.descriptors import closing
from nsbridge.config.schema import AgentConfig

_WRITABLE_BY_ALL = 0o002


def memory(assignment: Assignment, fd: int) -> UserRecord:
    """Return the record of the agent's user in the open file. Call it before the join. Raises Gone."""
    agent = assignment.agent
    key = [str(agent.container), agent.endpoint.name, repr(agent.endpoint.out), repr(agent.endpoint.in_)]
    pid = assignment.container_pid
    namespace = assignment.ns_path or f"/proc/{pid or 'self'}/ns/{agent.namespace}"
    try:
        instance = [pid, os.stat(namespace).st_ino]  # noqa: PTH116  (a magic link, not a path)
    except OSError as error:
        raise Gone(f"{namespace}: {os.strerror(error.errno or 0)}") from None
    return UserRecord(fd, key, instance)


class Surroundings(ABC):
    """Common base of all endpoint kinds; see entry.EntrySteps."""

    def __init__(self, assignment: Assignment, ids: IdMap, memory: UserRecord) -> None:
        self.uid = -1  # of the agent, once `look` has decided
        self.trusted: frozenset[int] = frozenset()  # users who may redirect a path
        self.mounts: frozenset[bytes] = frozenset()  # names of the endpoint's files that are mounts of their own
        self._assignment = assignment
        self._agent = assignment.agent
        self._init = Ids(*assignment.init_user)
        self._ids = ids
        self._memory = memory

    def confirm(self, inode: int) -> None:
        """See entry.EntrySteps.

        A program of no power may go into a user namespace of its own, and with it into a mount namespace in which it
        has mounted what it likes. Such a step cannot be taken back: if init is still in its old user namespace when the
        file of the other one is open, it was there before.
        """
        pid, ns_path = self._assignment.container_pid, self._assignment.ns_path
        if inode != self._memory.inode or IdMap.of_container(pid, ns_path) != self._ids:
            raise Gone("init went into other namespaces while the agent entered; entering anew")

    @abstractmethod
    def look(self) -> tuple[int, int]:
        """Return the agent's future uid and gid. Raises Refused, Gone."""

    def reach(self) -> Sequence[int]:
        """Open the directories beneath which the agent needs files: none."""
        return ()

    @abstractmethod
    def recheck(self) -> None:
        """Raise Gone if the endpoint belongs to another user now; then the agent enters again."""

    def check_directory(self, path: bytes, uid: int) -> None:
        """See entry.EntrySteps. Where `user` is configured, the operator has decided.

        A user's agent may deliver into another user's directory, who lets it; root's may not.
        """
        if self._agent.user is not None or uid in self.trusted:
            return
        if self._ids.is_root(self.uid) or path in _paths(self._agent)[:1]:
            raise Gone(
                f"{shown(path)} belongs to uid {uid}, who could move files of others into it, and the agent is uid "
                f"{self.uid}: chown it to that uid or to root, or set user on the agent"
            )

    def _decide(self, where: str, owner: Ids | None, maker: Ids) -> Ids:
        user = self._agent.user
        evidence = UserEvidence(
            where=where,
            owner=owner,
            maker=maker,
            configured=None if user is None else Ids(user.uid, user.gid),
            follows_owner=self._agent.follows_owner,
            remembered=self._memory.who,
        )
        return identity.decide(evidence, self._ids)

    def _remember(self, who: Ids, *, is_certain: bool) -> None:
        """Record the user if an owner or the configuration decided it; never record a guess."""
        if is_certain:
            self._memory.keep(who, self.mounts)
        self._memory.close()


class _Found(NamedTuple):
    """The result of one walk along one path."""

    path: bytes
    steps: Sequence[Step]
    status: os.stat_result | None  # of the object at the end, if it is there
    parent: os.stat_result | None  # of the directory in which only the last name is missing
    is_refused: bool  # the user may not search a directory on the way

    @classmethod
    def at(cls, path: bytes, place: WalkEnd) -> _Found:
        """Return what the walk along `path` found."""
        parent = os.fstat(place.directory) if place.is_missing else None
        return cls(path, place.steps, place.status, parent, place.is_refused)


class FileSurroundings(Surroundings):
    """For endpoints whose places are paths."""

    def __init__(self, assignment: Assignment, ids: IdMap, memory: UserRecord) -> None:
        super().__init__(assignment, ids, memory)
        self._unreachable: set[bytes] = set()  # paths that the agent's user may not follow to their end

    def look(self) -> tuple[int, int]:
        """Return the owner of the endpoint, or its future owner."""
        found = self._survey()
        where, owner, maker = self._owner(found)
        who = self._decide(where, owner, maker)
        self.uid, self.trusted = who.uid, self._ids.trusted | {who.uid}
        self._check(found)  # the agent may follow the path to the owner
        self.mounts = self._mounts() if self._memory.mounts is None else self._memory.mounts
        self._remember(who, is_certain=owner is not None or self._agent.user is not None)
        return who

    def reach(self) -> Sequence[int]:
        """Open the directory that holds each path; if it is missing, the nearest one above it.

        A directory that is missing is made in its parent, and may be removed and made again there. The agent has its
        user's group too, with which that user may not be able to search a path: so the owner is compared once more.
        """
        directories: list[int] = []
        found = self._survey(directories)
        self._check(found)
        self._unreachable = {each.path for each in found if each.is_refused}
        if self._agent.user is None:
            self._check_owner(found)
        return directories

    def recheck(self) -> None:
        """See Surroundings. Where `user` is configured, another owner changes nothing.

        If the agent could reach a path when it entered, and cannot now, the path may belong to another user. Only
        `look`, with root's power, can check that. Nothing is decided while no descriptor is left to look with.
        """
        if self._agent.user is not None:
            return
        with suppress(OSError):
            self._recheck()

    def _recheck(self) -> None:
        found = self._survey()
        self._check_owner(found)
        self._check(found)
        for each in found:
            if each.is_refused and each.path not in self._unreachable:
                raise Gone(f"{shown(each.path)} cannot be reached by uid {os.getuid()} any more; entering anew")

    def _survey(self, directories: list[int] | None = None) -> list[_Found]:
        """Walk each path once, as the agent's present user. `directories` gets the open directory at each end."""
        found = []
        for path in (*_paths(self._agent), *_other_paths(self._agent)):
            with walk_from_root(path) as place:
                found.append(_Found.at(path, place))
                if directories is not None:
                    directories.append(os.dup(place.directory))
        return found

    def _owner(self, found: Sequence[_Found]) -> tuple[str, Ids | None, Ids]:
        """Return the endpoint's path, its owner, and the owner that it should get if it is missing."""
        maker: Ids | None = None
        ends = found[: len(_paths(self._agent))]
        for path, _, status, parent, _ in ends:
            if status:
                return shown(path), Ids(status.st_uid, status.st_gid), self._init
            if parent:
                says_nothing = self._ids.is_root(parent.st_uid) and parent.st_mode & _WRITABLE_BY_ALL
                maker = maker or (self._init if says_nothing else Ids(parent.st_uid, parent.st_gid))
        return shown(ends[0].path), None, maker or self._init

    def _check_owner(self, found: Sequence[_Found]) -> None:
        where, owner, _ = self._owner(found)
        if owner is not None and owner.uid != os.getuid():
            raise Gone(f"{where} belongs to {owner} now, and the agent is {os.getuid()}:{os.getgid()}; entering anew")

    def _check(self, found: Iterable[_Found]) -> None:
        """Raise Gone if another user could redirect a path, or if the agent must not use the directory at its end."""
        for path, steps, status, _, _ in found:
            if step := redirector(steps, self.trusted):
                raise Gone(redirects(step, path))
            if self._agent.endpoint.serves_directories and status:
                self.check_directory(path, status.st_uid)

    def _mounts(self) -> frozenset[bytes]:
        """Return the names of those of the endpoint's files (not directories) that are mounts of their own."""
        if self._agent.endpoint.serves_directories:
            return frozenset()
        return frozenset(os.path.split(path)[1] for path in _paths(self._agent) if _is_mount(path))


def walk_from_root(path: bytes) -> WalkEnd:
    """Walk from the root directory of this process. Raises OSError for want of descriptors."""
    with closing(os.open("/", os.O_PATH | os.O_DIRECTORY)) as root:
        return walk(root, path)


def _is_mount(path: bytes) -> bool:
    with walk_from_root(path) as place:
        if place.fd < 0:
            return False
        try:
            os.close(linux.openat2(place.directory, place.name, os.O_PATH | os.O_NOFOLLOW, 0, linux.RESOLVE_NO_XDEV))
        except OSError as error:
            return error.errno == errno.EXDEV
        return False


def _paths(agent: AgentConfig) -> list[bytes]:
    """Return the paths of the endpoint's ends."""
    found = agent.endpoint.places().items()
    return [os.fsencode(place.path) for end, place in found if end in ENDS and place.path]


def _other_paths(agent: AgentConfig) -> list[bytes]:
    """Return the endpoint's paths that are no ends."""
    found = agent.endpoint.places().items()
    return [os.fsencode(place.path) for end, place in found if end not in ENDS and place.path]
