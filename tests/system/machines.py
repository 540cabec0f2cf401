"""Real machines of systemd-nspawn for tests, registered with a real systemd-machined on a bus of its own.

machined wants systemd as process 1 for making units, and only for that: a machine that is started with --keep-unit
stays in the control group that it is started in, so it is enough that this has a unit's name. /run is a directory of
the test's own for all of these programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from nsbridge.supervisor.containers import engines
from tests.system.engines import EngineContainer, Program, fill_rootfs
from tests.system.room import LIMIT, Room, run, tool, wait_until

MACHINED = "/lib/systemd/systemd-machined"
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={base}/bus</listen><policy context="default"><allow user="*"/>
<allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
"""
_IN_OWN_RUN = 'mount --bind "$1" /run && shift && exec "$@"'
_IN_SCOPE = 'mkdir -p "$1" && echo $$ > "$1/cgroup.procs" && shift && exec "$@"'


class Machined:
    """A bus and a machined."""

    def __init__(self, room: Room, base: Path) -> None:
        self.base = base
        self.machines = base / "run/systemd/machines"
        self._room = room
        self._cleanup = ExitStack()

    def start(self) -> None:
        """Start both; return when machined answers. They end with the session, however that ends."""
        for directory in ("run/systemd/system", "run/systemd/machines"):
            (self.base / directory).mkdir(parents=True, exist_ok=True)
        (self.base / "bus.conf").write_text(_BUS.format(base=self.base), encoding="utf-8")
        self.serve([tool("dbus-daemon"), f"--config-file={self.base}/bus.conf", "--nofork", "--nopidfile"])
        wait_until((self.base / "bus").exists, "dbus-daemon listens")
        self.serve([MACHINED])
        wait_until(lambda: not self.ctl("list", check=False).returncode, f"machined answers, see {self.base}/log")

    def serve(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Run a program of the bus, until it ends or `close` is called."""
        with (self.base / "log").open("ab") as log:
            command = self._command(["setpriv", "--pdeathsig", "KILL", "--", *argv])
            environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.base}/bus", **(env or {})}
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self._cleanup.callback(process.wait, LIMIT)
        self._cleanup.callback(process.kill)
        return process

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run machinectl."""
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.base}/bus"}
        return run(self._command([tool("machinectl"), "--no-pager", *words]), check=check, env=environment)

    def close(self) -> None:
        """End all of them."""
        self._cleanup.close()
        self._room.remove_cgroup("nsb-machine.slice")

    def _command(self, argv: Sequence[str]) -> list[str]:
        own = ["unshare", "--mount", "--", "sh", "-ec", _IN_OWN_RUN, "sh", str(self.base / "run"), *argv]
        return self._room.command(own)


class MachineContainer(EngineContainer):
    """A machine of systemd-nspawn, registered; its files stay when it is started again."""

    kind = engines.machine.KIND

    def __init__(self, program: Program, machined: Machined) -> None:
        super().__init__(program)
        self._machined = machined
        self._directory = machined.base / self.name
        self._nspawn: subprocess.Popen[bytes] | None = None

    @property
    def rootfs(self) -> Path:
        """Return the directory on the host's disk; it may run or not."""
        return self._directory

    def create(self) -> None:
        """Make its files."""
        fill_rootfs(self.rootfs, self.program)
        (self.rootfs / "etc/os-release").touch()

    def start(self) -> None:
        """Start it; returns when machined knows it."""
        if not self.rootfs.exists():
            self.create()
        scope = f"/sys/fs/cgroup/nsb-machine.slice/machine-{self.name}.scope"
        options = ["--register=yes", "--keep-unit", "--quiet", "--console=pipe", "--resolv-conf=off", "--timezone=off"]
        nspawn = [tool("systemd-nspawn"), *options, "-M", self.name, "-D", str(self.rootfs), "--", *self.program.argv]
        if self.program.ipc:
            nspawn = ["nsenter", f"--ipc={self.program.ipc}", "--", *nspawn]
        env = {"SYSTEMD_NSPAWN_SHARE_NS_IPC": "1"} if self.program.ipc else {}
        self._nspawn = self._machined.serve(["sh", "-ec", _IN_SCOPE, "sh", scope, *nspawn], env)
        wait_until(self._leader, f"machined knows {self.name}, see {self._machined.base}/log")
        self._born(self._leader())

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by nsenter: machinectl shell wants a systemd inside."""
        return run(["nsenter", f"--target={self.pid}", "--mount", "--ipc", "--pid", "--", *argv], check=check)

    def kill(self) -> None:
        """Kill as the others do; return when nspawn has ended, which reports it to machined."""
        super().kill()
        self._wait_for_nspawn()

    def stop(self) -> None:
        """Stop as the others do; return when nspawn has ended, which reports it to machined."""
        super().stop()
        self._wait_for_nspawn()

    def delete(self) -> None:
        """Delete its files too."""
        if self.pid:
            self.kill()
        self._forget()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _leader(self) -> int:
        shown = self._machined.ctl("show", self.name, "--property=Leader", "--value", check=False)
        return int(shown.stdout or 0)

    def _wait_for_nspawn(self) -> None:
        if self._nspawn is not None:
            self._nspawn.wait(LIMIT)
            self._nspawn = None
