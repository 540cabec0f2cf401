"""Asks an engine about a container by name, with Docker's Engine API, which Podman serves as well.

Some facts about the engines, and what they mean here:
* Both take the beginning of an id for a name. "db" and "cafe" are hexadecimal: while the container of that name is
  away, they would find some *other* container whose id begins so. So the answer is held against the question.
* They give a pid and no start time, which is read from /proc. Asked again afterwards, the same answer proves that the
  container was still there, so that what was read is about its init.
* The engine of a user who is not root may name any process. One of its containers is in a user namespace that this
  user made; no other process is taken from it.
* What they answer contains what containers' makers wrote (labels, variables): it is bounded, and escaped when shown.
"""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self
from urllib.parse import quote

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
    user_namespace_owner,
)
from nsbridge.supervisor.containers.rows import Listed, row
from nsbridge.supervisor.containers.unixhttp import UnixHttp

STARTS = ("start", "restart", "restore", "rename")  # events after which a container may be found under a name
ALIVE = ("running", "paused")  # dockerd calls a paused container Running, the podman command does not


@dataclass(frozen=True, slots=True)
class Inspected:
    """The data that an engine reports about one container."""

    name: str
    id: str
    status: str  # created, running, paused, restarting, removing, exited, dead
    pid: int  # of init, 0 if it does not run
    started_at: str  # as the engine writes it: two looks at one container differ if it was started between them


@dataclass(frozen=True, slots=True)
class Labelled:
    """A container as an engine lists it, with its labels, which are foreign."""

    id: str
    name: str
    status: str
    image: str  # the image's id; empty if it has none
    labels: Mapping[str, str]


class EngineClient(Protocol):
    """A way to ask an engine, for one call: it has one deadline."""

    source: str  # what is asked, for messages

    @property
    def peer_uid(self) -> int:
        """Return the user who answers."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def inspect(self, name: str) -> Inspected | None:
        """Return the container of that name or id, None if the engine has none."""
        ...

    def ids(self) -> list[str]:
        """Return the ids of all containers, running or not."""
        ...

    def labelled(self, labels: Mapping[str, str]) -> list[Labelled]:
        """Return the containers that have all these labels, running or not; the engine's filter may let others pass."""
        ...

    def image_labels(self, image: str) -> Mapping[str, str]:
        """Return the labels of an image; none if there is no such image."""
        ...

    def follow(self, writer: int) -> None:
        """Report starts until the engine ends (engine_events.py). Raises NsbridgeError at the end."""
        ...


class InspectedEngine(Engine):
    """An engine whose containers have names, ids and events."""

    blocks = True
    has_events = True

    @abstractmethod
    def client(self, deadline: float) -> EngineClient:
        """Return the way in which the engine is asked on this host. Raises ContainerRefused."""

    def locate(self, name: str) -> Found:
        """See Engine. It may be an id too. Returns or raises after TIME_LIMIT at the latest."""
        self.check_name(name)
        which = f"container {quoted(name)} of {self.kind}"
        with self.client(time.monotonic() + TIME_LIMIT) as client:
            first = client.inspect(name)
            if first is None or not _is_meant(name, first):
                raise not_known(name, str(self.kind), client.source)
            if first.status not in ALIVE or not first.pid:
                raise NotRunning(f"{which} is {quoted(first.status)[1:-1]}, not running")
            found = found_by_pid(first.pid)
            if client.inspect(name) != first:
                raise NotRunning(f"{which} is just stopping or starting")
            if client.peer_uid not in (0, os.geteuid()) and user_namespace_owner(found.pid) != client.peer_uid:
                raise ContainerRefused(
                    f"{which}: {client.source} belongs to user {client.peer_uid}, and its process {found.pid} is in no "
                    "user namespace of that user"
                )
            return replace(found, engine_id=first.id, engine_name=first.name)

    def listed(self) -> Iterator[Listed]:
        """See Engine. Nothing if the engine is not installed."""
        if not self.is_installed():
            return
        with self.client(time.monotonic() + TIME_LIMIT) as client:
            known = [about for about in map(client.inspect, client.ids()) if about is not None]
        for about in sorted(known, key=lambda each: each.name):
            yield row(f"{self.kind}:{about.name}", about.pid, about.status)

    def follow(self, writer: int) -> None:
        """See Engine."""
        with self.client(time.monotonic() + TIME_LIMIT) as client:
            client.follow(writer)


