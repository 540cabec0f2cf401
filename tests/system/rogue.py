"""Compromised agents for tests: what somebody would do who had taken one over, after it has entered its container.

The agent `ROUTE:rogue` does what is listed under its route's name, in the place of its work. With the defences off
(hostile_daemon's `unfrozen`) it can do most of that; what the kernel refuses it otherwise is tried by ATTACKS.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

from nsbridge.agents import control, fork, linux, runtime, scoreboard, wire
from nsbridge.agents.counter import SLOT_SIZE, Counter
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.runtime import Agent
from nsbridge.agents.wire import Hello, Message
from nsbridge.config.schema import Namespace
from nsbridge.supervisor.host import bpf
from nsbridge.supervisor.lifecycle import process

_PAUSE = 0.002  # seconds when a socket is full
_serve = Agent.run
_DATAGRAM = 64 << 10
_F_SETSIG = 10  # linux/fcntl.h
_EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # of one thread
TAKEN = 256 << 20  # bytes of memory
_libc = ctypes.CDLL(None, use_errno=True)


def install() -> None:
    """Exchange what such agents do."""

    def run(self: Agent) -> None:
        route, _, name = self.name.partition(":")
        if name == "rogue":
            BEHAVIOURS[route.partition("-")[0]](self)
        else:
            _serve(self)

    runtime.Agent.run = run  # type: ignore[method-assign]


def _ready(agent: Agent) -> None:
    control.send(agent._channel, report="ready", ns_inode=1, uid=0, gid=0)


def _send(end: socket.socket, data: bytes) -> None:
    try:
        end.send(data, socket.MSG_DONTWAIT)
    except OSError:
        time.sleep(_PAUSE)  # the pace of the attack


def frames(agent: Agent) -> None:
    """Send random packets, true ones with wrong numbers, and never read."""
    _ready(agent)
    chance = random.Random(7)
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        hello = wire.pack_hello(Hello(*(chance.choice((0, 1, 2, 1 << 46, (1 << 64) - 1)) for _ in range(6))))
        header = bytearray(wire.pack_data_header(1, 1 + chance.getrandbits(3), Message(0, b""), 0, 0))
        header[chance.randrange(len(header))] = chance.getrandbits(8)
        _send(agent._link._socket, chance.choice((hello, bytes(header), chance.randbytes(chance.randrange(1, 60_000)))))
        time.sleep(_PAUSE)  # the pace of the attack


def floods(agent: Agent) -> None:
    """Send all that the control channel takes: lines, lies, bombs, and what is no text."""
    _ready(agent)
    words = [
        json.dumps({"report": "log", "level": "error", "text": "\x1b[2J flood\n" * 100}).encode(),
        json.dumps({"report": "log", "level": "info", "text": ["x"] * 500}).encode(),
        json.dumps({"report": "ready", "ns_inode": -1, "uid": "root", "gid": {}}).encode(),
        b'{"report": "ready"}',
        b'{"report": "drained"}',
        b'{"report": "error", "text": "\xff\xfe"}',
        b'{"report": "error", "text": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"report":' * 1000,
        b'{"report": 1e999, "text": ' + b"9" * 5000 + b"}",
        bytes(_DATAGRAM),
        b"\xff" * 8192,
    ]
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        for word in words:
            _send(agent._channel, word)


def forges(agent: Agent) -> None:
    """Forge every number and text of the page that it shares with the supervisor; and senders that are not its own."""
    _ready(agent)
    chance = random.Random(8)
    page = agent._assignment.scoreboard._page
    while True:
        page[: mmap.PAGESIZE] = chance.randbytes(mmap.PAGESIZE)
        agent._cells[scoreboard.BEAT] = chance.choice((time.monotonic_ns(), (1 << 64) - 1))
        agent._cells[scoreboard.SENDERS] = chance.choice((1, agent._assignment.supervisor_pid, (1 << 64) - 1))
        time.sleep(_PAUSE)  # the pace of the attack


def passes(agent: Agent) -> None:
    """Send descriptors, as many as fit into a datagram, to both that it can talk to."""
    _ready(agent)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [agent._link._socket.fileno()] * 250))]
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        for end in (agent._link._socket, agent._channel):
            try:
                end.sendmsg([b"{}"], rights, socket.MSG_DONTWAIT)
            except OSError:
                time.sleep(_PAUSE)  # the pace of the attack


def stops(agent: Agent) -> None:
    """Stand still."""
    _ready(agent)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def dies(agent: Agent) -> None:
    """Die of a signal that has no name."""
    _ready(agent)
    os.kill(os.getpid(), 40)


def _start_senders(agent: Agent) -> None:
    """Have its sink fork its senders, as an honest agent does; there is nothing else that it may fork."""
    with agent.loop.lock:
        agent._sink.start()  # type: ignore[union-attr]
    while not agent._cells[scoreboard.SENDERS + 1]:
        agent.loop.run_once(_PAUSE)


def hides(agent: Agent) -> None:
    """Fill the file system of the dead letters with a file that has no name."""
    _ready(agent)
    fd = os.open("hidden", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=agent._state.dead)
    os.unlink("hidden", dir_fd=agent._state.dead)
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        try:
            os.write(fd, bytes(1 << 20))
        except OSError:
            time.sleep(_PAUSE)  # the pace of the attack


def tries(agent: Agent) -> None:
    """Try everything in ATTACKS, and report the results."""
    if isinstance(agent._sink, ExactQueueSink):
        _start_senders(agent)
    attacks = ATTACKS | ({} if agent._assignment.agent.namespace is Namespace.IPC else FILES_ONLY)
    attacks |= COUNTED_ONLY if agent._state.counter is not None else {}
    for name, attack in attacks.items():
        try:
            attack(agent)
        except Exception as error:  # noqa: BLE001  (whatever refuses it)
            outcome = f"refused: {error}"
        else:
            outcome = "DONE"
        control.send(agent._channel, report="log", level="info", text=f"attack {name}: {outcome}")
        time.sleep(_PAUSE)  # the pace of the attack
    _ready(agent)
    while True:
        agent._cells[scoreboard.BEAT] = time.monotonic_ns()
        time.sleep(1)  # the pace of its signs of life


def leaves(agent: Agent) -> None:
    """Serve, and leave a process that does not die with it: it holds the lock of the journal."""
    if os.fork() == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, 0)
        while True:
            time.sleep(1)  # it lives until it is killed
    _serve(agent)


def _share(agent: Agent) -> None:
    """Say that it is ready, and that it hears itself: then it is refused, and never started again by itself."""
    ends = {"out": ["1:1"], "in": ["1:1"]}
    control.send(agent._channel, report="ready", ns_inode=1, uid=0, gid=0, places=ends)


def refuses(agent: Agent) -> None:
    """Have itself refused, and be gone by then with the exit code that says the same."""
    for _ in range(process._AT_ONCE):
        control.send(agent._channel)  # the supervisor rests after so many
    _share(agent)
    os._exit(fork.EXIT_NEVER)


def lingers(agent: Agent) -> None:
    """Have itself refused while it cannot be killed: its file system has taken a request and does not answer."""
    fd = os.open("/srv/fuse/.hidden", os.O_RDONLY)
    _share(agent)
    os.read(fd, 1)
    _serve(agent)


def hollow(agent: Agent) -> None:
    """End the first of its threads, and take memory in another."""

    def grow() -> None:
        _ready(agent)
        taken = mmap.mmap(-1, TAKEN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        taken.madvise(linux.MADV_POPULATE_WRITE)
        while True:
            agent._cells[scoreboard.BEAT] = time.monotonic_ns()
            time.sleep(0.05)  # the pace of its signs of life

    threading.Thread(target=grow, daemon=True).start()
    _libc.syscall(_EXIT, 0)


def damages(agent: Agent) -> None:
    """Spoil both journals and die of a signal, so that a successor comes at once."""
    _ready(agent)
    for journal in (agent._state.source, agent._state.sink):
        assert journal is not None
        os.pwrite(journal.fd, b"\xff" * 4096, 0)
    os.kill(os.getpid(), signal.SIGKILL)


HOSTILE_NAMES = (b"../planted", b"/srv/planted", b".planted", b"..")


def misnames(agent: Agent) -> None:
    """Serve, and send the first message under names that no file may have, then under its own."""
    honest, names = wire.pack_names, iter(HOSTILE_NAMES)

    def pack(run: wire.Run) -> list[bytes]:
        name = next(names, b"")
        header = struct.pack("<B3xIQQ", 5, 1, run.epoch, run.first)  # wire.py: NAMES
        return [header, bytes([len(name)]), name] if name else honest(run)

    wire.pack_names = pack
    _serve(agent)


BEHAVIOURS: dict[str, Callable[[Agent], None]] = {
    "damages": damages,
    "refuses": refuses,
    "lingers": lingers,
    "hollow": hollow,
    "frames": frames,
    "floods": floods,
    "forges": forges,
    "passes": passes,
    "stops": stops,
    "dies": dies,
    "hides": hides,
    "misnames": misnames,
    "tries": tries,
    "leaves": leaves,
}


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _beyond(path: str, flags: int) -> Callable[[Agent], object]:
    """Return an open of a file of the host, by way of the descriptor that leads into the host's /proc."""
    return lambda agent: os.open(path, flags, dir_fd=agent._entered.own_fds)


