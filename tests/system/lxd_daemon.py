"""A real LXD for tests, with its own directory, storage and image, and no network; Incus has the same API."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsbridge.supervisor.containers import engines
from tests.system.engine_service import EngineService
from tests.system.engines import DIRECTORIES, EngineContainer, Program, put
from tests.system.room import LIMIT, Room, run, tool, wait_until

IMAGE = "nsb"
_PRESEED = b"""
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {path: /, pool: default, type: disk}}}]
"""
_METADATA = b"architecture: x86_64\ncreation_date: 1\nproperties: {description: nsb}\n"


class Lxd(EngineService):
    """The daemon, and its command `lxc`."""

    def __init__(self, room: Room, base: Path) -> None:
        super().__init__(room, base)
        self.env = {"LXD_DIR": str(base)}
        self._env = {**os.environ, **self.env, "LXD_CONF": str(base / "client"), "HOME": str(base)}

    def start(self) -> None:
        """Start it, also after `end_service`: its containers run on meanwhile."""
        self.run_service(tool("lxd"), "--group=root", env=self._env)
        self._lxd("waitready", f"--timeout={LIMIT:g}")

    def import_image(self) -> None:
        """Make its storage and import the image that all containers here have."""
        self._lxd("init", "--preseed", stdin=_PRESEED)
        archive = self.base / "image.tar.gz"
        archive.write_bytes(_image())
        self.command("image", "import", str(archive), f"--alias={IMAGE}")

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run `lxc …` to its end."""
        return run(self._room.command([tool("lxc"), *words]), check=check, env=self._env)

    def query(self, target: str) -> Any:
        """Return the metadata of an answer of the API."""
        return json.loads(self.command("query", target).stdout)

    def close(self) -> None:
        """Remove every container and end."""
        if self._service is not None:
            with suppress(RuntimeError):
                for instance in self.query("/1.0/instances?recursion=1"):
                    self.command("delete", "--force", instance["name"], check=False)
        self.end_service()
        for cgroup in ("lxc.pivot", "lxc.monitor", "lxc.payload"):
            self._room.remove_cgroup(cgroup)

    def _lxd(self, *words: str, stdin: bytes | None = None) -> None:
        run(self._room.command([tool("lxd"), *words]), env=self._env, stdin=stdin)


class LxdContainer(EngineContainer):
    """A privileged container; its files stay when it is started again."""

    kind = engines.incus.KIND

    def __init__(self, program: Program, lxd: Lxd) -> None:
        super().__init__(program)
        self.lxd = lxd
        self._is_made = False

    @property
    def rootfs(self) -> Path:
        """Return the directory on the host's disk; it may run or not."""
        return self.lxd.base / "storage-pools/default/containers" / self.name / "rootfs"

    def create(self) -> None:
        """Create it from the image, and write its init."""
        options = ["--config=security.privileged=true"]
        if self.program.ipc:
            options.append(f"--config=raw.lxc=lxc.namespace.share.ipc = {self.program.ipc}")
        self.lxd.command("init", IMAGE, self.name, *options)
        self._is_made = True
        init = self.rootfs / "sbin/init"
        init.write_text(f"#!/bin/sh\nexec {shlex.join(self.program.argv)}\n", encoding="utf-8")
        init.chmod(0o755)
        for inside, source in self.program.files.items():
            put(source, self.rootfs / inside.lstrip("/"))

    def start(self) -> None:
        """Start it (again)."""
        if not self._is_made:
            self.create()
        wait_until(self._has_started, f"LXD starts {self.name}")
        self._born(int(self._state()["pid"]))

    def restart(self) -> None:
        """Restart it by LXD's own restart."""
        self.lxd.command("restart", "--force", self.name)
        self._born(int(self._state()["pid"]))

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by LXD's exec."""
        return self.lxd.command("exec", self.name, "--", *argv, check=check)

    def pause(self) -> None:
        """Freeze its processes."""
        self.lxd.command("pause", self.name)

    def resume(self) -> None:
        """Thaw them."""
        self.lxd.command("start", self.name)

    def kill(self) -> None:
        """Kill it by LXD: after a kill that LXD did not ask for, its next start may take a minute."""
        self.lxd.command("stop", "--force", self.name, check=False)
        self._wait_dead(LIMIT)
        self._wait_stopped()

    def stop(self) -> None:
        """Do the same: the usual stop asks an init with more to it than ours."""
        self.kill()

    def delete(self) -> None:
        """Delete it; kill it if need be."""
        if self._is_made:
            self.lxd.command("delete", "--force", self.name, check=False)
            self._is_made = False
        self._forget()

    def _has_started(self) -> bool:
        """Start it; False while LXD is busy with what follows its end."""
        done = self.lxd.command("start", self.name, check=False)
        assert not done.returncode or b"Instance is busy" in done.stderr, done.stderr
        return not done.returncode

    def _wait_stopped(self) -> None:
        wait_until(lambda: self._state()["status"] == "Stopped", f"LXD notices that {self.name} has stopped")

    def _state(self) -> Any:
        return self.lxd.query(f"/1.0/instances/{self.name}/state")


def _image() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        _add(archive, "metadata.yaml", _METADATA)
        for directory in ("", *DIRECTORIES, "sbin"):
            entry = tarfile.TarInfo(f"rootfs/{directory}".rstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(tool("busybox"), "rootfs/bin/busybox")
        shell = tarfile.TarInfo("rootfs/bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(shell)
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
