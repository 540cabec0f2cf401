"""SysV message queues as the `queue` endpoint opens and sends into them; the only module that uses sysv_ipc.

Some facts about SysV queues, and what they mean here:
* A queue has no descriptor to poll. So a thread blocks in msgrcv for the source, and one in msgsnd for the sink while
  the queue is full. Both handle their results under the loop's lock, as a callback would.
* msgrcv of size 0 waits for a message and leaves it there (E2BIG), so a message is taken only under the lock, with the
  window open: an agent that was asked to stop takes none. An empty message is the exception: it lands in the journal.
* A queue that was removed answers EINVAL, EIDRM or ENOENT depending on the call; so does sysv_ipc, in its own classes.
  A message that is too long is EINVAL too. Only a removed queue is no longer there, which distinguishes the two.
* A message's type is a C long, but sysv_ipc takes a C int and raises OverflowError beyond it. A call by sysv_ipc takes
  1.2 us and one by ctypes 1.7, so sysv_ipc sends what it can and the kernel call sends the rest.
* sysv_ipc crashes after a send of anything but bytes: only bytes are ever passed.
* msgget with no flags needs no permission, so a queue that the agent may not use has an id all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import sysv_ipc

from nsbridge.agents import linux, queuestatus
from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.base import AgentApi, Blocked, Denied
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint
from nsbridge.agents.identity.walk import Step, walk
from nsbridge.agents.wire import MAX_MESSAGE, Run
from nsbridge.config.descriptors import closing

Queue = sysv_ipc.MessageQueue
Send = Callable[[bytes, bool, int], None]  # (message, wait?, type); raises one of SEND_ERRORS
SEND_ERRORS = (sysv_ipc.Error, OSError, ValueError, OverflowError, MemoryError)
_C_INT_MAX = (1 << 31) - 1


def shown(key: int) -> str:
    """Return a key for people, as ipcs shows it."""
    return f"queue 0x{key:x}"


def numeric_key(key: int | FtokKey, container_root: str) -> int:
    """Return the key itself, as `key_and_makers` finds it. Raises OSError."""
    return key_and_makers(key, container_root)[0]


def key_and_makers(key: int | FtokKey, container_root: str) -> tuple[int, tuple[Step, ...]]:
    """Return the key itself, and who could make it another one: the owners of the file and of all on the way to it.

    A path is found under `container_root`, as ftok(3) does it; so ask before the join. Raises OSError.
    """
    if isinstance(key, int):
        return key, ()
    path = os.fsencode(key.path)
    with (
        closing(os.open(container_root, os.O_PATH | os.O_DIRECTORY)) as root,
        walk(root, path, follow_last=True) as place,
    ):
        if place.error is not None:
            raise OSError(place.error.errno, os.strerror(place.error.errno or 0), path)
        about = os.fstat(place.fd)
        steps = (*place.steps, Step(path, about.st_uid))  # the file: in /tmp its owner may put another there
    return (key.proj & 0xFF) << 24 | (about.st_dev & 0xFF) << 16 | (about.st_ino & 0xFFFF), steps


def owner(key: int) -> tuple[int, int] | None:
    """Return uid and gid of the queue with this key; None if there is none. It need not be readable."""
    try:
        queue_id: int = sysv_ipc.MessageQueue(key, 0, 0).id
    except (sysv_ipc.Error, OSError):
        return None
    return queuestatus.queue_owner(queue_id)


def first_owner(keys: Sequence[int]) -> tuple[int, int] | None:
    """Return the owner of the first of these queues that exists. It is the agent's user if none is configured."""
    return next((found for key in keys if key and (found := owner(key))), None)


class QueueUse(NamedTuple):
    """The use of a queue, as the kernel keeps it."""

    id: int
    messages: int
    was_sent_to: bool
    was_read: bool


def use_of(key: int) -> QueueUse | None:
    """Return the use of the queue with this key; None if there is none, or the agent may not look at it."""
    try:
        queue = sysv_ipc.MessageQueue(key, 0, 0)
        return QueueUse(queue.id, queue.current_messages, bool(queue.last_send_time), bool(queue.last_receive_time))
    except (sysv_ipc.Error, OSError):
        return None


class QueueOwner:
    """Notices that the endpoint's queue belongs to another user than when the agent entered.

    Programs remove their queue and make it again, perhaps as another user and with mode 0600. The agent's user was
    decided when it entered, so it has to enter again. It does so only if the owner has changed since: otherwise it
    would be refused again.
    """

    def __init__(self, host: AgentApi, keys: Sequence[int], *, is_user_configured: bool) -> None:
        self._host = host
        self._keys = keys
        self._at_entry = None if is_user_configured else first_owner(keys)
        self._is_user_configured = is_user_configured
        self.made: dict[int, int] = {}  # by key, the ids of the queues that this agent has made (unused.py)

    def check_later(self) -> None:
        """Schedule a `check` in the loop, after the kernel refused; its Gone ends the agent."""
        if not self._is_user_configured:
            self._host.loop.call_later(0, self.check)

    def check(self) -> None:
        """Raise Gone if the agent would enter as another user now."""
        now = first_owner(self._keys)
        if now not in (None, self._at_entry, (os.getuid(), os.getgid())):
            queues = ", ".join(shown(key) for key in self._keys if key)
            raise Gone(
                f"{queues} now belongs to uid {now[0]} gid {now[1]}, and this agent is uid {os.getuid()} gid "
                f"{os.getgid()}: it enters anew"
            )