class ApiClient(UnixHttp):
    """Asks over the engine's socket."""

    def inspect(self, name: str) -> Inspected | None:
        """See EngineClient."""
        body = self.get(f"/containers/{quote(name, safe='')}/json")
        try:
            return None if body is None else parse_inspected(body)
        except ValueError:
            raise self._foreign() from None

    def ids(self) -> list[str]:
        """See EngineClient."""
        try:
            return [str(about["Id"]) for about in json.loads(self.get("/containers/json?all=1") or b"")]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise self._foreign() from None

    def labelled(self, labels: Mapping[str, str]) -> list[Labelled]:
        """See EngineClient."""
        filters = quote(json.dumps({"label": [f"{key}={value}" for key, value in labels.items()]}))
        try:
            return parse_labelled(self.get(f"/containers/json?all=1&filters={filters}") or b"")
        except ValueError:
            raise self._foreign() from None

    def image_labels(self, image: str) -> Mapping[str, str]:
        """See EngineClient."""
        body = self.get(f"/images/{quote(image, safe=':')}/json") if image else None
        try:
            return {} if body is None else parse_labels((json.loads(body)["Config"] or {}).get("Labels"))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise self._foreign() from None

    def follow(self, writer: int) -> None:
        """See EngineClient."""
        filters = json.dumps({"type": ["container"], "event": STARTS})
        with self.following():
            engine_events.report(self.stream(f"/events?filters={quote(filters)}"), writer)

    def _foreign(self) -> ContainerRefused:
        return ContainerRefused(f"{self.source}: what answers there is not a {self._service} engine")


def parse_inspected(body: bytes) -> Inspected:
    """Read the answer to GET /containers/NAME/json. Raises ValueError if it is none."""
    try:
        about: Any = json.loads(body)
        state = about["State"]
        inspected = Inspected(
            about["Name"].removeprefix("/"), about["Id"], state["Status"], state["Pid"], state["StartedAt"]
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError("not a container's description") from None
    kinds = [type(getattr(inspected, field)) for field in Inspected.__slots__]
    if kinds != [str, str, str, int, str] or inspected.pid < 0:
        raise ValueError("not a container's description")
    return inspected


def parse_labelled(body: bytes) -> list[Labelled]:
    """Read the answer to GET /containers/json, or what `podman ps` prints. Raises ValueError if it is none."""
    try:
        listed: Any = json.loads(body)
        if not isinstance(listed, list):
            raise TypeError("not a list")
        found = [
            Labelled(each["Id"], _name(each), each["State"], each["ImageID"], parse_labels(each["Labels"]))
            for each in listed
        ]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError("not a list of containers") from None
    if any(type(text) is not str for each in found for text in (each.id, each.status, each.image)):
        raise ValueError("not a list of containers")
    return found


def _name(listed: Any) -> str:
    """Return a listed container's name: links of Docker give it more names, with a second slash."""
    names = [str(name).removeprefix("/") for name in listed["Names"]]
    return next((name for name in names if "/" not in name), names[0])


def parse_labels(labels: Any) -> dict[str, str]:
    """Return labels as an engine writes them; it has null for none. Raises ValueError if they are none."""
    if labels is None:
        return {}
    if not isinstance(labels, dict) or any(type(value) is not str for value in labels.values()):
        raise ValueError("not labels")
    return labels


def _is_meant(name: str, found: Inspected) -> bool:
    return found.name == name or (len(name) >= engine_events.ID_PREFIX_AT_LEAST and found.id.startswith(name))
