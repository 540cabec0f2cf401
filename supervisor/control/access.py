"""Rights of the callers of the control socket, and how they become the mode and group of the socket's file.

Some facts about who calls, and what they mean here:
* SO_PEERCRED (unix(7)) and SO_PEERGROUPS (Linux 4.13) are what the caller was when it connected; the kernel noted it,
  so neither a later exec nor a reused pid changes it. /proc/PID/status would be asked too late.
* SO_PEERCRED has the one effective gid only; a person's other groups are in SO_PEERGROUPS.
* Python's getsockopt takes 1024 bytes at most, so a caller in more than 256 supplementary groups is judged by the
  effective gid alone: that refuses, it never lets in.
* Connecting needs write permission on the socket's file, which has one group. `read_group` gets it by an ACL; the
  file's mode still bounds it, because an ACL's mask *is* the group bits of the mode.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from nsbridge.config.errors import ConfigError
from nsbridge.config.schema import ControlConfig

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_LONGEST_OPTION = 1024  # bytes, what Python's getsockopt takes
_UCRED = struct.Struct("iII")  # pid, uid, gid: unix(7)
_GID = struct.Struct("I")

_ACL = "system.posix_acl_access"  # linux/posix_acl_xattr.h: u32 version, then (u16 tag, u16 permissions, u32 id)
_ACL_VERSION = struct.pack("<I", 2)
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _GROUP, _MASK, _OTHER, _NO_ID = 0x01, 0x04, 0x08, 0x10, 0x20, 0xFFFFFFFF
_READ_WRITE = 6


class Right(IntEnum):
    """Rights of a caller; each includes those before it."""

    NOTHING = 0
    LOOK = 1
    CONTROL = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """Process at the other end of a connection."""

    uid: int
    right: Right


@dataclass(frozen=True, slots=True)
class Access:
    """The groups of daemon.control as ids; None: that group does not exist on this host, and need not."""

    group: int | None
    read_group: int | None

    @classmethod
    def of(cls, config: ControlConfig) -> Access:
        """Look the groups up; ConfigError for each that does not exist, but for the defaults on a minimal system."""
        problems: list[str] = []
        access = cls(
            _gid("daemon.control.group", config.group, "root", problems),
            _gid("daemon.control.read_group", config.read_group, "adm", problems),
        )
        if problems:
            raise ConfigError(problems)
        return access

    def caller(self, connection: socket.socket) -> Caller:
        """Return the process that has connected. OSError if the kernel does not know it."""
        _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        groups = {gid, *_supplementary_groups(connection)}
        if uid in (0, os.geteuid()) or self.group in groups:
            return Caller(uid, Right.CONTROL)
        return Caller(uid, Right.LOOK if self.read_group in groups else Right.NOTHING)

    def put_on(self, path: str, mode: int, notice: Callable[[str], None]) -> None:
        """Give the socket at `path` its owner, group, mode (permission bits) and the ACL that lets read_group connect.

        `path` must be in a directory that only root can change: it is followed by name.
        """
        os.chown(path, -1, os.getegid() if self.group is None else self.group, follow_symlinks=False)
        os.chmod(path, mode)  # noqa: PTH101  (bytes of a path, not a Path, all through)
        if self.read_group in (None, self.group) or mode & 0o006 == _READ_WRITE:
            return
        try:
            os.setxattr(path, _ACL, _acl(mode, self.read_group))
        except OSError as error:
            notice(
                f"{path}: members of daemon.control.read_group cannot connect: its file system takes no ACL "
                f"({error.strerror}); set daemon.control.mode to 0666 to let them (callers are checked in any case)"
            )


def _gid(key: str, name: str, default: str, problems: list[str]) -> int | None:
    if name.isdecimal() and int(name) < _NO_ID:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name != default:
            problems.append(f"{key}: this host has no group {name!r}; make it (groupadd {name}) or name another")
        return None


def _supplementary_groups(connection: socket.socket) -> list[int]:
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LONGEST_OPTION)
    except OSError as error:
        if error.errno in (errno.ERANGE, errno.ENOPROTOOPT, errno.ENODATA):  # too many; old kernel; none noted
            return []
        raise
    return [gid for (gid,) in _GID.iter_unpack(groups)]


def _acl(mode: int, read_group: int | None) -> bytes:
    entries = (
        (_USER_OBJ, mode >> 6 & 7, _NO_ID),
        (_GROUP_OBJ, mode >> 3 & 7, _NO_ID),
        (_GROUP, _READ_WRITE, read_group),
        (_MASK, mode >> 3 & 7, _NO_ID),
        (_OTHER, mode & 7, _NO_ID),
    )
    return _ACL_VERSION + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)
