"""The `queue` endpoint: SysV message queues, the only module that uses sysv_ipc.

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
import mmap
import os
import signal
import threading
import time

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.endpoints.threads import start_thread
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.journal import SourceJournal
from nsbridge.agents.session import Arrived
from nsbridge.config.schema import FtokKey, QueueEndpoint

Queue = sysv_ipc.MessageQueue
_LONGEST = 1 << 20  # bytes of the longest message that is taken; msgmax is 8192 unless somebody has raised it
_FLUSH_EVERY = 64  # messages taken before they are sent on, so that the other agent works meanwhile
_INTERRUPT = signal.SIGUSR2  # to the thread that waits in msgrcv
_INTERRUPT_EVERY = 0.02  # seconds
_RETRY = 0.1  # seconds between looks for a queue that is missing


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


def open_queue(key: int, config: QueueEndpoint) -> sysv_ipc.MessageQueue:
    """The queue with this key, made if it is missing and `create` says so. Raises Blocked."""
    try:
        try:
            return sysv_ipc.MessageQueue(key, 0, 0, _LONGEST)
        except sysv_ipc.ExistentialError:
            if not config.create:
                raise Blocked(f"{shown(key)} is missing (create = true would make it)") from None
        queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, config.mode, _LONGEST)
        if config.max_bytes is not None:
            queue.max_size = config.max_bytes
        return queue
    except sysv_ipc.ExistentialError:
        raise Blocked(f"{shown(key)} appeared just now") from None
    except sysv_ipc.PermissionsError:
        raise Blocked(no_permission(key)) from None
    except (sysv_ipc.Error, OSError) as error:
        raise Blocked(f"{shown(key)}: {error}") from None


def is_there(key: int, queue_id: int) -> bool:
    """Whether the key still stands for that queue."""
    try:
        there: bool = sysv_ipc.MessageQueue(key, 0, 0).id == queue_id
    except (sysv_ipc.Error, OSError):
        return False
    return there


def has_room(queue_id: int, arrived: Arrived) -> bool:
    """Whether the queue is known to have room for the message; not, where the agent may not look."""
    try:
        return linux.queue_has_room(queue_id, len(arrived.message.body))
    except OSError:
        return False


def no_permission(key: int) -> str:
    """What `status` says when the kernel refuses."""
    return f"{shown(key)}: no permission for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or its mode)"


class QueueSource:
    """Takes messages of one type selection, each straight into the journal: the kernel writes it there.

    msgrcv tells a message's length only in a register, which dies with the process. So the length is looked at first
    (MSG_COPY) and noted with the landing place; then the message is received with exactly that size.
    """

    def __init__(self, host: Host, config: QueueEndpoint, key: int, journal: SourceJournal) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.out.type
        self._journal = journal
        self._peek = memoryview(mmap.mmap(-1, 8 + _LONGEST))  # costs only as many pages as messages are long
        self._peek_at = linux.address_of(self._peek)
        self._room = threading.Event()  # clear: the window is full, or the agent is to stop
        self._room.set()
        self._thread = 0
        self._waits = False  # in msgrcv, with a landing place in the journal
        self._queue = 0  # its id, where the thread waits
        self._rounds = 0  # how often the thread has come out of msgrcv
        self._rounds_seen = 0
        self._debt = Debt(host.loop.now)
        self._interrupts = False

    def start(self) -> None:
        """Start the thread that waits in msgrcv, which nothing else can do for it."""
        if self._journal.recovered:
            self._host.log("info", "recovered a message that had just left the queue when the agent was killed")
        signal.signal(_INTERRUPT, lambda _signum, _frame: None)
        self._host.vouch(self._vouch)
        start_thread("take", self._run)

    def _vouch(self) -> float:
        """The thread, which waits in msgrcv for as long as it likes, has to come out when there is a message for it."""
        owes = self._waits and self._rounds == self._rounds_seen and self._host.has_room() and self._message_waits()
        self._rounds_seen = self._rounds
        return self._debt.since(owes=owes)

    def _message_waits(self) -> bool:
        try:
            return self._look(self._queue) is not None
        except Blocked:
            return False

    def room_again(self) -> None:
        """Wake the thread."""
        if not self._room.is_set():
            self._room.set()

    def confirmed(self, seq: int) -> None:
        """Nothing is left of it here: taking removed it."""

    def lend(self) -> bool:
        """See Source: not while the kernel may put a message into the journal; the thread is called back from there."""
        if self._waits and not self._interrupts:
            self._interrupt()
        return not self._waits

    def _interrupt(self) -> None:
        """End the wait, which nothing else can. It may be just about to begin, so that is done until it is heard."""
        self._interrupts = self._waits
        if self._waits:
            signal.pthread_kill(self._thread, _INTERRUPT)
            self._host.loop.call_later(_INTERRUPT_EVERY, self._interrupt)

    def _run(self) -> None:
        self._thread = threading.get_ident()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_INTERRUPT})
        while True:
            queue = self._open()
            with self._host.guarded():
                self._host.blocked("out", "")
            try:
                self._take_from(queue.id)
            except Blocked as reason:
                self._pause(reason)

    def _open(self) -> sysv_ipc.MessageQueue:
        while True:
            try:
                return open_queue(self._key, self._config)
            except Blocked as reason:
                self._pause(reason)

    def _pause(self, reason: Blocked) -> None:
        with self._host.guarded():
            self._host.blocked("out", str(reason))
        time.sleep(_RETRY)

    def _take_from(self, queue: int) -> None:
        """Take until the queue is gone. Raises Blocked."""
        while True:
            self._room.wait()
            with self._host.guarded():
                self._host.retry()
                place = self._land(0)
                self._queue = queue
                self._waits = True
            try:
                # Waits for a message and leaves it there (E2BIG); an empty one fits, and lands in the journal.
                length = self._receive(queue, place, 0, 0)
            except Blocked:
                with self._host.guarded():
                    self._waits = False
                raise
            with self._host.guarded():
                self._waits = False
                self._rounds += 1
                if length == 0:
                    self._host.landed(self._journal.landed())
                self._take_all(queue)

    def _take_all(self, queue: int) -> None:
        count = 0
        try:
            while self._host.has_room():
                length = self._look(queue)
                if length is None:
                    return
                got = self._receive(queue, self._land(length), length, linux.IPC_NOWAIT)
                if got is None:
                    continue  # another reader was faster: look again
                self._host.landed(self._journal.landed(got))
                count += 1
                if count % _FLUSH_EVERY == 0:
                    self._host.flush()
            self._room.clear()
        finally:
            self._host.flush()

    def _land(self, length: int) -> int:
        try:
            return self._journal.land(length)
        except OSError as error:
            raise Blocked(str(error.strerror)) from None

    def _receive(self, queue: int, place: int, size: int, flags: int) -> int | None:
        """The length of the message that landed; None if there is none that fits. Raises Blocked."""
        try:
            return linux.msgrcv(queue, place, size, self._type, flags)
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOMSG, errno.EINTR):
                return None
            raise self._gone(error) from None

    def _look(self, queue: int) -> int | None:
        """The length of the message that msgrcv would choose now; None if there is none. Raises Blocked."""
        best: tuple[int, int] | None = None
        index = 0
        try:
            while True:
                length = linux.msgrcv(queue, self._peek_at, _LONGEST, index, linux.MSG_COPY | linux.IPC_NOWAIT)
                mtype = int.from_bytes(self._peek[:8], "little", signed=True)
                if self._type >= 0 and self._type in (0, mtype):
                    return length
                if self._type < 0 and mtype <= -self._type and (best is None or mtype < best[0]):
                    best = (mtype, length)
                    if mtype == 1:
                        return length
                index += 1
        except OSError as error:
            if error.errno == errno.ENOMSG:
                return best[1] if best else None
            raise self._gone(error) from None

    def _gone(self, error: OSError) -> Blocked:
        if error.errno == errno.EACCES:
            return Blocked(no_permission(self._key))
        if error.errno in (errno.EIDRM, errno.EINVAL):
            return Blocked(f"{shown(self._key)} was removed")
        return Blocked(f"{shown(self._key)}: {error}")


class QueueSink:
    """Sends messages; while the queue is full a thread waits in msgsnd, so that the agent goes on."""

    def __init__(self, host: Host, config: QueueEndpoint, key: int) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.in_.type
        self._queue: sysv_ipc.MessageQueue | None = None
        self._waiter = Waiter(host, "in", self._again)
        self._pending: Arrived | None = None  # the thread is sending it
        self._go = threading.Semaphore(0)
        self._thread_runs = False
        self._debt = Debt(host.loop.now)

    def descriptor(self) -> int:
        """See Sink: a queue is the kernel's memory."""
        return -1

    def start(self) -> None:
        """Make the queue if it is missing and `create` says so, so that a program finds it before the first message."""
        self._again()

    def put(self, arrived: Arrived) -> bool:
        """Send it if there is room; otherwise let the thread wait for room."""
        if self._pending is not None or self._queue is None:
            return False
        message = arrived.message
        if len(message.body) > self._queue.max_size:
            why = f"{len(message.body)} bytes are more than the queue's own limit"
            return self._host.dead(arrived, shown(self._key), why)
        try:
            self._queue.send(message.body, False, self._type or message.type or 1)
        except sysv_ipc.BusyError:
            self._host.blocked("in", f"queue full ({shown(self._key)})")
            self._pending = arrived
            self._debt.clear()
            if not self._thread_runs:
                self._thread_runs = True
                self._host.vouch(self._vouch)
                start_thread("put", self._run)
            self._go.release()
            return True
        except (sysv_ipc.Error, OSError, ValueError) as error:
            return self._failed(self._queue, arrived, error)
        self._host.handed(arrived)
        return True

    def _vouch(self) -> float:
        """The thread waits in msgsnd for as long as the queue is full, and no longer."""
        pending, queue = self._pending, self._queue
        owes = pending is not None and queue is not None and has_room(queue.id, pending)
        return self._debt.since(owes=owes)

    def _again(self) -> None:
        """Open the queue if there is none; then the refused message is offered again."""
        if self._queue is None:
            try:
                self._queue = open_queue(self._key, self._config)
            except Blocked as reason:
                self._waiter.wait(reason)
                return
        self._waiter.done()
        self._host.sink_ready()

    def _failed(self, queue: sysv_ipc.MessageQueue, arrived: Arrived, error: Exception) -> bool:
        """Whether the message is done with, as a dead letter; otherwise say why it waits, and offer it again later."""
        size = len(arrived.message.body)
        gone = isinstance(error, sysv_ipc.ExistentialError) or getattr(error, "errno", 0) in (errno.EINVAL, errno.EIDRM)
        if gone and is_there(self._key, queue.id):
            why = f"{size} bytes are more than the queue takes (kernel.msgmax, or its own limit)"
            if self._host.dead(arrived, shown(self._key), why):
                return True
        self._queue = None
        if isinstance(error, sysv_ipc.PermissionsError):
            self._waiter.wait(no_permission(self._key))
        elif gone and not is_there(self._key, queue.id):
            self._waiter.wait(f"{shown(self._key)} was removed")
        else:
            self._waiter.wait(f"{shown(self._key)} does not take a message of {size} bytes: {error}")
        return False

    def _run(self) -> None:
        while True:
            self._go.acquire()
            arrived, queue = self._pending, self._queue
            assert arrived is not None  # noqa: S101  (set before the semaphore is released)
            error: Exception | None = None
            try:
                while queue is not None:
                    try:
                        queue.send(arrived.message.body, True, self._type or arrived.message.type or 1)
                        break
                    except sysv_ipc.Error as caught:
                        if type(caught) is not sysv_ipc.Error:
                            raise  # the plain class is EINTR
            except (sysv_ipc.Error, OSError, ValueError) as caught:
                error = caught
            with self._host.guarded():
                self._pending = None
                self._host.blocked("in", "")
                if error is None:
                    self._host.handed(arrived)
                    self._host.sink_ready()
                    continue
                if queue is None or not self._failed(queue, arrived, error):
                    self._host.put_back(arrived)
                else:
                    self._host.sink_ready()