def open_queue(key: int, config: QueueEndpoint, host: AgentApi, owner: QueueOwner) -> sysv_ipc.MessageQueue:
    """Return the queue with this key. If it is missing and `create` is set, make it, log that and note it at `owner`.

    Raises Blocked; Denied if the kernel refuses it.
    """
    try:
        try:
            return sysv_ipc.MessageQueue(key, 0, 0, MAX_MESSAGE)
        except sysv_ipc.ExistentialError:
            if not config.create:
                raise Blocked(
                    f"no {shown(key)} in {host.container}: is the key right, has the program started? "
                    "(create = true makes an empty one)"
                ) from None
        queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, config.mode, MAX_MESSAGE)
        if config.max_bytes is not None:
            _resize(queue, config.max_bytes, key)
        owner.made[key] = queue.id
        made = f"mode {config.mode:04o}, owner {os.geteuid()}:{os.getegid()}"
        host.log("info", f"{shown(key)} was missing and is made (create = true), {made}")
        return queue
    except sysv_ipc.ExistentialError:
        raise Blocked(f"{shown(key)} appeared just now") from None
    except sysv_ipc.PermissionsError:
        raise Denied(no_permission(key)) from None
    except (sysv_ipc.Error, OSError) as error:
        raise Blocked(f"{shown(key)}: {error}") from None


def _resize(queue: sysv_ipc.MessageQueue, size: int, key: int) -> None:
    """Let a new queue take so many bytes; one that may not is removed again, or it would be found too small later."""
    try:
        queue.max_size = size
    except sysv_ipc.PermissionsError:
        queue.remove()
        raise Blocked(
            f"{shown(key)}: max_bytes = {size} is more than kernel.msgmnb of its container allows: "
            f"sysctl -w kernel.msgmnb={size} there (docker run --sysctl kernel.msgmnb={size})"
        ) from None


def is_there(key: int, queue_id: int) -> bool:
    """True if the key still stands for that queue."""
    try:
        there: bool = sysv_ipc.MessageQueue(key, 0, 0).id == queue_id
    except (sysv_ipc.Error, OSError):
        return False
    return there


def has_room(queue_id: int, run: Run) -> bool:
    """True if the queue is known to have room for its first message; False also if the agent may not look."""
    try:
        return queuestatus.queue_status(queue_id).has_room(len(run.bodies[0]))
    except OSError:
        return False


def last_sender(queue: sysv_ipc.MessageQueue, key: int) -> int:
    """Return the process id of the last sender; 0 if there is none yet, -1 if it is in no pid namespace below ours.

    Raises Blocked, for example if the agent may not look at the queue.
    """
    try:
        pid: int = queue.last_send_pid
        return pid or (-1 if queue.last_send_time else 0)
    except sysv_ipc.PermissionsError:
        raise Denied(f"{no_permission(key)}: it must be readable, to see who sent last") from None
    except (sysv_ipc.Error, OSError) as error:
        raise Blocked(f"{shown(key)}: {error}") from None


def too_long(size: int, queue_id: int) -> str:
    """Return why the queue will never take a message of `size` bytes, with the limit if the agent may look at it."""
    with suppress(OSError):
        limit = queuestatus.queue_status(queue_id).limit
        if size > limit:
            return f"{size} bytes are more than the queue takes: its msg_qbytes is {limit}"
        limit = queuestatus.longest_message()
        if size > limit:
            return f"{size} bytes are more than its ipc namespace allows: kernel.msgmax there is {limit}"
    return f"{size} bytes are more than the queue takes (its msg_qbytes, or kernel.msgmax of its ipc namespace)"


def no_permission(key: int) -> str:
    """Return the text that `status` shows when the kernel refuses permission."""
    return f"{shown(key)}: no permission for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or its mode)"


def size_of(queue: Queue) -> int:
    """Return the bytes that the queue takes (msg_qbytes); 0 where that may not be looked at."""
    try:
        return int(queue.max_size)
    except (sysv_ipc.Error, OSError):
        return 0


def sender(queue: Queue, mtype: int) -> Send:
    """Return a function that sends messages of that type, by sysv_ipc if it supports the type."""
    if mtype <= _C_INT_MAX:
        send: Send = queue.send
        return send
    queue_id: int = queue.id

    def send_by_kernel(body: bytes, block: bool, mtype: int) -> None:
        message = msgbuf(mtype, body)
        call = linux.wait_msgsnd if block else linux.try_msgsnd
        number = call(queue_id, linux.address_of(message), len(body))
        if number:
            raise OSError(number, os.strerror(number))

    return send_by_kernel


def try_send(queue_id: int, mtype: int, body: bytes) -> int:
    """Send one message of any type without waiting; return 0 or errno (see linux.try_msgsnd)."""
    message = msgbuf(mtype, body)
    return linux.try_msgsnd(queue_id, linux.address_of(message), len(body))


def msgbuf(mtype: int, body: bytes) -> bytearray:
    """Return the message as msgsnd(2) takes it."""
    return bytearray(mtype.to_bytes(8, "little", signed=True) + body)


def number_of(error: Exception) -> int:
    """Return the errno that stands for one of SEND_ERRORS; EINVAL for an argument that the library refuses."""
    if isinstance(error, sysv_ipc.BusyError):
        return errno.EAGAIN
    if isinstance(error, sysv_ipc.PermissionsError):
        return errno.EACCES
    if isinstance(error, sysv_ipc.ExistentialError):
        return errno.EIDRM
    if isinstance(error, OSError):
        return error.errno or errno.EIO  # EINTR too
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return errno.EINTR if type(error) is sysv_ipc.Error else errno.EINVAL
