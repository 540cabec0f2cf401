"""The `queue` endpoint: SysV message queues, the only module that uses sysv_ipc.

Some facts about SysV queues, and what they mean here:
* A queue has no descriptor, so nothing can poll it: a thread blocks in msgrcv for the source, and one in msgsnd for
  the sink while the queue is full. Both serve what they got under the loop's lock, as a callback would.
* msgrcv of size 0 waits for a message and leaves it there (E2BIG), so a message is taken only under the lock, with the
  window open: an agent that was told to stop takes none. An empty message is the exception: waiting takes it.
* A queue that was removed answers EINVAL, EIDRM or ENOENT depending on the call; so does sysv_ipc, in its own classes.
  A message that is too long is EINVAL too: whether the queue is still there tells them apart.
* sysv_ipc crashes after a send of anything but bytes: only bytes are ever passed.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked, Host, Waiter
from nsbridge.agents.session import Arrived
from nsbridge.agents.wire import Message
from nsbridge.config.schema import FtokKey, QueueEndpoint

_BUFFER = 1 << 16  # sysv_ipc's receive buffer, made anew for each message; grown where msgmax is more
_FLUSH_EVERY = 64  # messages taken before they are sent on, so that the other agent works meanwhile
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
            return sysv_ipc.MessageQueue(key, 0, 0, _BUFFER)
        except sysv_ipc.ExistentialError:
            if not config.create:
                raise Blocked(f"{shown(key)} is missing (create = true would make it)") from None
        queue = sysv_ipc.MessageQueue(key, sysv_ipc.IPC_CREX, config.mode, _BUFFER)
        if config.max_bytes is not None:
            queue.max_size = config.max_bytes
        return queue
    except sysv_ipc.ExistentialError:
        raise Blocked(f"{shown(key)} appeared just now") from None
    except sysv_ipc.PermissionsError:
        raise Blocked(_no_permission(key)) from None
    except (sysv_ipc.Error, OSError) as error:
        raise Blocked(f"{shown(key)}: {error}") from None


def _no_permission(key: int) -> str:
    return f"{shown(key)}: no permission for uid {os.getuid()} gid {os.getgid()} (set user on the agent, or its mode)"


def _start_thread(name: str, run: object) -> None:
    """Start a thread that takes no signals and ends only with the process."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        threading.Thread(target=run, name=name, daemon=True).start()  # type: ignore[arg-type]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class QueueSource:
    """Takes messages of one type selection."""

    def __init__(self, host: Host, config: QueueEndpoint, key: int) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._host = host
        self._config = config
        self._key = key
        self._type = config.out.type
        self._room = threading.Event()  # clear: the window is full, or the agent is to stop
        self._room.set()

    def start(self) -> None:
        """Start the thread that waits in msgrcv, which nothing else can do for it."""
        _start_thread("take", self._run)

    def room_again(self) -> None:
        """Wake the thread."""
        if not self._room.is_set():
            self._room.set()

    def confirmed(self, seq: int) -> None:
        """Nothing is left of it here: taking removed it."""

    def _run(self) -> None:
        while True:
            queue = self._open()
            with self._host.guarded():
                self._host.blocked("out", "")
            try:
                self._take_from(queue)
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

    def _take_from(self, queue: sysv_ipc.MessageQueue) -> None:
        """Take until the queue is gone. Raises Blocked."""
        while True:
            self._room.wait()
            try:
                empty_type = linux.wait_for_message(queue.id, self._type)
            except InterruptedError:
                continue
            except PermissionError:
                raise Blocked(_no_permission(self._key)) from None
            except OSError:
                raise Blocked(f"{shown(self._key)} was removed") from None
            with self._host.guarded():
                if empty_type:
                    self._host.take(Message(empty_type, b""))
                self._take_all(queue)

    def _take_all(self, queue: sysv_ipc.MessageQueue) -> None:
        count = 0
        try:
            while self._host.has_room():
                body, mtype = queue.receive(False, self._type)
                self._host.take(Message(mtype, body))
                count += 1
                if count % _FLUSH_EVERY == 0:
                    self._host.flush()
            self._room.clear()
        except sysv_ipc.BusyError:
            pass  # empty
        except sysv_ipc.ExistentialError:
            raise Blocked(f"{shown(self._key)} was removed") from None
        finally:
            self._host.flush()


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

    def start(self) -> None:
        """Make the queue if it is missing and `create` says so, so that a program finds it before the first message."""
        self._again()

    def put(self, arrived: Arrived) -> bool:
        """Send it if there is room; otherwise let the thread wait for room."""
        if self._pending is not None or self._queue is None:
            return False
        message = arrived.message
        try:
            self._queue.send(message.body, False, self._type or message.type or 1)
        except sysv_ipc.BusyError:
            self._host.blocked("in", f"queue full ({shown(self._key)})")
            self._pending = arrived
            if not self._thread_runs:
                self._thread_runs = True
                _start_thread("put", self._run)
            self._go.release()
            return True
        except (sysv_ipc.Error, OSError, ValueError) as error:
            self._failed(self._queue, message, error)
            return False
        self._host.handed(arrived)
        return True

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

    def _failed(self, queue: sysv_ipc.MessageQueue, message: Message, error: Exception) -> None:
        """Say why a message could not be sent, and see to it that it is offered again."""
        gone = isinstance(error, sysv_ipc.ExistentialError) or getattr(error, "errno", 0) in (errno.EINVAL, errno.EIDRM)
        self._queue = None
        if isinstance(error, sysv_ipc.PermissionsError):
            self._waiter.wait(_no_permission(self._key))
        elif gone and not self._is_there(queue.id):
            self._waiter.wait(f"{shown(self._key)} was removed")
        else:
            size = len(message.body)
            self._waiter.wait(f"{shown(self._key)} does not take a message of {size} bytes (sysctl kernel.msgmax)")

    def _is_there(self, queue_id: int) -> bool:
        try:
            there: bool = sysv_ipc.MessageQueue(self._key, 0, 0).id == queue_id
        except (sysv_ipc.Error, OSError):
            return False
        return there

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
                self._host.put_back(arrived)
                if queue is not None:
                    self._failed(queue, arrived.message, error)
