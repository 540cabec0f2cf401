"""Status of a SysV queue and limits of its namespace, as msgctl(2) reports them."""

from __future__ import annotations

import os
import struct
import sys
from typing import NamedTuple

from nsbridge.agents import linux

_IPC_STAT, _IPC_INFO, _MSG_STAT_ANY = 2, 3, 13
_OWNER_AT = 4  # in struct msqid_ds: uid and gid of msg_perm, behind its key
_MSGMAX_AT = 8  # the third int of struct msginfo
# msg_cbytes, msg_qnum, msg_qbytes, msg_lspid on every 64-bit architecture (asm-generic/msgbuf.h, ipcbuf.h)
_CBYTES_AT = 72


class QueueStatus(NamedTuple):
    """Status of a SysV queue, from the kernel."""

    used: int  # bytes in it
    messages: int  # in it
    limit: int  # bytes that it takes

    def has_room(self, size: int) -> bool:
        """True if a message of `size` bytes fits in: a queue is full by bytes or by number. msgsnd(2)."""
        return self.used + size <= self.limit and self.messages < self.limit


def queue_status(queue: int) -> QueueStatus:
    """Ask with IPC_STAT. Raises OSError, as EACCES."""
    return QueueStatus(*struct.unpack_from("<3Q", _asked(queue, _IPC_STAT), _CBYTES_AT))


def queue_owner(queue: int) -> tuple[int, int] | None:
    """Return uid and gid of a SysV queue, which need not be readable; None if there is no such queue.

    MSG_STAT_ANY, Linux 4.17. The kernel takes the index out of the id and returns the id that it found.
    """
    found, status = linux.msgctl(queue, _MSG_STAT_ANY)
    if found != queue:
        return None
    uid, gid = struct.unpack_from("<2I", status, _OWNER_AT)
    return uid, gid


def longest_message() -> int:
    """Return kernel.msgmax of the ipc namespace: bytes of the longest message. IPC_INFO. Raises OSError."""
    return int.from_bytes(_asked(0, _IPC_INFO)[_MSGMAX_AT : _MSGMAX_AT + 4], sys.byteorder)


def _asked(queue: int, command: int) -> bytes:
    result, stored = linux.msgctl(queue, command)
    if result < 0:
        raise OSError(-result, f"msgctl: {os.strerror(-result)}")
    return stored
