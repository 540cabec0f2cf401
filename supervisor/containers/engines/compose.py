"""Finds the container of a Compose project's service, `compose:PROJECT/SERVICE`, by the labels that Compose gives it.

docker compose, docker-compose and podman-compose write the same labels. A container of `compose run` is not the
service's. Compose labels the images that it builds as well (project and service), so such labels of an image do not
make a container a foreign one if Compose has numbered the container: that label is in no image of Compose's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.dockerapi import Labelled
from nsbridge.supervisor.containers.labels import LabelledEngine

# Projects: compose-go has it in loader/normalize.go; services: in schema/compose-spec.json.
KIND = ContainerKind(
    "compose",
    re.compile(r"[a-z0-9][a-z0-9_-]{0,127}/[a-zA-Z0-9._-]{1,128}"),
    'write project and service, like "compose:shop/web"',
)
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
NUMBER, ONE_OFF = "com.docker.compose.container-number", "com.docker.compose.oneoff"


class Compose(LabelledEngine):
    """A service that is scaled to several containers is waited for, until it has one."""

    kind = KIND

    def labels_of(self, name: str) -> Mapping[str, str]:
        """See LabelledEngine."""
        project, _, service = name.partition("/")
        return {PROJECT: project, SERVICE: service}

    def names_of(self, labels: Mapping[str, str]) -> Iterable[str]:
        """See LabelledEngine."""
        return [f"{labels[PROJECT]}/{labels[SERVICE]}"] if {PROJECT, SERVICE} <= labels.keys() else []

    def is_meant(self, wanted: Mapping[str, str], found: Labelled, of_image: Mapping[str, str]) -> bool:
        """See LabelledEngine."""
        if found.labels.get(ONE_OFF, "").lower() == "true":
            return False
        is_numbered = NUMBER in found.labels and NUMBER not in of_image
        return super().is_meant(wanted, found, {} if is_numbered else of_image)
