"""A real containerd for tests, with directories and a socket of its own: containers by `ctr`, pods by its CRI plugin.

Its shims and runc keep their state below /run/containerd all the same: those places are fixed. So the containers of
`ctr` are in a containerd namespace of the test session's own, and pods' ids are random.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nsbridge.supervisor.containers import engines
from tests.system.cri import Cri, CriError, Pod, PodContainer
from tests.system.engine_daemons import image_layer
from tests.system.engine_service import EngineService
from tests.system.engines import IDLE, EngineContainer, Program
from tests.system.room import LIMIT, Room, run, tool, wait_until

IMAGE = "docker.io/library/nsb-busybox:1"
CRI_NAMESPACE = "k8s.io"

_CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
[grpc]
address = "{base}/state/containerd.sock"
[ttrpc]
address = "{base}/state/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_cgroup = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{base}/cni"
bin_dir = "{base}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""


class ContainerdDaemon(EngineService):
    """The daemon, in the room; `cri` is its client."""

    def __init__(self, room: Room, base: Path) -> None:
        super().__init__(room, base)
        self.state = base / "state"
        self.socket = self.state / "containerd.sock"
        self.namespace = f"nsb-{os.getpid()}"
        self.env = {"NSBRIDGE_CONTAINERD_STATE": str(self.state)}
        self._cri: Cri | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        config = self.base / "config.toml"
        config.write_text(_CONFIG.format(base=self.base, image=IMAGE), encoding="utf-8")
        self.run_service(tool("containerd"), "--config", str(config), env=_path())
        wait_until(self._answers, f"containerd answers, see {self.base}/log")

    def import_image(self) -> None:
        """Import the image that all containers and pods here have, a static busybox: pods' pause program, too."""
        archive = self.base / "image.tar"
        archive.write_bytes(docker_archive(IMAGE, image_layer(), IDLE))
        for namespace in (self.namespace, CRI_NAMESPACE):
            self.ctr("images", "import", "--snapshotter=native", str(archive), namespace=namespace)

    def ctr(
        self, *words: str, namespace: str = "", check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `ctr` to its end."""
        argv = [tool("ctr"), f"--address={self.socket}", f"--namespace={namespace or self.namespace}", *words]
        return run(self._room.command(argv), check=check, stdin=stdin, env=_path())

    @property
    def cri(self) -> Cri:
        """Return the CRI client."""
        if self._cri is None:
            self._cri = Cri(self.socket)
        return self._cri

    def close(self) -> None:
        """End the daemon; containers must have been removed."""
        if self._cri is not None:
            self._cri.close()
        self.end_service()
        for cgroup in (self.namespace, CRI_NAMESPACE):
            self._room.remove_cgroup(cgroup)
        with suppress(OSError):
            (Path("/run/containerd/runc") / self.namespace).rmdir()

    def _answers(self) -> bool:
        assert self._service is not None
        log = (self.base / "log").read_text(encoding="utf-8", errors="replace")
        assert self._service.poll() is None, log[-2000:]
        return "containerd successfully booted" in log and self.ctr("version", check=False).returncode == 0


class CtrContainer(EngineContainer):
    """A container of containerd, made with `ctr`; its files stay over restarts."""

    kind = engines.containerd.KIND

    def __init__(self, program: Program, engine: ContainerdDaemon) -> None:
        super().__init__(program)
        self.engine = engine
        self.id = self.name
        self.name = f"{engine.namespace}/{self.id}"
        self._is_made = False

    def create(self) -> None:
        """Make the container, without a task."""
        mounts = [
            f"--mount=type=bind,src={source},dst={inside},options=rbind:rw"
            for inside, source in self.program.volumes.items()
        ]
        ipc = [f"--with-ns=ipc:{self.program.ipc}"] if self.program.ipc else []
        options = ["--snapshotter=native", *mounts, *ipc, *self.program.options]
        self.engine.ctr("containers", "create", *options, "--", IMAGE, self.id, *self.program.argv)
        self._is_made = True

    def start(self) -> None:
        """Start a new task of it."""
        if not self._is_made:
            self.create()
        self.engine.ctr("tasks", "start", "--detach", self.id)
        self._born(self._task()[0])

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by ctr's exec."""
        return self.engine.ctr("tasks", "exec", f"--exec-id=x{os.urandom(4).hex()}", self.id, *argv, check=check)

    def pause(self) -> None:
        """Freeze its processes."""
        self.engine.ctr("tasks", "pause", self.id)

    def resume(self) -> None:
        """Thaw them."""
        self.engine.ctr("tasks", "resume", self.id)

    def kill(self) -> None:
        """Kill init, and delete its task: only then may another one start."""
        super().kill()
        self._delete_task()

    def stop(self) -> None:
        """Stop it, and delete its task."""
        super().stop()
        self._delete_task()

    def delete(self) -> None:
        """Delete it; kill it if need be."""
        if self.pid:
            self._signal_kill()
            self._delete_task()
        if self._is_made:
            self.engine.ctr("containers", "delete", self.id, check=False)
            self._is_made = False
        self._forget()

    def _signal_kill(self) -> None:
        with suppress(AssertionError):
            EngineContainer.kill(self)

    def _delete_task(self) -> None:
        wait_until(lambda: self._task()[1] in ("STOPPED", ""), f"containerd notices that {self.name} has ended")
        self.engine.ctr("tasks", "delete", self.id, check=False)

    def _task(self) -> tuple[int, str]:
        for line in self.engine.ctr("tasks", "ls").stdout.decode().splitlines():
            words = line.split()
            if words[0] == self.id:
                return int(words[1]), words[2]
        return 0, ""


class PodOfOne(EngineContainer):
    """A pod with one container, `app`, made by CRI calls as the kubelet makes them.

    The pod's sandbox keeps its ipc namespace while the container restarts, so that a queue outlives it.
    """

    kind = engines.kubernetes.KIND

    def __init__(self, program: Program, engine: ContainerdDaemon, pod: str = "", namespace: str = "default") -> None:
        super().__init__(program)
        self.engine = engine
        self.pod = Pod(pod or self.name, namespace)
        self.name = f"{namespace}/{self.pod.name}/app"
        self.id = ""
        self._pod_id = ""
        self._attempt = 0

    def create(self) -> None:
        """Run the pod's sandbox if need be, and create the container."""
        if not self._pod_id:
            self._pod_id = self.engine.cri.run_pod(self.pod)
        app = PodContainer("app", self.program.argv, self.program.volumes)
        self.id = self.engine.cri.create(self._pod_id, self.pod, app, self._attempt)
        self._attempt += 1

    def start(self) -> None:
        """Start a new container in the pod, unless one is created and waits."""
        before = self.id
        if not before:
            self.create()
        self.engine.cri.start(self.id)
        state = self.engine.state / "io.containerd.runtime.v2.task" / CRI_NAMESPACE / self.id / "init.pid"
        self._born(int(state.read_text(encoding="ascii")))

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command by ctr's exec."""
        words = ("tasks", "exec", f"--exec-id=x{os.urandom(4).hex()}", self.id, *argv)
        return self.engine.ctr(*words, namespace=CRI_NAMESPACE, check=check)

    def kill(self) -> None:
        """Kill init, and remove the container; its pod stays."""
        super().kill()
        self._remove()

    def stop(self) -> None:
        """Stop the container by the CRI, and remove it; its pod stays."""
        self.engine.cri.stop(self.id)
        self._wait_dead(LIMIT)
        self._remove()

    def delete(self) -> None:
        """Remove the pod."""
        if self._pod_id:
            with suppress(CriError):
                self.engine.cri.remove_pod(self._pod_id)
            self._pod_id = self.id = ""
        self._forget()

    def _remove(self) -> None:
        self.engine.cri.remove(self.id)
        self.id = ""


def docker_archive(reference: str, layer: bytes, argv: Sequence[str]) -> bytes:
    """Return an image with one layer, as `docker save` writes it."""
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Cmd": list(argv)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    parts: Mapping[str, bytes] = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _path() -> dict[str, str]:
    """Return an environment in which containerd finds runc and its shim."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"}
