"""Finds containers of Incus and LXD, `incus:NAME`, by the API that both serve on a Unix socket (some ms for `locate`).

Some facts about the API, and what they mean here:
* The socket is that of INCUS_SOCKET, INCUS_DIR, LXD_SOCKET or LXD_DIR, as for the engines' own commands, else the first
  usual one on which a process listens. Incus comes before LXD.
* An instance is in a project. `incus:NAME` is one of the project `default`, `incus:PROJECT/NAME` another's.
* In a cluster the engine also answers for other members, with pids of *their* processes. An instance's location is
  compared with the member's own name, and a container elsewhere is not running here.
* An instance may be a virtual machine, whose pid is the hypervisor's. It has no namespaces to join.
* An instance is renamed only while it is stopped, so a running one keeps its name.
* The pid is that of init. The same answer after /proc was read proves that what was read is about it (dockerapi.py).
* Events come over a websocket. `instance-restarted` comes when the new init runs.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Found,
    NotRunning,
    found_by_pid,
    not_known,
    quoted,
)
from nsbridge.supervisor.containers.rows import Listed, row
from nsbridge.supervisor.containers.unixhttp import UnixHttp, accepts

DEFAULT_PROJECT = "default"
# Instances: incus, shared/validate: IsHostname; projects: cmd/incusd/api_project.go, projectValidateName.
KIND = ContainerKind(
    "incus",
    re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,62}/)?[A-Za-z][A-Za-z0-9-]{0,62}"),
    "write incus:NAME or incus:PROJECT/NAME; a name has letters, digits and -, and begins with a letter",
)
SOCKETS = (
    "/run/incus/unix.socket",
    "/var/lib/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
)
_VARIABLES = ("INCUS_SOCKET", "INCUS_DIR", "LXD_SOCKET", "LXD_DIR")
_CONTAINER = "container"
_ALIVE = ("Running", "Frozen")
_STARTS = ("instance-started", "instance-restarted", "instance-resumed", "instance-renamed", "instance-restored")


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance, as the API describes it."""

    project: str
    name: str
    type: str  # container or virtual-machine
    status: str  # Running, Stopped, Frozen …
    location: str  # the cluster's member; "none" or empty without a cluster

    def __str__(self) -> str:
        return self.name if self.project == DEFAULT_PROJECT else f"{self.project}/{self.name}"


class Incus(Engine):
    """Both engines are asked in the same way."""

    kind = KIND
    blocks = True
    has_events = True

    def locate(self, name: str) -> Found:
        """See Engine. Returns or raises after TIME_LIMIT at the latest."""
        self.check_name(name)
        project, _, instance = name.rpartition("/")
        which = f"container {quoted(name)} of incus"
        with _Api(_socket(), time.monotonic() + TIME_LIMIT) as api:
            about = api.instance(project or DEFAULT_PROJECT, instance)
            if about is None:
                raise not_known(name, str(KIND), api.source)
            if about.type != _CONTAINER:
                raise ContainerRefused(f"{which} is a {quoted(about.type)[1:-1]}: it has no namespaces to join")
            if about.location not in ("", "none") and about.location != api.server_name():
                raise NotRunning(f"{which} is on the cluster's member {quoted(about.location)}, not on this one")
            status, pid = api.state(about)
            if status not in _ALIVE or not pid:
                raise NotRunning(f"{which} is {quoted(status)[1:-1].lower()}, not running")
            found = found_by_pid(pid)
            if api.state(about)[1] != pid:
                raise NotRunning(f"{which} is just stopping or starting")
            return found

    def is_installed(self) -> bool:
        """See Engine."""
        return any(variable in os.environ for variable in _VARIABLES) or any(map(os.path.exists, SOCKETS))

    def listed(self) -> Iterator[Listed]:
        """See Engine. Nothing if neither engine is installed."""
        if not self.is_installed():
            return
        with _Api(_socket(), time.monotonic() + TIME_LIMIT) as api:
            own = api.server_name()
            known = [
                (str(about), api.state(about)[1], about.status)
                for about in api.instances()
                if about.type == _CONTAINER and about.location in ("", "none", own)
            ]
        for name, pid, status in sorted(known):
            yield row(f"{KIND}:{name}", pid, status.lower())

    def follow(self, writer: int) -> None:
        """See Engine."""
        with _Api(_socket(), time.monotonic() + TIME_LIMIT) as api, api.following():
            events = api.websocket("/1.0/events?type=lifecycle&all-projects=true")
            engine_events.report_watching(writer)
            for name in filter(None, map(parse_lifecycle, events)):
                engine_events.report_name(writer, name.encode(errors="replace"))


class _Api(UnixHttp):
    """The API on one socket, for one call: it has one deadline."""

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__(str(KIND), path, deadline)

    def instance(self, project: str, name: str) -> Instance | None:
        """Return an instance; None if there is none of that name."""
        metadata = self._metadata(f"/1.0/instances/{quote(name, safe='')}?project={quote(project, safe='')}")
        return None if metadata is None else self._parsed(project, metadata)

    def instances(self) -> list[Instance]:
        """Return the instances of all projects."""
        found = self._metadata("/1.0/instances?recursion=1&all-projects=true")
        if not isinstance(found, list):
            raise self._foreign()
        return [self._parsed("", each) for each in found]

    def state(self, about: Instance) -> tuple[str, int]:
        """Return an instance's status and the pid of its init, 0 if it does not run."""
        target = f"/1.0/instances/{quote(about.name, safe='')}/state?project={quote(about.project, safe='')}"
        match self._metadata(target):
            case {"status": str(status), "pid": int(pid)} if pid < 1 << 31:
                return status, max(0, pid)  # LXD has -1 for what does not run in some versions
            case None:
                return "deleted", 0
        raise self._foreign()

    def server_name(self) -> str:
        """Return the name of this member of the cluster, or of this host."""
        match self._metadata("/1.0"):
            case {"environment": {"server_name": str(name)}}:
                return name
        raise self._foreign()

    def _metadata(self, target: str) -> Any:
        body = self.get(target)
        if body is None:
            return None
        try:
            answer = json.loads(body)
            if answer["type"] != "sync":
                raise ValueError("not an answer")
            return answer["metadata"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise self._foreign() from None

    def _parsed(self, project: str, metadata: Any) -> Instance:
        match metadata:
            case {"name": str(name), "type": str(kind), "status": str(status)}:
                found_in = str(metadata.get("project") or project or DEFAULT_PROJECT)
                return Instance(found_in, name, kind, status, str(metadata.get("location") or ""))
        raise self._foreign()

    def _foreign(self) -> ContainerRefused:
        return ContainerRefused(f"{self.source}: what answers there is neither Incus nor LXD")


def parse_lifecycle(message: bytes) -> str | None:
    """Return the name of the instance that an event says has started, as `incus:` has it; None for another event.

    Raises ValueError if it is no event.
    """
    try:
        event = json.loads(message)
        action, source = event["metadata"]["action"], urlsplit(event["metadata"]["source"])
        project = str(event.get("project") or DEFAULT_PROJECT)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError("not an event") from None
    if action not in _STARTS:
        return None
    name = str(source.path).rpartition("/")[2]
    return name if project == DEFAULT_PROJECT else f"{project}/{name}"


def _socket() -> str:
    for variable in _VARIABLES:
        path = os.environ.get(variable)
        if path:
            return path if variable.endswith("_SOCKET") else f"{path}/unix.socket"
    deadline = time.monotonic() + TIME_LIMIT
    return next((path for path in SOCKETS if accepts(path, deadline)), SOCKETS[1])
