"""Finds containers of pods on this node, `k8s:NAMESPACE/POD/CONTAINER`, by the annotations of their bundles.

Some facts about pods, and what they mean here:
* The container runtime (containerd's CRI plugin, CRI-O) writes namespace, pod and container into the annotations of the
  bundle's config.json. The API server is not asked: it may be away, and it does not know the process.
* A Deployment's pods have random names, so POD may be a shell pattern. Exactly one running container must match. While
  the old and the new pod of a rolling update both run, an agent that serves the old one stays there until it ends. An
  agent that serves none waits until one of the two has ended.
* A container that starts again in its pod has a new ID, under the same name; the old one no longer runs.
* A pod's author does not write these annotations, but can name a pod or container at will. So a name that is
  claimed twice is served by no one, and a file that cannot be read never hides the others.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.bundles import (
    Bundle,
    containerd_bundles,
    crio_bundles,
    crio_directories,
    runtime_roots,
    state_roots,
)
from nsbridge.supervisor.containers.directories import follow_directories
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import Found, NotRunning, quoted
from nsbridge.supervisor.containers.rows import Listed, row_of
from nsbridge.supervisor.containers.statefiles import START

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123, as Kubernetes has it
KIND = ContainerKind(
    "k8s",
    re.compile(rf"{_LABEL}/[a-z0-9*?\[][a-z0-9.*?\[\]!-]{{0,252}}/{_LABEL}"),
    'write namespace, pod and container, like "k8s:shop/web-*/app"; the pod may be a shell pattern',
)
_CRI_NAMESPACE = "k8s.io"  # of containerd, whose CRI plugin puts all pods there
_CONTAINERD = (
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.container-name",
)
_CRIO = ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name")
_TYPES = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_SHOWN = 5  # names of containers in one message


@dataclass(frozen=True, slots=True)
class PodContainer:
    """A container of a pod, running or not."""

    namespace: str
    pod: str
    container: str
    bundle: Bundle

    def __str__(self) -> str:
        return f"{KIND}:{self.namespace}/{self.pod}/{self.container}"

    def matches(self, namespace: str, pattern: str, container: str) -> bool:
        """True if a configured name means it."""
        same = (self.namespace, self.container) == (namespace, container)
        return same and fnmatch.fnmatchcase(self.pod, pattern)


class Kubernetes(Engine):
    """All pods of this node, whichever runtime has them."""

    kind = KIND
    blocks = True
    has_events = True
    steps_of_a_start = 6  # of the sandbox, of the container

    def locate(self, name: str) -> Found:
        """See Engine. What is damaged is waited for as well: a controller replaces pods without asking anyone."""
        self.check_name(name)
        namespace, pattern, container = name.split("/")
        faults: list[str] = []
        running: list[tuple[PodContainer, Found]] = []
        for each in pod_containers(faults, lambda made: made.matches(namespace, pattern, container)):
            try:
                running.append((each, each.bundle.running()))
            except NsbridgeError as error:
                faults.insert(0, str(error))
        if len(running) == 1:
            each, found = running[0]
            return replace(found, serves="" if str(each) == f"{KIND}:{name}" else str(each))
        if running:
            names = [str(each) for each, _ in running]
            raise NotRunning(f"{len(names)} running containers match, and exactly one must: {_some(names)}")
        why = f"; {faults[0]}" if faults else ""
        raise NotRunning(f"no running container of a pod on this node matches {quoted(name)}{why}")

    def follow(self, writer: int) -> None:
        """See Engine: runc makes a directory for a container, and removes the FIFO in it when it starts."""
        follow_directories(runtime_roots(), START, writer)

    def is_installed(self) -> bool:
        """See Engine."""
        try:
            return any(os.path.isdir(state) for state in state_roots()) or bool(crio_directories())  # noqa: PTH112
        except NsbridgeError:
            return True

    def listed(self) -> Iterator[Listed]:
        """See Engine."""
        for each in sorted(pod_containers([]), key=str):
            yield row_of(str(each), each.bundle.running, about=None)


def pod_containers(
    faults: list[str], wanted: Callable[[PodContainer], bool] = lambda _made: True
) -> Iterator[PodContainer]:
    """Yield the containers of pods that are wanted; add to `faults` what is wrong with bundles.

    Checking who may change a file takes 0.5 ms, too long for hundreds. So files are first read without, and those of
    containers that are not wanted are left at that.
    """
    for bundle in _bundles(faults):
        if not _may_be_wanted(bundle, wanted):
            continue
        try:
            made = parse_annotations(bundle.config(), bundle)
            if made is not None and wanted(made):
                yield made
        except ValueError as error:
            faults.append(f"{bundle.which}: its config.json {error}")
        except NsbridgeError as error:
            faults.append(str(error))


def _may_be_wanted(bundle: Bundle, wanted: Callable[[PodContainer], bool]) -> bool:
    try:
        made = parse_annotations(bundle.glance(), bundle)
    except (OSError, ValueError):
        return True  # the checked reading says what is wrong
    return made is not None and wanted(made)


def parse_annotations(text: bytes, bundle: Bundle) -> PodContainer | None:
    """Return the container of a config.json; None if it is in no pod. Raises ValueError if the file is damaged."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    annotations = config.get("annotations") if isinstance(config, dict) else None
    if not isinstance(annotations, dict) or "sandbox" in [annotations.get(key) for key in _TYPES]:
        return None
    for keys in (_CONTAINERD, _CRIO):
        names = [annotations.get(key) for key in keys]
        if any(name is not None for name in names):
            exact = "/".join(map(str, names))
            if not KIND.pattern or not KIND.pattern.fullmatch(exact) or re.search(r"[*?\[\]!]", exact):
                raise ValueError(f"has annotations that no container of a pod can have: {quoted(exact)}")
            namespace, pod, container = exact.split("/")
            return PodContainer(namespace, pod, container, bundle)
    return None


def _bundles(faults: list[str]) -> Iterator[Bundle]:
    sources = [containerd_bundles(state, _CRI_NAMESPACE) for state in state_roots()]
    for source in (*sources, crio_bundles()):
        try:
            yield from source
        except NsbridgeError as error:
            faults.append(str(error))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
