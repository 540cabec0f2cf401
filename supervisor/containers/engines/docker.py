"""Finds containers of Docker, `docker:NAME`: asks dockerd over its socket (1 ms for `locate` on Debian 12)."""

from __future__ import annotations

import os
import re

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.dockerapi import ApiClient, EngineClient, InspectedEngine
from nsbridge.supervisor.containers.unixhttp import local_socket_path

KIND = ContainerKind(
    "docker",
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,254}"),  # moby, daemon/names/names.go: RestrictedNamePattern
    "a docker name has at least two letters, digits, _, . and -, and begins with a letter or digit",
)


class Docker(InspectedEngine):
    """The socket is DOCKER_HOST's or the usual one."""

    kind = KIND
    name_checked_every = 10.0

    def client(self, deadline: float) -> EngineClient:
        """See InspectedEngine."""
        return ApiClient(str(KIND), _socket(), deadline)

    def is_installed(self) -> bool:
        """See Engine."""
        return "DOCKER_HOST" in os.environ or os.path.exists(_socket())  # noqa: PTH110


def _socket() -> str:
    return local_socket_path("DOCKER_HOST", "/var/run/docker.sock")
