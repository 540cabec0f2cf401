"""The registry of container engines: one line each. See engine.py for what an engine provides."""

from __future__ import annotations

from nsbridge.config import containerkind
from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.engines import (
    compose,
    containerd,
    crun,
    docker,
    docker_label,
    host,
    incus,
    kubernetes,
    lxc,
    machine,
    ns,
    pid,
    pidfile,
    podman,
    runc,
)

# Docker, Podman and containerd run their containers with runc or crun, and Kubernetes with containerd or CRI-O. They
# come first, so that `nsbridge containers` shows the names that people gave.
_DOCKER, _PODMAN = docker.Docker(), podman.Podman()
_OURS: tuple[Engine, ...] = (
    _DOCKER,
    _PODMAN,
    compose.Compose((_DOCKER, _PODMAN)),
    docker_label.DockerLabel((_DOCKER, _PODMAN)),
    incus.Incus(),
    lxc.Lxc(),
    machine.Machine(),
    kubernetes.Kubernetes(),
    containerd.Containerd(),
    runc.Runc(),
    crun.Crun(),
    pidfile.Pidfile(),
    pid.Pid(),
    ns.NamespaceFile(),
    host.Host(),
)

_ENGINES: dict[ContainerKind, Engine] = {}


def register(engine: Engine) -> None:
    """Make an engine known to the supervisor and to the configuration. Raises ValueError if its prefix is taken."""
    containerkind.register(engine.kind)
    _ENGINES[engine.kind] = engine


def engine_of(kind: ContainerKind) -> Engine:
    """Return the engine of a kind. Raises LookupError if it is not registered."""
    if kind not in _ENGINES:
        raise LookupError(f"no engine is registered for containers of the kind {kind}")
    return _ENGINES[kind]


def all_engines() -> tuple[Engine, ...]:
    """Return the engines in the order in which their containers are listed."""
    return tuple(_ENGINES.values())


for _engine in _OURS:
    register(_engine)
