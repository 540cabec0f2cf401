"""The right of a caller, from what the kernel reports of it, and the ACL. Real users: test_control_access.py."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
import struct
from pathlib import Path
from typing import cast

import pytest

from nsbridge.config.errors import ConfigError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control import access
from nsbridge.supervisor.control.access import Access, Caller, Right

GROUP, READ_GROUP, OTHER, STRANGER = 51001, 51002, 51003, 51000
ACCESS = Access(GROUP, READ_GROUP)


class Peer:
    """A connection whose other end has these ids; `groups` may be the error of SO_PEERGROUPS."""

    def __init__(self, uid: int, gid: int, groups: list[int] | int) -> None:
        self.uid, self.gid, self.groups = uid, gid, groups

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == socket.SOL_SOCKET
        if option == socket.SO_PEERCRED:
            return struct.pack("iII", 4711, self.uid, self.gid)
        assert option == access._SO_PEERGROUPS
        if isinstance(self.groups, int):
            raise OSError(self.groups, os.strerror(self.groups))
        packed = struct.pack(f"{len(self.groups)}I", *self.groups)
        if len(packed) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return packed


def right_of(uid: int, gid: int, groups: list[int] | int, rules: Access = ACCESS) -> Right:
    caller = rules.caller(cast(socket.socket, Peer(uid, gid, groups)))
    assert caller == Caller(uid, caller.right)
    return caller.right


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "right"),
    [
        pytest.param(0, OTHER, [], Right.CONTROL, id="root"),
        pytest.param(os.geteuid(), OTHER, [], Right.CONTROL, id="the daemon's own user"),
        pytest.param(STRANGER, GROUP, [], Right.CONTROL, id="group"),
        pytest.param(STRANGER, OTHER, [1, GROUP], Right.CONTROL, id="supplementary group"),
        pytest.param(STRANGER, READ_GROUP, [GROUP], Right.CONTROL, id="both: the greater right"),
        pytest.param(STRANGER, READ_GROUP, [], Right.LOOK, id="read group"),
        pytest.param(STRANGER, OTHER, [READ_GROUP], Right.LOOK, id="supplementary read group"),
        pytest.param(STRANGER, OTHER, [1, 2], Right.NOTHING, id="stranger"),
    ],
)
def test_ids_decide_the_right(uid: int, gid: int, groups: list[int], right: Right) -> None:
    assert right_of(uid, gid, groups) is right


@pytest.mark.parametrize("error", [errno.ERANGE, errno.ENOPROTOOPT, errno.ENODATA])
def test_unknown_groups_leave_the_effective_gid(error: int) -> None:
    """Unknown groups grant nothing: a caller that is in the group by a supplementary group alone is then a stranger."""
    assert right_of(STRANGER, GROUP, error) is Right.CONTROL
    assert right_of(STRANGER, READ_GROUP, error) is Right.LOOK
    assert right_of(STRANGER, OTHER, error) is Right.NOTHING


def test_257_groups_are_too_many_and_256_are_not() -> None:
    assert right_of(STRANGER, OTHER, [*range(60000, 60255), GROUP]) is Right.CONTROL
    assert right_of(STRANGER, OTHER, [*range(60000, 60256), GROUP]) is Right.NOTHING


def test_kernel_that_does_not_say_who_calls_is_an_error() -> None:
    with pytest.raises(OSError, match="Input/output"):
        right_of(STRANGER, GROUP, errno.EIO)


def test_group_that_does_not_exist_lets_nobody_in() -> None:
    """No group id equals None."""
    assert right_of(STRANGER, OTHER, [GROUP, READ_GROUP], Access(None, None)) is Right.NOTHING
    assert right_of(0, OTHER, [], Access(None, None)) is Right.CONTROL


def test_rights_include_those_before_them() -> None:
    assert Right.NOTHING < Right.LOOK < Right.CONTROL


# -- the groups of the configuration


def test_group_is_found_by_name_or_number() -> None:
    group = grp.getgrall()[0]
    assert Access.of(ControlConfig(group=group.gr_name, read_group="51002")) == Access(group.gr_gid, 51002)


def test_every_unknown_group_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        Access.of(ControlConfig(group="no-such-a", read_group="4294967295"))
    assert error.value.problems == (
        "daemon.control.group: this host has no group 'no-such-a'; make it (groupadd no-such-a) or name another",
        "daemon.control.read_group: this host has no group '4294967295'; make it (groupadd 4294967295) or name another",
    )


# -- the socket's file


def put_on(path: Path, rules: Access, mode: int) -> list[str]:
    path.touch()
    notices: list[str] = []
    rules.put_on(str(path), mode, notices.append)
    return notices


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o640])
def test_acl_lets_the_read_group_connect_within_the_mode(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "socket"
    assert put_on(file, ACCESS, mode) == []
    assert (file.stat().st_gid, stat.S_IMODE(file.stat().st_mode)) == (GROUP, mode)
    version, *fields = struct.unpack("<I" + "HHI" * 5, os.getxattr(file, "system.posix_acl_access"))
    entries = [tuple(fields[start : start + 3]) for start in range(0, 15, 3)]
    no_id, group = 0xFFFFFFFF, mode >> 3 & 7
    assert version == 2
    assert entries == [(1, 6, no_id), (4, group, no_id), (8, 6, READ_GROUP), (16, group, no_id), (32, 0, no_id)]


@pytest.mark.parametrize(
    ("rules", "mode"),
    [
        pytest.param(Access(GROUP, None), 0o660, id="no read group"),
        pytest.param(Access(GROUP, GROUP), 0o660, id="the same group"),
        pytest.param(ACCESS, 0o666, id="all may connect"),
    ],
)
def test_no_acl_where_none_is_needed(tmp_path: Path, rules: Access, mode: int) -> None:
    file = tmp_path / "socket"
    assert put_on(file, rules, mode) == []
    assert os.listxattr(file) == []


def test_without_a_group_the_file_is_the_daemons_own(tmp_path: Path) -> None:
    file = tmp_path / "socket"
    put_on(file, Access(None, None), 0o660)
    assert file.stat().st_gid == os.getegid()
