"""Decide which user an agent becomes in its container. Pure but for `IdMap.of_process` and `UserRecord`.

Facts:
* The container chooses the owner of everything in it: by chown, and by mounting something of the host over it.
* An agent is outside the container's user namespace. With a user id that the container does not map, it has rights
  that no process of the container has. As the host's root it may write to files of /proc/sys without any capability.
* Images are often unpacked as root, and their entrypoint gives the volume to the program's user after the start.

The rules, in this order (each is a branch of `decide`):
1. `user` in the configuration decides.
2. Otherwise it is the owner of the endpoint: of the existing directory, file or queue.
3. If the owner has changed, the new one must have less power: root may give the endpoint to an unprivileged
   user (the entrypoint above). A change between unprivileged users needs `user = "owner"`. A change to root is never
   followed: only the operator may configure that.
4. If there is no endpoint yet, it is the former user, else the owner of the directory that the endpoint will be in.
   A directory of root that all users may write to (/tmp) is no evidence: there it is the user of the container's init.
5. The user must be mapped in the container's user namespace. If there is one, it is never the host's root.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nsbridge.agents.confinement.entry import Gone, RefusedForGood
from nsbridge.config import trusted
from nsbridge.config.descriptors import closing

ROOT = 0
_NS_GET_USERNS = 0xB701
_UNMAPPED = 4294967295  # -1 as the kernel writes it: not mapped in the reader's own user namespace
_RECORD_LIMIT = 1 << 16  # bytes: two paths of 4,095, each of whose characters JSON may write as six


class Ids(NamedTuple):
    """A user and a group, as ids of the host's (this process's) user namespace."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class IdMap:
    """The ids that a container's user namespace maps. `uids` and `gids` are None (all) if it has no such namespace."""

    uids: tuple[range, ...] | None = None
    gids: tuple[range, ...] | None = None
    root: int = ROOT  # the user who is 0 inside
    above: int = ROOT  # the uid shown for files of users outside this process's own user namespace

    @classmethod
    def of_container(cls, pid: int, ns_path: str = "") -> IdMap:
        """Read the map of a container's init; user_namespaces(7). Raises Gone.

        Without a process (pid 0) it is the host's. For the namespace file `ns_path` it is that of the owning user
        namespace. If that is not this process's own, its map is unknown, and no user is mapped.
        """
        above = ROOT if trusted.is_real_root() else trusted.overflow_uid()
        try:
            if not pid:
                is_own = not ns_path or _owner_of_namespace(ns_path) == _own_user_namespace()
                return cls(above=above) if is_own else cls((), (), _UNMAPPED, above)
            if os.stat(f"/proc/{pid}/ns/user").st_ino == _own_user_namespace():  # noqa: PTH116  (a magic link)
                return cls(above=above)
            uids = parse_map(Path(f"/proc/{pid}/uid_map").read_bytes())
            gids = parse_map(Path(f"/proc/{pid}/gid_map").read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            raise Gone(f"{ns_path or f'process {pid}'} is not there any more") from None
        root = next((outside.start for inside, outside in uids if inside == ROOT), _UNMAPPED)
        return cls(tuple(outside for _, outside in uids), tuple(outside for _, outside in gids), root, above)

    @property
    def trusted(self) -> frozenset[int]:
        """Return the users besides its own that may redirect an agent's path: root, and the container's root."""
        return frozenset((ROOT, self.root, self.above))

    def maps(self, who: Ids) -> bool:
        """True if `who` is a user of the container: never the host's root where the container has its own users."""
        if self.uids is None or self.gids is None:
            return True
        return who.uid != ROOT and any(who.uid in ids for ids in self.uids) and any(who.gid in ids for ids in self.gids)

    def is_root(self, uid: int) -> bool:
        """True for the host's root and the container's."""
        return uid in (ROOT, self.root)

    def __str__(self) -> str:
        return ", ".join(f"{ids.start}-{ids.stop - 1}" for ids in self.uids or ()) or "none"


def parse_map(text: bytes) -> list[tuple[int, range]]:
    """Return (first id inside, ids outside) of each line of a uid_map or gid_map. Raises ValueError."""
    lines = [tuple(map(int, line.split())) for line in text.split(b"\n") if line]
    return [(inside, range(outside, outside + count)) for inside, outside, count in lines if outside != _UNMAPPED]


def _owner_of_namespace(path: str) -> int:
    """Return the inode number of the user namespace that owns the namespace file. NS_GET_USERNS of ioctl_ns(2)."""
    with (
        closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as space,
        closing(fcntl.ioctl(space, _NS_GET_USERNS)) as owner,
    ):
        return os.fstat(owner).st_ino


def _own_user_namespace() -> int:
    return os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116  (a magic link, not a path)


@dataclass(frozen=True, slots=True)
class UserEvidence:
    """The evidence for the user that an agent should become."""

    where: str  # the endpoint, for people
    owner: Ids | None  # of the endpoint, None if it is not there
    maker: Ids  # who should own it if it does not exist yet
    configured: Ids | None = None  # `user` of the configuration
    follows_owner: bool = False  # user = "owner"
    remembered: Ids | None = None  # the agent's user before, on this route


def decide(evidence: UserEvidence, ids: IdMap) -> Ids:
    """Return the agent's user, by the rules at the top. Raises Refused; Gone if a later try may succeed."""
    configured, owner = evidence.configured, evidence.owner
    if configured is not None:
        if not ids.maps(configured):
            raise RefusedForGood(
                f'user = "{configured}" is no user of the container, which maps uids {ids}: set one of these'
            )
        return configured
    if owner is None:
        who = evidence.remembered or evidence.maker
    elif not ids.maps(owner):
        raise Gone(
            f"{evidence.where} belongs to {owner}, who is no user of the container (it maps uids {ids}): "
            f"chown it to a user of the container, or set user on the agent"
        )
    else:
        _check_change(evidence, owner, ids)
        return owner
    if not ids.maps(who):
        raise Gone(
            f"{evidence.where} is not there, and would be made as {who}, who is no user of the container (it maps uids "
            f"{ids}): make it in the container, or set user on the agent"
        )
    return who


def _check_change(evidence: UserEvidence, owner: Ids, ids: IdMap) -> None:
    before = evidence.remembered
    if before is None or before.uid == owner.uid:
        return
    loses_power = ids.is_root(before.uid) and not ids.is_root(owner.uid)
    is_followed = evidence.follows_owner and not ids.is_root(owner.uid)
    if not loses_power and not is_followed:
        follow = "" if ids.is_root(owner.uid) else ', or user = "owner" to follow each change of the owner'
        raise RefusedForGood(
            f'the owner of {evidence.where} has changed from {before} to {owner}: set user = "{owner}" on the agent if '
            f"that is right{follow}"
        )


class UserRecord:
    """Remembers an agent's user in an open file of the state directory. The agent closes it before it drops its power.

    `key` names the container and endpoint; a record of another one is ignored. `instance` names one life of the
    container's namespace; the list of files that are mounts is valid only for that one.
    """

    def __init__(self, fd: int, key: list[str], instance: list[int]) -> None:
        self._fd = fd
        self._key = key
        self._instance = instance
        self.inode = instance[1]  # of the namespace
        self.who: Ids | None = None
        self.mounts: frozenset[bytes] | None = None  # names of files that are mounts; None: not known yet
        try:
            self._read()
        except (ValueError, KeyError, TypeError):
            pass  # empty or damaged: as if there was no record

    def keep(self, who: Ids, mounts: frozenset[bytes]) -> None:
        """Write the record, in one write. Raises OSError."""
        names = sorted(map(os.fsdecode, mounts))
        record = {"key": self._key, "who": who, "instance": self._instance, "mounts": names}
        line = json.dumps(record).encode() + b"\n"  # the rest of an older, longer record is not read
        if not os.pread(self._fd, _RECORD_LIMIT, 0).startswith(line):
            os.pwrite(self._fd, line, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _read(self) -> None:
        record = json.loads(os.pread(self._fd, _RECORD_LIMIT, 0).partition(b"\n")[0])
        if record["key"] != self._key:
            return
        who = Ids(*map(int, record["who"]))
        if record["instance"] == self._instance:
            self.mounts = frozenset(map(os.fsencode, record["mounts"]))
        self.who = who
