"""Containers of containerd for comings.py: of `ctr`, of pods that restart, and pods that replace each other."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from nsbridge.supervisor.containers import engines
from tests.system.containerd_daemon import ContainerdDaemon, CtrContainer, PodOfOne
from tests.system.engines import IDLE, EngineContainer, Program
from tests.system.room import wait_until

RAN = "srv/ran"  # touched by a container's init as the first thing it does
RUNNING = (*IDLE[:-1], f": > /{RAN}; {IDLE[-1]}")
_numbers = itertools.count(1)


class CtrWithVolume(CtrContainer):
    """Container of containerd, with a directory of the host at /srv."""

    @property
    def rootfs(self) -> Path:
        """Return the part of it that is on the host."""
        return Path(self.program.volumes["/srv"]).parent


class PodWithVolume(PodOfOne):
    """The same as a pod."""

    @property
    def rootfs(self) -> Path:
        """Return the part of it that is on the host."""
        return Path(self.program.volumes["/srv"]).parent


class RollingPods(EngineContainer):
    """Pods that replace each other, as a Deployment's do: the new one runs before the old one ends.

    They share a volume. The time to the agent's RUNNING is counted from the old one's end.
    """

    kind = engines.kubernetes.KIND

    def __init__(self, program: Program, engine: ContainerdDaemon) -> None:
        super().__init__(program)
        self._engine = engine
        self._deployment = self.name
        self._pods: list[PodWithVolume] = []
        self.name = f"default/{self._deployment}-*/app"

    @property
    def rootfs(self) -> Path:
        """Return the part of them that is on the host."""
        return Path(self.program.volumes["/srv"]).parent

    def create(self) -> None:
        """Do nothing: a pod is created when it starts."""

    def start(self) -> None:
        """Start the first pod."""
        if not self._pods:
            self._start_new()

    def kill(self) -> None:
        """Start a new pod, kill the old one, and remove it."""
        self._replace(EngineContainer.kill)

    def stop(self) -> None:
        """Do the same, but let the old one end by itself."""
        self._replace(EngineContainer.stop)

    def _replace(self, end: Callable[[EngineContainer], None]) -> None:
        self._start_new()
        old = self._pods.pop(0)
        end(old)
        os.utime(self.rootfs / RAN)
        old.delete()

    def exec(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the newest pod."""
        return self._pods[-1].exec(argv, check=check)

    def delete(self) -> None:
        """Remove all pods."""
        while self._pods:
            self._pods.pop().delete()

    def _start_new(self) -> None:
        pod = PodWithVolume(self.program, self._engine, f"{self._deployment}-{next(_numbers)}")
        self._pods.append(pod)
        pod.start()
        self.pid = pod.pid
        wait_until((self.rootfs / RAN).exists, f"init of {pod.name} runs")


def of_containerd(engine: str, daemon: ContainerdDaemon, cleanup: ExitStack) -> list[EngineContainer]:
    """Return the same of containerd: containers of `ctr`, or of pods."""

    def started(container: EngineContainer) -> EngineContainer:
        cleanup.callback(container.delete)
        container.start()
        return container

    def program(ipc: str = "") -> Program:
        srv = daemon.base / f"volume-{next(_numbers)}" / "srv"
        srv.mkdir(parents=True)
        return Program(RUNNING, volumes={"/srv": srv}, ipc=ipc)

    if engine == "rolling":
        return [started(RollingPods(program(), daemon)), started(PodWithVolume(program(), daemon))]
    if engine == "k8s":
        return [started(PodWithVolume(program(), daemon)), started(PodWithVolume(program(), daemon))]
    keeper = started(CtrContainer(Program(), daemon))
    joined = program(f"/proc/{keeper.pid}/ns/ipc")
    return [started(CtrWithVolume(program(), daemon)), started(CtrWithVolume(joined, daemon))]
