"""Finds the bundles of containers that containerd and CRI-O keep, and the init process of one: `containerd:`, `k8s:`.

Some facts about them, and what they mean here:
* containerd makes STATE/io.containerd.runtime.v2.task/NAMESPACE/ID when it creates the container's task, and removes it
  with the task. CRI-O makes /run/containers/storage/*-containers/ID/userdata. Both hold the OCI config.json, which is
  not replaced by rename: it is whole once the pid file is there.
* A pid alone proves nothing (identity.py), and the pid file stays if its writer was killed. The runtime below (runc,
  crun) keeps the start time beside the pid, so both files must name the same process.
* containerd's shim gives runc a state directory that does not depend on STATE: /run/containerd/runc, unless the
  bundle's options.json names another one, as with Docker.
* Names and annotations in these files are foreign: files are read up to a limit, and shown escaped.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from nsbridge.supervisor.containers.identity import (
    PID_PATTERN,
    ContainerRefused,
    Found,
    NotRunning,
    escaped,
    quoted,
    read_state,
)
from nsbridge.supervisor.containers.rows import names_in
from nsbridge.supervisor.containers.statefiles import CRUN_STATE, RUNC_STATE

CONFIG_LIMIT = 1 << 20  # bytes; a pod's config.json has 10 kB, and its environment and annotations have limits
TASKS = "io.containerd.runtime.v2.task"
_RUNC_ROOT = "/run/containerd/runc"  # containerd, pkg/process/init.go: RuncRoot
_CRIO_STORAGE = "/run/containers/storage"  # containers/storage: runroot
_CRIO_ROOTS = ("/run/runc", "/run/crun")
_STATE_ROOTS = ("/run/containerd", "/run/k3s/containerd")  # k3s and RKE2 have their own
_SMALL = 4096  # bytes of a pid file, of options.json


class UnknownRuntime(NotRunning):
    """The runtime below keeps no state that is understood here."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The directory of a container's config.json, and where its runtime keeps its state."""

    directory: str
    id: str
    pid_file: str
    namespace: str = ""  # containerd's; empty for CRI-O
    which: str = ""  # for messages

    def config(self) -> bytes:
        """Return its config.json. Raises NotRunning, ContainerRefused."""
        return self._read("config.json", CONFIG_LIMIT)

    def glance(self) -> bytes:
        """Return its config.json, unchecked, so that bundles can be skipped quickly. Raises OSError, ValueError."""
        fd = os.open(f"{self.directory}/config.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("is not a regular file")
            text = file.read(CONFIG_LIMIT + 1)
        if len(text) > CONFIG_LIMIT:
            raise ValueError("is too long")
        return text

    def running(self) -> Found:
        """Return its init. Raises UnknownRuntime, NotRunning, ContainerRefused."""
        pid = self._pid()
        for directory, file in itertools.product(self._state_directories(), (RUNC_STATE, CRUN_STATE)):
            if os.path.lexists(f"{directory}/{file.name}"):
                found = file.running(directory, self.id, self.which)
                break
        else:
            raise UnknownRuntime(f"{self.which} has no state of runc or crun in {self._state_directories()[0]}")
        if found.pid != pid and pid == self._pid():  # else it is just starting again
            raise ContainerRefused(
                f"{self.which}: {escaped(self.directory)}/{self.pid_file} names process {pid}, and its runtime's state "
                f"process {found.pid}"
            )
        return found

    def _pid(self) -> int:
        text = self._read(self.pid_file, _SMALL).decode("ascii", "backslashreplace").strip()
        if not PID_PATTERN.fullmatch(text):
            raise ContainerRefused(f"{self.which}: {self.pid_file} holds {quoted(text)}, not a process number")
        return int(text)

    def _state_directories(self) -> list[str]:
        if not self.namespace:
            return [f"{root}/{self.id}" for root in _roots("NSBRIDGE_RUNC_ROOT", _CRIO_ROOTS)]
        return [f"{self._runtime_root()}/{self.namespace}/{self.id}"]

    def _runtime_root(self) -> str:
        try:
            options = json.loads(self._read("options.json", _SMALL) or b"{}")
        except (ValueError, RecursionError, NotRunning):
            options = None
        root = options.get("root") if isinstance(options, dict) else None
        return root if isinstance(root, str) and root.startswith("/") else _RUNC_ROOT

    def _read(self, file: str, limit: int) -> bytes:
        return read_state(f"{self.directory}/{file}", limit, self.which)


def state_roots() -> tuple[str, ...]:
    """Return the directories that containerd's `state` may be."""
    return _roots("NSBRIDGE_CONTAINERD_STATE", _STATE_ROOTS)


def containerd_bundle(state: str, namespace: str, container: str) -> Bundle:
    """Return the bundle that a container of containerd has, if it has a task."""
    which = f"container {quoted(f'{namespace}/{container}')} of containerd"
    return Bundle(f"{state}/{TASKS}/{namespace}/{container}", container, "init.pid", namespace, which)


def containerd_bundles(state: str, namespace: str) -> Iterator[Bundle]:
    """Yield the bundles of one namespace of containerd. Raises NotPermitted."""
    for container in names_in(f"{state}/{TASKS}/{namespace}"):
        yield containerd_bundle(state, namespace, container)


def crio_bundles() -> Iterator[Bundle]:
    """Yield the bundles of CRI-O; Podman's containers of root are among them. Raises NotPermitted."""
    for storage in crio_directories():
        for container in names_in(storage):
            which = f"container {quoted(container)} of CRI-O"
            yield Bundle(f"{storage}/{container}/userdata", container, "pidfile", which=which)


def crio_directories() -> list[str]:
    """Return the directories of CRI-O's containers, one for each storage driver (overlay-containers). Raises
    NotPermitted.
    """
    (root,) = _roots("NSBRIDGE_CRIO_STORAGE", (_CRIO_STORAGE,))
    return [f"{root}/{name}" for name in names_in(root) if name.endswith("-containers")]


def runtime_roots() -> list[str]:
    """Return where runc keeps a directory for each container of a pod: their changes report starts and ends."""
    return [f"{_RUNC_ROOT}/k8s.io", *_roots("NSBRIDGE_RUNC_ROOT", _CRIO_ROOTS)]


def _roots(variable: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    forced = os.environ.get(variable)
    return (forced,) if forced else usual
