"""The `queue` endpoint: SysV message queues, and its `in` side; the only module that uses sysv_ipc.

Some facts about SysV queues, and what they mean here:
* A queue has no descriptor, so nothing can poll it: a thread blocks in msgrcv for the source, and one in msgsnd for
  the sink while the queue is full. Both serve what they got under the loop's lock, as a callback would.
* msgrcv of size 0 waits for a message and leaves it there (E2BIG), so a message is taken only under the lock, with the
  window open: an agent that was told to stop takes none. An empty message is the exception: it lands in the journal.
* A queue that was removed answers EINVAL, EIDRM or ENOENT depending on the call; so does sysv_ipc, in its own classes.
  A message that is too long is EINVAL too: whether the queue is still there tells them apart.
* sysv_ipc crashes after a send of anything but bytes: only bytes are ever passed.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.threads import start_thread
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.journalfile import seal
from nsbridge.agents.sinkjournal import SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import FtokKey, QueueEndpoint

Queue = sysv_ipc.MessageQueue
LONGEST = 1 << 20  # bytes of the longest message that is taken; msgmax is 8192 unless somebody has raised it


def shown(key: int) -> str:
    """A key for people, as ipcs shows it."""
    return f"queue 0x{key:x}"


def numeric_key(key: int | FtokKey, container_root: str) -> int:
    """The key itself; ftok(3) of a path under `container_root`, to be asked before the join. Raises OSError."""
    if isinstance(key, int):
        return key
    root = os.open(container_root, os.O_PATH | os.O_DIRECTORY)
    try:
        how = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
        file = linux.openat2(root, os.fsencode(key.path), os.O_PATH, 0, how)
    finally:
        os.close(root)
    status = os.fstat(file)
    os.close(file)
    return (key.proj & 0xFF) << 24 | (status.st_dev & 0xFF) << 16 | (status.st_ino & 0xFFFF)


def owner(key: int) -> tuple[int, int] | None:
    """uid and gid of the queue with this key; None if there is none. To be asked while the agent still has power."""
    try:
        queue = sysv_ipc.MessageQueue(key, 0, 0)
        return queue.uid, queue.gid
    except (sysv_ipc.Error, OSError):
        return None


def open_queue(key: int, config: QueueEndpoint, host: Host) -> sysv_ipc.MessageQueue:
    """The queue with this key, made (which is logged) if it is missing and `create` says so. Raises Blocked."""
    try:
        try:
            return sysv_ipc.MessageQueue(key, 0, 0, LONGEST)
        except sysv_ipc.ExistentialError:
            if not config.create:
                raise Blocked(f"{shown(key)} is missing (create = true would make it)") from None
        queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, config.mode, LONGEST)
        if config.max_bytes is not None:
            _resize(queue, config.max_bytes, key)
        host.log("info", f"{shown(key)} was missing and is made (create = true), mode {config.mode:04o}")
        return queue
    except sysv_ipc.ExistentialError:
        raise Blocked(f"{shown(key)} appeared just now") from None
    except sysv_ipc.PermissionsError:
        raise Blocked(no_permission(key)) from None
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
    """Whether the key still stands for that queue."""
    try:
        there: bool = sysv_ipc.MessageQueue(key, 0, 0).id == queue_id
    except (sysv_ipc.Error, OSError):
        return False
    return there


def has_room(queue_id: int, run: Run) -> bool:
    """Whether the queue is known to have room for its first message; not, where the agent may not look."""
    try:
        return linux.queue_status(queue_id).has_room(len(run.bodies[0]))
    except OSError:
        return False


def last_sender(queue: sysv_ipc.MessageQueue, key: int) -> int:
    """Who sent into it last: a process id, 0 if nobody has yet, -1 if it is of no pid namespace below ours.

    Raises Blocked, as where it may not be looked at.
    """
    try:
        pid: int = queue.last_send_pid
        return pid or (-1 if queue.last_send_time else 0)
    except sysv_ipc.PermissionsError:
        raise Blocked(f"{no_permission(key)}: it must be readable, to see who sent last") from None
    except (sysv_ipc.Error, OSError) as error:
        raise Blocked(f"{shown(key)}: {error}") from None


def too_long(size: int, queue_id: int) -> str:
    """Why the queue will never take a message of so many bytes, with the limit where it may be looked at."""
    with suppress(OSError):
        limit = linux.queue_status(queue_id).limit
        if size > limit:
            return f"{size} bytes are more than the queue takes: its msg_qbytes is {limit}"
        limit = linux.longest_message()
        if size > limit:
            return f"{size} bytes are more than its ipc namespace allows: kernel.msgmax there is {limit}"
    return f"{size} bytes are more than the queue takes (its msg_qbytes, or kernel.msgmax of its ipc namespace)"


def removed(key: int, host: Host) -> str:
    """What `status` says of a queue that is gone; logged, because the next one may be there at once."""
    host.log("warning", f"{shown(key)} was removed, with what was in it")
    return f"{shown(key)} was removed"


def no_permission(key: int) -> str:
    """What `status` says when the kernel refuses."""
    return f"{shown(key)}: no permission for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or its mode)"


def _limit(queue: sysv_ipc.MessageQueue) -> int:
    """Bytes that the queue takes (msg_qbytes); where that may not be looked at, the kernel will say."""
    try:
        return int(queue.max_size)
    except (sysv_ipc.Error, OSError):
        return LONGEST


class TooLongError(Exception):
    """A message is longer than the queue was known to take."""


class QueueSink:
    """Sends messages; while the queue is full a thread waits in msgsnd, so that the agent goes on."""

    def __init__(self, host: Host, config: QueueEndpoint, key: int, journal: SinkJournal) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._journal = journal
        self._type = config.in_.type
        self._queue: sysv_ipc.MessageQueue | None = None
        self._limit = 0  # bytes that the queue takes
        self._waiter = Waiter(host, "in", self._again)
        self._pending: Run | None = None  # the one message that the thread is sending
        self._go = threading.Semaphore(0)
        self._thread_runs = False
        self._debt = Debt(host.loop.now)

    def descriptor(self) -> int:
        """See Sink: a queue is the kernel's memory."""
        return -1

    def start(self) -> None:
        """Make the queue if it is missing and `create` says so, so that a program finds it before the first message."""
        self._again()

    def put(self, run: Run) -> int:
        """Send them while there is room; then let the thread wait for room."""
        count = 0
        while count < len(run.bodies) and self._queue is not None and self._pending is None:
            sent, obstacle = self._send(self._queue, run.after(count))
            if sent:
                self._host.handed(run.after(count).before(sent))
                count += sent
            if obstacle is not None:
                past = self._pass(self._queue, run.one(count), obstacle)
                if past is None:
                    break
                count += past
        return count

    def _send(self, queue: sysv_ipc.MessageQueue, run: Run) -> tuple[int, Exception | None]:
        """How many were sent, each noted at once, and what is in the way of the next."""
        notes, cell = self._journal.cells, self._journal.handed_cell
        is_noted = run.epoch == self._journal.epoch
        send, mtype, limit = queue.send, self._type or run.type or 1, self._limit
        seq = run.first
        try:
            for seq, body in enumerate(run.bodies, run.first):
                if len(body) > limit:
                    return seq - run.first, TooLongError()
                send(body, False, mtype)
                if is_noted:
                    notes[cell] = seal(seq << 1)  # a kill before this repeats the message
        except (sysv_ipc.Error, OSError, ValueError) as error:
            return seq - run.first, error
        return len(run.bodies), None

    def _pass(self, queue: sysv_ipc.MessageQueue, one: Run, obstacle: Exception) -> int | None:
        """1: the message is done with, or is the thread's by now. 0: send it. None: it is offered again later."""
        if isinstance(obstacle, sysv_ipc.BusyError | TooLongError):
            self._limit = _limit(queue)
            if len(one.bodies[0]) > self._limit:  # the kernel calls that busy, too
                return 1 if self._host.dead(one, shown(self._key), too_long(len(one.bodies[0]), queue.id)) else None
            if isinstance(obstacle, sysv_ipc.BusyError):
                self._wait_in_thread(one)
                return 1
            return 0
        return 1 if self._failed(queue, one, obstacle) else None

    def _wait_in_thread(self, one: Run) -> None:
        self._host.blocked("in", f"queue full ({shown(self._key)})")
        self._pending = one
        self._debt.clear()
        if not self._thread_runs:
            self._thread_runs = True
            self._host.vouch(self._vouch)
            start_thread("put", self._run)
        self._go.release()

    def _vouch(self) -> float:
        """The thread waits in msgsnd for as long as the queue is full, and no longer."""
        pending, queue = self._pending, self._queue
        owes = pending is not None and queue is not None and has_room(queue.id, pending)
        return self._debt.since(owes=owes)

    def _again(self) -> None:
        """Open the queue if there is none; then the refused message is offered again."""
        if self._queue is None:
            try:
                self._queue = open_queue(self._key, self._config, self._host)
            except Blocked as reason:
                self._waiter.wait(reason)
                return
            self._limit = _limit(self._queue)
        self._waiter.done()
        self._host.sink_ready()

    def _failed(self, queue: sysv_ipc.MessageQueue, one: Run, error: Exception) -> bool:
        """Whether the message is done with, as a dead letter; otherwise say why it waits, and offer it again later."""
        size = len(one.bodies[0])
        gone = isinstance(error, sysv_ipc.ExistentialError) or getattr(error, "errno", 0) in (errno.EINVAL, errno.EIDRM)
        if gone and is_there(self._key, queue.id) and self._host.dead(one, shown(self._key), too_long(size, queue.id)):
            return True
        self._queue = None
        if isinstance(error, sysv_ipc.PermissionsError):
            self._waiter.wait(no_permission(self._key))
        elif gone and not is_there(self._key, queue.id):
            self._waiter.wait(removed(self._key, self._host))
        else:
            self._waiter.wait(f"{shown(self._key)} does not take a message of {size} bytes: {error}")
        return False

    def _run(self) -> None:
        while True:
            self._go.acquire()
            one, queue = self._pending, self._queue
            assert one is not None and queue is not None  # noqa: S101, PT018  (set before the semaphore is released)
            error = self._send_in_thread(queue, one)
            with self._host.guarded():
                self._pending = None
                self._host.blocked("in", "")
                if error is None:
                    self._host.handed(one)
                elif not self._failed(queue, one, error):
                    self._host.put_back(one)
                    continue
                self._host.sink_ready()

    def _send_in_thread(self, queue: sysv_ipc.MessageQueue, one: Run) -> Exception | None:
        """Wait until there is room."""
        while True:
            try:
                queue.send(one.bodies[0], True, self._type or one.type or 1)
            except (sysv_ipc.Error, OSError, ValueError) as error:
                if type(error) is not sysv_ipc.Error:  # the plain class is EINTR
                    return error
            else:
                return None
