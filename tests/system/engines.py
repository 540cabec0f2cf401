"""Real containers for tests: of runc and crun, and by plain unshare (engine_daemons.py: Docker and Podman).

All have the same handle, EngineContainer. A test takes a factory fixture of conftest.py:

    def test_x(runc_container):
        web = runc_container(["/bin/echo-server", "7"], files={"/bin/echo-server": host_path})
        web.pid; web.spec            # "runc:nsb-…", as a configuration names it
        (web.rootfs / "srv/in").mkdir()
        web.exec(["/bin/busybox", "ls", "/srv"]).stdout
        web.stop(); web.start()      # the same name, a new pid, the same files
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from tests.system.room import LIMIT, Room, run, tool, wait_readable, wait_until

BUSYBOX = "/bin/busybox"
# Init of a pid namespace ignores a TERM that it has no handler for, so the idle program has one.
IDLE = (BUSYBOX, "sh", "-c", "trap 'exit 0' TERM; while :; do busybox sleep 1000 & wait; done")
DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "srv", "sys", "tmp", "usr", "var/spool")

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Program:
    """Program of a container. `files` are host files (static binaries, scripts) by their path inside."""

    argv: Sequence[str] = IDLE
    files: Mapping[str, str | Path] = field(default_factory=dict)
    user: tuple[int, int] = (0, 0)  # ids inside
    id_base: int = 0  # with a user namespace whose id 0 is this id of the host; 0 is none (runc, crun)
    ipc: str = ""  # the ipc namespace's file; its own, if it is empty (runc, crun)
    options: Sequence[str] = ()  # more for the engine's `create` (docker, podman)
    capabilities: Sequence[str] = ()  # more than the usual ones, such as CAP_SYS_ADMIN (runc, crun)
    volumes: Mapping[str, str | Path] = field(default_factory=dict)  # directories or files by path inside (runc, crun)
    mounts: Sequence[tuple[str, str]] = ()  # type and path inside of further file systems (runc, crun)


class EngineContainer(ABC):
    """A container; made by `create`, which leaves it not running, and `start`."""

    kind: ContainerKind

    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = f"nsb-{os.getpid()}-{next(_numbers)}"
        self.pid = 0  # of init, as the host numbers it; 0 before the first start, the last one when stopped
        self._pidfd = -1  # init is signalled only through this: its pid may be reused, and 0 means ourselves

    @property
    def container(self) -> Container:
        """Return it as a checked configuration has it."""
        return Container(self.kind, self.name)

    @property
    def spec(self) -> str:
        """Return it as a configuration file names it."""
        return str(self.container)

    @property
    def rootfs(self) -> Path:
        """Return its root directory for use by the host; valid while it runs (of runc and crun: from `create` on)."""
        return Path(f"/proc/{self.pid}/root")

    @abstractmethod
    def create(self) -> None:
        """Make it, without running its program."""

    @abstractmethod
    def start(self) -> None:
        """Run its program (again); returns when `pid` is known and the program is being run."""

    @abstractmethod
    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a further program inside, to its end."""

    @abstractmethod
    def delete(self) -> None:
        """Kill it if need be and remove every trace; harmless when done before."""

    def stop(self) -> None:
        """Ask init to end (SIGTERM), kill it if it does not within a second; returns when it is dead."""
        self._signal(signal.SIGTERM)
        try:
            self._wait_dead(1.0)
        except AssertionError:
            self.kill()

    def kill(self) -> None:
        """Kill init, which takes its pid namespace with it; return when it is dead."""
        self._signal(signal.SIGKILL)
        self._wait_dead(LIMIT)

    def _born(self, pid: int) -> None:
        """Note a new init; call it for each."""
        self._forget()
        assert pid > 0, f"init of {self.spec} has ended before it could be seen"
        self.pid = pid
        with suppress(ProcessLookupError):  # it has ended already, as short programs do
            self._pidfd = os.pidfd_open(pid)

    def _forget(self) -> None:
        """Forget the init; only for `delete`."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _signal(self, signum: signal.Signals) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    def _wait_dead(self, limit: float) -> None:
        if self._pidfd >= 0:
            wait_readable(self._pidfd, f"process {self.pid} ends", limit)


class RuntimeContainer(EngineContainer):
    """Container of runc or crun, with a bundle directory made here."""

    options: tuple[str, ...] = ()

    def __init__(self, program: Program, room: Room, base: Path) -> None:
        super().__init__(program)
        self._room = room
        self.bundle = base / self.name
        fill_rootfs(self.rootfs, program)

    @property
    def rootfs(self) -> Path:
        """Return the directory on the host's disk; it may run or not."""
        return self.bundle / "rootfs"

    def create(self) -> None:
        """Leave the runtime's init waiting for `start`, with the namespaces made."""
        if self.pid:
            self._delete_state()
        config = json.dumps(oci_config(self.program))
        (self.bundle / "config.json").write_text(config, encoding="utf-8")
        pid_file = self.bundle / "pid"
        pid_file.unlink(missing_ok=True)
        self._runtime("create", "--bundle", str(self.bundle), "--pid-file", str(pid_file), self.name)
        self._born(int(pid_file.read_text(encoding="ascii")))

    def start(self) -> None:
        """Make it anew unless it is created and waits."""
        if not self._waits():
            self.create()
        self._runtime("start", self.name)

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by the runtime's exec."""
        return self._runtime("exec", self.name, *argv, check=check)

    def pause(self) -> None:
        """Freeze its processes (runc only: crun has no cgroup here)."""
        self._runtime("pause", self.name)

    def resume(self) -> None:
        """Thaw them."""
        self._runtime("resume", self.name)

    def delete(self) -> None:
        """Delete the bundle too, with its rootfs."""
        if self.pid:
            self.kill()
            self._delete_state()
        self._forget()
        shutil.rmtree(self.bundle, ignore_errors=True)

    def _delete_state(self) -> None:
        self._runtime("delete", "--force", self.name, check=False)
        self.pid = 0

    def _waits(self) -> bool:
        if not self.pid:
            return False
        state = json.loads(self._runtime("state", self.name).stdout)
        return bool(state["status"] == "created")

    def _runtime(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return run(self._room.command([tool(str(self.kind)), *self.options, *words]), check=check)


class RuncContainer(RuntimeContainer):
    """Container of runc."""

    kind = engines.runc.KIND


class CrunContainer(RuntimeContainer):
    """Container of crun, which is kept from the cgroups: Debian 12's version wants systemd for them."""

    kind = engines.crun.KIND
    options = ("--cgroup-manager=disabled",)


class UnshareContainer(EngineContainer):
    """New mnt, ipc and pid namespaces made by util-linux, a tmpfs at /srv, the rest of the host's files: 10 ms each.

    Its argv is run from the host's files; `files` are put below /srv (so their paths begin with it). Its program's
    output is in `log`.
    """

    kind = engines.pid.KIND
    # In a plain chroot / is no mount point and cannot be made private; the maker of the chroot has seen to that.
    _SETUP = """
        mount --make-rprivate / 2>/dev/null || :
        mount -t tmpfs tmpfs /srv
        read -r _
        mount -t proc proc /proc
        exec "$@"
    """

    def __init__(self, program: Program, base: Path) -> None:
        super().__init__(program)
        self.log = base / f"{self.name}.log"
        self._unshare: subprocess.Popen[bytes] | None = None

    @property
    def container(self) -> Container:
        """Return `pid:N`: there is no name that a restarted one could be found by."""
        return Container(self.kind, str(self.pid))

    def create(self) -> None:
        """Make its namespaces, with its init waiting for `start`."""
        with self.log.open("ab") as log:
            flags = ["--mount", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "unchanged"]
            self._unshare = subprocess.Popen(
                ["unshare", *flags, "--", "sh", "-ec", self._SETUP, "sh", *self.program.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        wait_until(lambda: self._failed() or children.read_text(encoding="ascii"), "unshare makes its child")
        assert not self._failed(), self.log.read_text(encoding="utf-8")
        self._born(int(children.read_text(encoding="ascii")))
        wait_until(
            lambda: self._failed() or self._has_own_srv(), f"init of {self.name} mounts its tmpfs (see {self.log})"
        )
        assert not self._failed(), self.log.read_text(encoding="utf-8")
        for inside, source in self.program.files.items():
            put(source, self.rootfs / inside.lstrip("/"))

    def start(self) -> None:
        """Start it; the files in /srv of an earlier life are gone."""
        if self._unshare is None:
            self.create()
        assert self._unshare is not None
        assert self._unshare.stdin is not None
        before = _command_line(self.pid)
        self._unshare.stdin.write(b"start\n")
        self._unshare.stdin.close()
        wait_until(lambda: _command_line(self.pid) != before, f"init of {self.name} runs its program (see {self.log})")

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by nsenter."""
        return run(["nsenter", f"--target={self.pid}", "--mount", "--ipc", "--pid", "--", *argv], check=check)

    def kill(self) -> None:
        """Kill as the others do; also reap."""
        if self._unshare is not None:
            super().kill()
            self._unshare.kill()  # it waits for that child; if there never was one, for nothing
            self._unshare.wait(LIMIT)
            assert self._unshare.stdin is not None
            self._unshare.stdin.close()
            self._unshare = None

    def stop(self) -> None:
        """Stop as the others do; also reap."""
        super().stop()
        self.kill()

    def delete(self) -> None:
        """Delete it; its log stays, in the test's directory."""
        self.kill()
        self._forget()

    def _failed(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is not None

    def _has_own_srv(self) -> bool:
        mounts = Path(f"/proc/{self.pid}/mounts").read_text(encoding="utf-8")
        return "tmpfs /srv tmpfs" in mounts and _namespaces(self.pid).isdisjoint(_namespaces(os.getpid()))


def fill_rootfs(rootfs: Path, program: Program) -> None:
    """Fill a root directory with a static busybox and the program's files."""
    for directory in DIRECTORIES:
        (rootfs / directory).mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    for inside, source in {BUSYBOX: tool("busybox"), **program.files}.items():
        put(source, rootfs / inside.lstrip("/"))
    (rootfs / "bin/sh").symlink_to("busybox")
    if program.id_base:
        for directory, _, files in os.walk(rootfs):
            for name in (".", *files):
                os.chown(Path(directory, name), program.id_base, program.id_base, follow_symlinks=False)


def put(source: str | Path, target: Path) -> None:
    """Copy a host file, with its mode, making the directories above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def oci_config(program: Program) -> dict[str, object]:
    """Return the smallest OCI runtime configuration that starts a program in namespaces of its own."""
    kinds = ["pid", "network", "ipc", "uts", "mount", *(["user"] if program.id_base else [])]
    paths = {"ipc": {"path": program.ipc}} if program.ipc else {}
    linux: dict[str, object] = {"namespaces": [{"type": kind, **paths.get(kind, {})} for kind in kinds]}
    if program.id_base:
        mapping = [{"containerID": 0, "hostID": program.id_base, "size": 65536}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    uid, gid = program.user
    usual = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID"]
    capabilities = [*usual, *program.capabilities]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": list(program.argv),
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *({"destination": path, "type": kind, "source": kind} for kind, path in program.mounts),
            *(
                {"destination": path, "type": "bind", "source": str(source), "options": ["bind"]}
                for path, source in program.volumes.items()
            ),
        ],
        "linux": linux,
    }


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _namespaces(pid: int) -> set[str]:
    return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("mnt", "ipc", "pid")}
