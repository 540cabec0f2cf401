"""Finds containers of LXC, `lxc:NAME`: asks the container's own monitor process over its command socket (1 ms).

Some facts about LXC (5.0, src/lxc/commands.c and monitor.c), and what they mean here:
* A started container has a monitor process, the parent of its init. It listens on the abstract socket
  LXCPATH/NAME/command, and answers with native structures that have not changed since LXC 1.0.
* An abstract socket belongs to a network namespace and has no permissions. While a container is stopped, any program on
  the host's network, also a container's, may listen under its name and answer with any pid. So the pid counts only if
  its parent is a process of root, in our pid namespace, whose command line names this container.
* `lxc-monitor` reports each start. It leaves an `lxc-monitord` behind, which ends half a minute after its last client.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from functools import partial

from nsbridge.agents.confinement import entry
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.deadline import TIME_LIMIT, seconds_left
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Found,
    NotRunning,
    found_by_pid,
    not_known,
    quoted,
    read_bounded,
)
from nsbridge.supervisor.containers.rows import Listed, names_in, row_of
from nsbridge.supervisor.host import procfs

# LXC takes any name without a slash. What comes after the first letter is what commands and events can show as it is.
KIND = ContainerKind(
    "lxc",
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,63}"),
    "an lxc name has at most 64 letters, digits, _, ., @, :, + and -, and begins with a letter, digit or _",
)
VARIABLE = "NSBRIDGE_LXC_PATH"
SYSTEM_FILE = "/etc/lxc/lxc.conf"
_USUAL = "/var/lib/lxc"
_CONFIGURED = re.compile(rb"^\s*lxc\.lxcpath\s*=\s*(/\S*)\s*$", re.MULTILINE)
_FILE_LIMIT = 64 << 10  # bytes
_REQUEST, _RESPONSE = struct.Struct("@iiP"), struct.Struct("@iiP")  # command and length and data; result and so on
_CREDENTIALS = struct.Struct("@iII")  # pid, uid, gid; unix(7)
_GET_STATE, _GET_INIT_PID = 3, 4  # lxc_cmd_t
_STATES = ("stopped", "starting", "running", "stopping", "aborting", "freezing", "frozen", "thawed")  # lxc_state_t
_ALIVE = ("running", "freezing", "frozen", "thawed")
_CHANGED = re.compile(rb"'([^']{1,255})' changed state to \[RUNNING\]\n")
_LINE_LIMIT = 4096  # bytes


class Lxc(Engine):
    """The directory of containers is NSBRIDGE_LXC_PATH's, else that of lxc.conf, else the usual one."""

    kind = KIND
    blocks = True
    has_events = True

    def locate(self, name: str) -> Found:
        """See Engine. Returns or raises after TIME_LIMIT at the latest."""
        self.check_name(name)
        directory = _lxc_path()
        which = f"container {quoted(name)} of lxc"
        try:
            monitor = _Monitor(directory, name)
            state = _STATES[monitor.ask(_GET_STATE)]
            if state not in _ALIVE:
                raise NotRunning(f"{which} is {state}, not running")
            found = found_by_pid(monitor.ask(_GET_INIT_PID))
        except ConnectionRefusedError:
            raise self._absent(directory, name, which) from None
        except TimeoutError:
            # Not NoAnswer, which is about all containers of an engine: each has its own monitor process.
            raise NotRunning(f"the monitor process of {which} does not answer (waited {TIME_LIMIT:g} s)") from None
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise NotRunning(f"the monitor process of {which} does not answer as one does ({error})") from None
        _check_parent(found, name, which)
        return found

    def is_installed(self) -> bool:
        """See Engine."""
        return shutil.which("lxc-start") is not None or os.path.isdir(_lxc_path())  # noqa: PTH112

    def listed(self) -> Iterator[Listed]:
        """See Engine."""
        for name in names_in(_lxc_path(), os.DirEntry.is_dir):
            if os.path.exists(f"{_lxc_path()}/{name}/config"):  # noqa: PTH110
                yield row_of(f"{KIND}:{name}", partial(self.locate, name))

    def follow(self, writer: int) -> None:
        """See Engine."""
        program = shutil.which("lxc-monitor")
        if program is None:
            raise NotRunning("lxc-monitor is not installed")
        command = [program, "-P", _lxc_path(), "-n", ".*"]
        child_of_us = partial(entry.die_with_the_supervisor, os.getpid())
        with subprocess.Popen(  # noqa: S603  (no shell; nothing in it is foreign)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=child_of_us,  # noqa: PLW1509  (this child has one thread)
        ) as monitor:
            assert monitor.stdout is not None  # noqa: S101  (it is a pipe)
            engine_events.report_watching(writer)
            while line := monitor.stdout.readline(_LINE_LIMIT):
                changed = _CHANGED.fullmatch(line)
                if changed:
                    engine_events.report_name(writer, changed[1])
            raise NotRunning(f"lxc-monitor ended with status {monitor.wait()}")

    def _absent(self, directory: str, name: str, which: str) -> NotRunning:
        if os.path.exists(f"{directory}/{name}/config"):  # noqa: PTH110
            return NotRunning(f"{which} is stopped, not running")
        return not_known(name, str(KIND), f"looked in {directory}")


