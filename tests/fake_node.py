"""The files of containerd, CRI-O and runc on a node, for tests: containers whose init is the test's own process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from nsbridge.supervisor.containers import bundles, identity

CRI = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.container-name": "app",
}
CRIO = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.container.name": "app",
}


class Node:
    """The state of a node's engines, in a directory of the test's; each container's init is this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tasks = root / "containerd" / bundles.TASKS
        self.tasks.mkdir(parents=True)

    def containerd(self, namespace: str, name: str, annotations: Mapping[str, object] | None = None) -> Path:
        """Make a running container of containerd; return its bundle."""
        bundle = self.tasks / namespace / name
        self._fill(bundle, "init.pid", annotations)
        write(bundle / "options.json", json.dumps({"binary_name": "runc", "root": str(self.root / "shim")}))
        write(self.state(namespace, name), state_of(os.getpid(), name))
        return bundle

    def crio(self, name: str, annotations: Mapping[str, object] | None = None) -> Path:
        """Make a running container of CRI-O; return its bundle."""
        bundle = self.root / "storage/overlay-containers" / name / "userdata"
        self._fill(bundle, "pidfile", annotations)
        write(self.root / "runc" / name / "state.json", state_of(os.getpid(), name))
        return bundle

    def state(self, namespace: str, name: str) -> Path:
        """Return the state file that runc keeps of a container of containerd."""
        return self.root / "shim" / namespace / name / "state.json"

    def _fill(self, bundle: Path, pid_file: str, annotations: Mapping[str, object] | None) -> None:
        write(bundle / "config.json", json.dumps({"ociVersion": "1.0.2", "annotations": annotations}))
        write(bundle / pid_file, str(os.getpid()))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def state_of(pid: int, name: str) -> str:
    start = identity.read_stat(pid).start_time
    return json.dumps({"id": name, "init_process_pid": pid, "init_process_start": start})
