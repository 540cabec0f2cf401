"""Landlock rules of an agent, by the version of this kernel's Landlock: no I/O.

Everything that is handled and not granted is refused. An agent is granted, beneath a few directories, what a message in
a file needs. It may not execute, nor make a device, socket, FIFO or link, nor act on a device, nor touch any other file
of the container, or of the host if some descriptor led there. It may not listen over TCP, nor connect to
another port than those of its NATS servers, nor reach an abstract socket, nor signal a process that is not its own
child; the seccomp filter forbids most of that, too.

Some facts about Landlock, and what they mean here:
* A rule belongs to an inode, not to a path: what takes a directory's place later has no rule. So a directory is granted
  by its parent, and an agent whose parent directory was replaced enters anew (endpoints/files.py).
* Descriptors that are open are not affected: journals, sockets. Nor are stat, chdir, chmod, inotify.
* The first version cannot grant that a file is moved to another directory (a spool's `done` or `error`); it is not
  used there. To move a socket, FIFO or link to another directory needs the right to make one there (SPECIAL_FILES).

Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

MOVES_FROM = 2  # the first ABI under which a file can be moved from one directory to another

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, MAKE_SOCK, MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SPECIAL_FILES = MAKE_SOCK | MAKE_FIFO | _MAKE_SYM  # to move these; no system call that makes one is allowed
_FIRST = (1 << 13) - 1  # all of the first ABI
_BIND_TCP, _CONNECT_TCP = 1, 2
_PATH_BENEATH, _NET_PORT = 1, 2  # types of rules
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_NEEDED = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE


def handled(abi: int) -> int:
    """Return the rights on files that are refused unless they are granted."""
    later = {2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
    return _FIRST | sum(right for since, right in later.items() if abi >= since)


def granted(abi: int, more: int = 0) -> int:
    """Return the rights that an agent has beneath its directories, with `more` that its endpoint needs."""
    return (_NEEDED | more) & handled(abi)


def ruleset(abi: int) -> bytes:
    """Return a struct landlock_ruleset_attr, of the length that this ABI has."""
    fields = [handled(abi)]
    if abi >= 4:  # noqa: PLR2004  (the ABI that brought it)
        fields.append(_BIND_TCP | _CONNECT_TCP)
    if abi >= 6:  # noqa: PLR2004
        fields.append(_ABSTRACT_SOCKETS | _SIGNALS)
    return struct.pack(f"<{len(fields)}Q", *fields)


def rule(abi: int, directory: int, more: int = 0) -> tuple[int, bytes]:
    """Return the rule that grants them beneath the open directory: type and struct landlock_path_beneath_attr."""
    return _PATH_BENEATH, struct.pack("<Qi", granted(abi, more), directory)


def port_rules(abi: int, ports: Iterable[int]) -> list[tuple[int, bytes]]:
    """Return the rules that let an agent connect to these TCP ports, each with a struct landlock_net_port_attr."""
    if abi < 4:  # noqa: PLR2004  (this kernel does not restrict TCP)
        return []
    return [(_NET_PORT, struct.pack("<QQ", _CONNECT_TCP, port)) for port in sorted(set(ports))]