def _call(name: str, *arguments: int | ctypes.c_void_p) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        raise linux.oserror(name)


def _journal(agent: Agent) -> int:
    return max(agent._state.source_fd, agent._state.sink_fd)


def _ask(name: str, *arguments: int) -> None:
    """Make a call whose result the C library does not check."""
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) < 0 or ctypes.get_errno():
        raise linux.oserror(name)


# What an agent of either kind may not do, in any hands.
ATTACKS: dict[str, Callable[[Agent], object]] = {
    "own a signal": lambda agent: fcntl.fcntl(agent._link._socket, fcntl.F_SETOWN, agent._assignment.supervisor_pid),
    "choose a signal": lambda agent: fcntl.fcntl(agent._link._socket, _F_SETSIG, signal.SIGKILL),
    "ask for a signal": lambda agent: fcntl.fcntl(agent._link._socket, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK),
    "watch a directory": lambda agent: fcntl.fcntl(agent._state.dead, fcntl.F_NOTIFY, fcntl.DN_CREATE),
    "outlive the supervisor": lambda _: linux.prctl(linux.PR_SET_PDEATHSIG, 0),
    "unlock its journal": lambda agent: fcntl.flock(_journal(agent), fcntl.LOCK_UN),
    "cut its journal": lambda agent: os.ftruncate(_journal(agent), 100),
    "punch its journal": lambda agent: _call("fallocate", _journal(agent), 3, 0, 4096),
    "set a setuid bit": lambda agent: os.fchmod(_journal(agent), 0o4755),
    "lay aside the umask": lambda _: _ask("umask", 0),
    "sync all file systems": lambda agent: linux.syncfs(agent._state.dead),
    "fork": lambda _: _fork(),
    "kill the supervisor": lambda agent: os.kill(agent._assignment.supervisor_pid, signal.SIGKILL),
    "stop the supervisor": lambda agent: os.kill(agent._assignment.supervisor_pid, signal.SIGSTOP),
    "kill everybody": lambda _: os.kill(-1, signal.SIGKILL),
    "read a file": lambda _: os.open("/etc/shadow", os.O_RDONLY),
    "write a file": lambda _: os.open("/etc/made", os.O_WRONLY | os.O_CREAT, 0o600),
    "leave by its descriptors": _beyond("../../../etc/shadow", os.O_RDONLY),
    "change the kernel": _beyond("../../sys/kernel/core_pattern", os.O_WRONLY),
    "execute": lambda _: os.execv("/bin/busybox", ["busybox", "true"]),
    "have executable memory": lambda _: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "make an event loop": lambda _: select.epoll(),
    "open a socket": lambda _: socket.socket(socket.AF_INET),
    "pass a descriptor": lambda agent: agent._channel.sendmsg(
        [b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))]
    ),
    "mount": lambda _: linux.mount("none", "/srv", "tmpfs"),
    "unshare": lambda _: linux.unshare(linux.CLONE_NEWUSER),
    "setns": lambda agent: linux.setns(agent._entered.own_fds, 0),
    "trace": lambda agent: _call("ptrace", 16, agent._assignment.supervisor_pid, 0, 0),
    "read memory": lambda agent: _call("process_vm_readv", agent._assignment.supervisor_pid, 0, 0, 0, 0, 0),
    "change its user": lambda _: os.setuid(1),
    "change a limit": lambda _: _call("prlimit64", 0, 7, 0, 0),
}
FILES_ONLY: dict[str, Callable[[Agent], object]] = {
    "share memory": lambda _: mmap.mmap(-1, mmap.PAGESIZE),
    "start a thread": lambda _: threading.Thread(target=int).start(),
    "use a queue": lambda _: _call("msgget", 0x51, 0o1666),
}


def _count(agent: Agent, slots: int = 0) -> int:
    """Return the address of its count, or of another agent's, which lies so many slots behind it."""
    counter = agent._state.counter
    assert isinstance(counter, Counter)
    return linux.address_of(counter._counts) + slots * SLOT_SIZE


def _page_of(address: int) -> int:
    return address & -mmap.PAGESIZE


# Of an agent whose messages the kernel counts. The kernel writes for it where it may not write itself.
COUNTED_ONLY: dict[str, Callable[[Agent], object]] = {
    "write its count": lambda agent: _call("pread", _journal(agent), ctypes.c_void_p(_count(agent)), 8, 0),
    "write the count of another agent": lambda agent: _call(
        "pread", _journal(agent), ctypes.c_void_p(_count(agent, 1)), 8, 0
    ),
    "make its count writable": lambda agent: _call(
        "mprotect", ctypes.c_void_p(_page_of(_count(agent))), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE
    ),
    "ask the kernel for the maps": lambda _: bpf.create_map(bpf.ARRAY, 4, 8, 1),
    "open the pins": _beyond("../../../sys/fs/bpf/nsbridge", os.O_RDONLY),
}
