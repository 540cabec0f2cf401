"""Finds the container of Docker or Podman that has a label, `docker-label:KEY=VALUE`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.labels import LabelledEngine

KIND = ContainerKind(
    "docker-label",
    re.compile(r"[^=\s\x00-\x1f\x7f]{1,128}=[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,512}"),
    'write a key and its value, like "docker-label:role=frontend"; neither has control characters, a key has no space',
)
# Labels that tools write for themselves, and that are no names for a person.
_TOOLS = ("com.docker.compose.", "io.podman.", "io.buildah.", "org.opencontainers.image.", "PODMAN_SYSTEMD_UNIT")


class DockerLabel(LabelledEngine):
    """The first = ends the key."""

    kind = KIND

    def labels_of(self, name: str) -> Mapping[str, str]:
        """See LabelledEngine."""
        key, _, value = name.partition("=")
        return {key: value}

    def names_of(self, labels: Mapping[str, str]) -> Iterable[str]:
        """See LabelledEngine."""
        return [f"{key}={value}" for key, value in labels.items() if not key.startswith(_TOOLS)]
