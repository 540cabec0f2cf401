"""Real containers of LXC for tests, in a directory of their own (NSBRIDGE_LXC_PATH); without network and templates."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nsbridge.supervisor.containers import engines
from tests.system.engines import EngineContainer, Program, fill_rootfs
from tests.system.room import Room, run, tool, wait_until

_CONFIG = """
lxc.rootfs.path = dir:{directory}/rootfs
lxc.uts.name = {name}
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.autodev = 1
lxc.log.file = {directory}/log
lxc.mount.auto = proc:mixed
"""


class LxcContainer(EngineContainer):
    """A container of LXC; its files stay when it is started again."""

    kind = engines.lxc.KIND

    def __init__(self, program: Program, room: Room, base: Path) -> None:
        super().__init__(program)
        self._room = room
        self.path = base / "lxc"  # LXC's directory of containers
        self.directory = self.path / self.name

    @property
    def rootfs(self) -> Path:
        """Return the directory on the host's disk; it may run or not."""
        return self.directory / "rootfs"

    def create(self) -> None:
        """Write what lxc-create would."""
        fill_rootfs(self.rootfs, self.program)
        init = self.rootfs / "sbin/init"
        init.parent.mkdir(exist_ok=True)
        init.write_text(f"#!/bin/sh\nexec {shlex.join(self.program.argv)}\n", encoding="utf-8")
        init.chmod(0o755)
        lines = [_CONFIG.format(directory=self.directory, name=self.name)]
        if self.program.ipc:
            lines.append(f"lxc.namespace.share.ipc = {self.program.ipc}\n")
        (self.directory / "config").write_text("".join(lines), encoding="utf-8")

    def start(self) -> None:
        """Start it in the background, as lxc-start does by default."""
        if not self.directory.exists():
            self.create()
        self._lxc("lxc-start")
        self._born(int(self._lxc("lxc-info", "-p", "-H").stdout))

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by lxc-attach."""
        return self._lxc("lxc-attach", "--", *argv, check=check)

    def pause(self) -> None:
        """Freeze its processes."""
        self._lxc("lxc-freeze")

    def resume(self) -> None:
        """Thaw them."""
        self._lxc("lxc-unfreeze")

    def kill(self) -> None:
        """Kill as the others do; return when its monitor process has ended as well."""
        super().kill()
        wait_until(lambda: b"STOPPED" in self._state(), f"the monitor process of {self.name} ends")

    def stop(self) -> None:
        """Stop as the others do; return when its monitor process has ended as well."""
        super().stop()
        wait_until(lambda: b"STOPPED" in self._state(), f"the monitor process of {self.name} ends")

    def delete(self) -> None:
        """Delete its directory too, with its rootfs."""
        if self.pid:
            self._lxc("lxc-stop", "-k", check=False)
            self.pid = 0
        self._forget()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _state(self) -> bytes:
        return self._lxc("lxc-info", "-s", "-H").stdout

    def _lxc(self, program: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        command = [tool(program), "-P", str(self.path), "-n", self.name, *words]
        return run(self._room.command(command), check=check, env=os.environ)
