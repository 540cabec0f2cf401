"""Runs a DaemonSet's pod as the kubelet would, on the tests' containerd: volumes, capabilities, users, commands.

The image is the tests' busybox; nsbridge itself is mounted from this machine, because no registry is reachable here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.system.containerd_daemon import CRI_NAMESPACE, ContainerdDaemon
from tests.system.cri import Pod, PodContainer

ROOT = Path(__file__).parents[2]


class DaemonSetPod:
    """The pod of a DaemonSet on this node, whose paths of the host are `host_paths`, by those in the manifest."""

    def __init__(
        self, documents: list[dict[str, Any]], engine: ContainerdDaemon, base: Path, host_paths: Mapping[str, Path]
    ) -> None:
        (daemonset,) = [each for each in documents if each["kind"] == "DaemonSet"]
        self._spec = daemonset["spec"]["template"]["spec"]
        self._config_maps = {
            each["metadata"]["name"]: each["data"] for each in documents if each["kind"] == "ConfigMap"
        }
        self._engine = engine
        self._base = base
        self._host_paths = host_paths
        self._volumes = {volume["name"]: self._volume(volume) for volume in self._spec["volumes"]}
        self._pod = Pod("nsbridge-x7k2p", "nsbridge", host_pid=self._spec["hostPID"])
        self._pod_id = engine.cri.run_pod(self._pod)
        self._attempt = 0

    def start(self, name: str, **replaced: Any) -> str:
        """Start one of its containers, perhaps with other values for keys of its manifest; return its id."""
        (spec,) = [each for each in self._spec["containers"] if each["name"] == name]
        made = self._container(spec | replaced)
        container = self._engine.cri.create(self._pod_id, self._pod, made, self._attempt)
        self._attempt += 1
        self._engine.cri.start(container)
        return container

    def pid(self, container: str) -> int:
        """Return the pid of a container's init."""
        file = self._engine.state / "io.containerd.runtime.v2.task" / CRI_NAMESPACE / container / "init.pid"
        return int(file.read_text(encoding="ascii"))

    def stop(self, container: str) -> None:
        """Stop a container as the kubelet does, and remove it."""
        self._engine.cri.stop(container, self._spec["terminationGracePeriodSeconds"])
        self._engine.cri.remove(container)

    def remove(self) -> None:
        """Remove the pod."""
        self._engine.cri.remove_pod(self._pod_id)

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        """Return the directory of a volume on the host; a ConfigMap's has the kubelet's links and its mode 0777."""
        if "hostPath" in volume:
            path: str = volume["hostPath"]["path"]
            return self._host_paths[path]
        directory: Path = self._base / "volumes" / volume["name"]
        data = directory / "..2026_11_29"
        data.mkdir(parents=True)
        for name, text in self._config_maps[volume["configMap"]["name"]].items():
            (data / name).write_text(text, encoding="utf-8")
            (directory / name).symlink_to(f"..data/{name}")
        (directory / "..data").symlink_to(data.name)
        directory.chmod(0o777)
        return directory

    def _container(self, spec: Mapping[str, Any]) -> PodContainer:
        context = spec["securityContext"]
        mounts: dict[str, str | Path] = {}
        readonly: dict[str, str | Path] = {**_interpreter()}
        for mount in spec["volumeMounts"]:
            source = (self._volumes[mount["name"]] / mount.get("subPath", ".")).resolve()
            (readonly if mount.get("readOnly") else mounts)[mount["mountPath"]] = source
        if "/run/containerd" in readonly:  # the tests' containerd has another place for its own state only
            readonly["/run/containerd/runc"] = Path("/run/containerd/runc")
        return PodContainer(
            spec["name"],
            spec["command"],
            mounts,
            readonly,
            environment={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            capabilities=context["capabilities"].get("add", []),
            drops=context["capabilities"]["drop"],
            readonly_root=context["readOnlyRootFilesystem"],
            user=(context["runAsUser"], context["runAsGroup"]),
            seccomp=context["seccompProfile"]["type"] == "RuntimeDefault",
            no_new_privileges=context.get("allowPrivilegeEscalation") is False,
        )


def _interpreter() -> dict[str, Path]:
    """Return what this Python and nsbridge consist of, by path inside."""
    paths = ["/usr", "/lib", "/lib64", "/etc/group", "/etc/passwd", sys.base_prefix, sys.prefix, str(ROOT)]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=len):
        if os.path.exists(path) and not any(path.startswith(f"{known}/") for known in found):
            found[path] = Path(path).resolve()
    return found
