"""Real Docker and Podman for tests: a dockerd of the session's own, and podman with storage of its own."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers import engines
from tests.system.engine_service import EngineService
from tests.system.engines import BUSYBOX, DIRECTORIES, EngineContainer, Program
from tests.system.room import LIMIT, Room, run, tool, wait_until

IMAGE = "nsb-busybox:1"

_PODMAN_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
tmp_dir = "{base}/tmp"
"""
_PODMAN_STORAGE = """
[storage]
driver = "vfs"
graphroot = "{base}/graph"
runroot = "{base}/run"
"""


class Daemon(EngineService):
    """An engine: its command line, its environment for nsbridge and its command, perhaps a service."""

    def __init__(self, kind: ContainerKind, room: Room, base: Path) -> None:
        super().__init__(room, base)
        self.kind = kind
        self.socket = base / "api.sock"

    def command(
        self, *words: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the engine's command (`docker …`, `podman …`) to its end."""
        argv = self._room.command([tool(str(self.kind)), *words])
        return run(argv, check=check, stdin=stdin, env={**os.environ, **self.env})

    def import_image(self) -> None:
        """Import the image that all containers here have: a static busybox and directories."""
        self.command("import", "-", IMAGE, stdin=image_layer())

    def serve(self, *argv: str) -> None:
        """Start the service and wait until it answers."""
        self.run_service(*argv, env=self.env)
        wait_until(lambda: self._has_died or self._answers(), f"{argv[0]} answers, see {self.base}/log")
        assert not self._has_died, (self.base / "log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def end_service(self) -> None:
        """Send SIGTERM, or SIGKILL if it takes too long; harmless when done before."""
        super().end_service()
        self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove every container and end."""
        with suppress(RuntimeError):
            ids = self.command("ps", "--all", "--quiet").stdout.decode().split()
            if ids:
                self.command("rm", "--force", *ids)
        self.end_service()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            try:
                client.connect(str(self.socket))
                client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(64)
            except (FileNotFoundError, ConnectionError):
                return False


class DockerDaemon(Daemon):
    """A dockerd with its own directories and socket, no network and no firewall rules."""

    def __init__(self, room: Room, base: Path) -> None:
        super().__init__(engines.docker.KIND, room, base)
        self.env = {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(base)}
        self._cgroup = f"nsb-{os.getpid()}"

    def start(self) -> None:
        """Start it, also after `end_service`; containers die with the daemon."""
        self.serve(
            tool("dockerd"),
            "--bridge=none",
            "--iptables=false",
            "--storage-driver=vfs",
            "--shutdown-timeout=1",
            f"--cgroup-parent={self._cgroup}",
            f"--data-root={self.base}/data",
            f"--exec-root={self.base}/exec",
            f"--pidfile={self.base}/pid",
            f"--host=unix://{self.socket}",
        )

    def close(self) -> None:
        """Close it, and remove the control group that dockerd leaves behind."""
        super().close()
        self._room.remove_cgroup(self._cgroup)


class Podman(Daemon):
    """Podman with storage of its own, found by CONTAINERS_CONF and CONTAINERS_STORAGE_CONF; no service at first."""

    def __init__(self, room: Room, base: Path) -> None:
        super().__init__(engines.podman.KIND, room, base)
        configuration, storage = base / "containers.conf", base / "storage.conf"
        configuration.write_text(_PODMAN_CONF.format(base=base), encoding="utf-8")
        storage.write_text(_PODMAN_STORAGE.format(base=base), encoding="utf-8")
        self.env = {"CONTAINERS_CONF": str(configuration), "CONTAINERS_STORAGE_CONF": str(storage)}

    def close(self) -> None:
        """Close it, and remove the control group that podman leaves (it stays if another podman's containers are in
        it).
        """
        super().close()
        self._room.remove_cgroup("libpod_parent")

    def start_service(self) -> None:
        """Serve the API on `socket`, which CONTAINER_HOST must name for others to find it."""
        self.serve(tool("podman"), "system", "service", "--time=0", f"unix://{self.socket}")


class DaemonContainer(EngineContainer):
    """A container of Docker or Podman, started and stopped with the engine's command."""

    def __init__(self, program: Program, engine: Daemon, image: str = IMAGE) -> None:
        super().__init__(program)
        self._image = image
        self.kind = engine.kind
        self.engine = engine
        self.id = ""

    def create(self) -> None:
        """Create it by the engine's create, and copy the files by its cp."""
        uid, gid = self.program.user
        options = ("--network=none", f"--user={uid}:{gid}", f"--name={self.name}", *self.program.options)
        created = self.engine.command("create", *options, self._image, *self.program.argv)
        self.id = created.stdout.decode().split()[-1]
        if self.program.files:
            self.engine.command("cp", "-", f"{self.name}:/", stdin=_archive(self.program.files))

    def start(self) -> None:
        """Start the same container again, if it was stopped: its files are as they were."""
        if not self.id:
            self.create()
        self.engine.command("start", self.name)
        asked = self.engine.command("inspect", "--format", "{{.State.Pid}}", self.name)
        self._born(int(asked.stdout))

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by the engine's exec."""
        return self.engine.command("exec", self.name, *argv, check=check)

    def pause(self) -> None:
        """Freeze its processes."""
        self.engine.command("pause", self.name)

    def resume(self) -> None:
        """Thaw them."""
        self.engine.command("unpause", self.name)

    def kill(self) -> None:
        """Kill as the others do; return when the engine knows as well."""
        super().kill()
        wait_until(lambda: self._status() == "exited", f"{self.kind} notices that {self.name} is dead")

    def stop(self) -> None:
        """Stop as the others do; return when the engine knows as well."""
        super().stop()
        wait_until(lambda: self._status() == "exited", f"{self.kind} notices that {self.name} has stopped")

    def delete(self) -> None:
        """Delete it; kill it if need be."""
        if self.id:
            self.engine.command("rm", "--force", self.id, check=False)
            self.id = ""
        self._forget()

    def _status(self) -> str:
        return self.engine.command("inspect", "--format", "{{.State.Status}}", self.name).stdout.decode().strip()


def image_layer() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for directory in DIRECTORIES:
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(tool("busybox"), BUSYBOX.lstrip("/"))
        shell = tarfile.TarInfo("bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(shell)
    return stream.getvalue()


def _archive(files: Mapping[str, str | Path]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for inside, source in files.items():
            archive.add(source, inside.lstrip("/"))
    return stream.getvalue()