class _Monitor:
    """The command socket of one container's monitor process; each command is a connection of its own."""

    def __init__(self, directory: str, name: str) -> None:
        self._address = b"\0" + os.fsencode(f"{directory}/{name}/command")
        self._deadline = time.monotonic() + TIME_LIMIT

    def ask(self, command: int) -> int:
        """Return the number that answers a command. Raises OSError, ValueError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as call:
            call.settimeout(seconds_left(self._deadline))
            call.connect(self._address)
            ours = _CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid())
            call.sendmsg([_REQUEST.pack(command, 0, 0)], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ours)])
            answer = b""
            while len(answer) < _RESPONSE.size:
                call.settimeout(seconds_left(self._deadline))
                part = call.recv(_RESPONSE.size - len(answer))
                if not part:
                    raise ValueError("it closed the connection")
                answer += part
        result, _, number = _RESPONSE.unpack(answer)
        if result < 0 or not 0 <= number < 1 << 31:
            raise ValueError(f"result {result}, number {number}")
        return int(number)


def _check_parent(found: Found, name: str, which: str) -> None:
    """Raise NotRunning unless the process is a child of this container's monitor process.

    A process gets another parent only when its own has died, so the parent's number is not reused meanwhile.
    """
    try:
        parent = procfs.read_stat(found.pid).parent
        is_ours = parent > 0 and _is_monitor(parent, name.encode())
        now = procfs.read_stat(found.pid)
    except OSError:
        raise NotRunning(f"{which} is just stopping or starting") from None
    if (now.parent, now.start_time) != (parent, found.start_time):
        raise NotRunning(f"{which} is just stopping or starting")
    if not is_ours:
        raise NotRunning(
            f"the command socket of {which} names process {found.pid}, which is no child of its monitor process: "
            "another program listens there"
        )


def _is_monitor(pid: int, name: bytes) -> bool:
    """True if a process of root in our pid namespace has that container's name in its command line. Raises OSError."""
    words = re.split(rb"[\0 ]", procfs.read(pid, "cmdline", _LINE_LIMIT))
    uid, _ = procfs.parse_effective_ids(procfs.read(pid, "status", procfs.STATUS_LIMIT))
    is_host_s = os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    return uid == 0 and is_host_s and not {name, b"-n" + name, b"--name=" + name}.isdisjoint(words)


def _lxc_path() -> str:
    """Return the directory that has a directory for each container. Raises ContainerRefused."""
    path = os.environ.get(VARIABLE)
    if path:
        return path
    try:
        configured = _CONFIGURED.findall(read_bounded(SYSTEM_FILE, _FILE_LIMIT))
    except OSError:
        return _USUAL
    except (UntrustedError, ValueError) as error:
        raise ContainerRefused(f"{SYSTEM_FILE} {error}") from None
    return os.fsdecode(configured[-1]) if configured else _USUAL
