"""Finds containers of Podman, `podman:NAME`: by its API socket if a service listens, else by the podman command.

Some facts about Podman, and what they mean here:
* It needs no service: where there is no API socket, `podman inspect` gives the same (`locate` on Debian 12: the socket
  4 ms, the command 75 ms).
* `podman events` reports the same as the API's events. It is ready a tenth of a second later, so its options make it
  begin with the events of the last ten seconds. Its reports may be a quarter of a second old.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from typing import Self

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers import engine_events
from nsbridge.supervisor.containers.command import run_bounded
from nsbridge.supervisor.containers.dockerapi import (
    STARTS,
    ApiClient,
    EngineClient,
    Inspected,
    InspectedEngine,
    Labelled,
    parse_inspected,
    parse_labelled,
    parse_labels,
)
from nsbridge.supervisor.containers.identity import ContainerRefused, NoAnswer, quoted
from nsbridge.supervisor.containers.unixhttp import accepts, local_socket_path

KIND = ContainerKind(
    "podman",
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}"),  # libpod/define: NameRegex
    "a podman name has letters, digits, _, . and -, and begins with a letter or digit",
)
SOCKET = "/run/podman/podman.sock"


class Podman(InspectedEngine):
    """The socket is CONTAINER_HOST's or the usual one."""

    kind = KIND
    name_checked_every = 60.0  # the command costs 75 ms of a core

    def client(self, deadline: float) -> EngineClient:
        """See InspectedEngine."""
        path = _socket()
        if accepts(path, deadline):
            return ApiClient(str(KIND), path, deadline)
        program = shutil.which("podman")
        # Another user's podman command would see that user's containers only, and leave a process behind.
        if program is None or "CONTAINER_HOST" in os.environ or os.geteuid() != 0:
            return ApiClient(str(KIND), path, deadline)  # whose failure names the socket
        return PodmanCommand(program, deadline)

    def is_installed(self) -> bool:
        """See Engine."""
        return "CONTAINER_HOST" in os.environ or os.path.exists(_socket()) or shutil.which("podman") is not None  # noqa: PTH110


class PodmanCommand:
    """Asks with the podman command; CONTAINERS_CONF and the like reach it through the environment."""

    _FORMAT = (
        '{"Name":{{json .Name}},"Id":{{json .ID}},"State":{"Status":{{json .State.Status}},'
        '"Pid":{{.State.Pid}},"StartedAt":{{json .State.StartedAt}}}}'
    )

    def __init__(self, program: str, deadline: float) -> None:
        self.source = f"asked with {program}"
        self.peer_uid = os.geteuid()
        self._program = program
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def inspect(self, name: str) -> Inspected | None:
        """See EngineClient."""
        arguments = ["container", "inspect", "--format", self._FORMAT, "--", name]
        status, output, said = run_bounded([self._program, *arguments], self._deadline)
        if status and "no such container" in said.lower():
            return None
        try:
            return parse_inspected(self._ok(status, output, said))
        except ValueError:
            raise self._foreign(output) from None

    def ids(self) -> list[str]:
        """See EngineClient."""
        result = run_bounded([self._program, "ps", "--all", "--quiet", "--no-trunc"], self._deadline)
        return self._ok(*result).decode("ascii", "replace").split()

    def labelled(self, labels: Mapping[str, str]) -> list[Labelled]:
        """See EngineClient."""
        filters = [f"--filter=label={key}={value}" for key, value in labels.items()]
        result = run_bounded([self._program, "ps", "--all", "--no-trunc", "--format=json", *filters], self._deadline)
        try:
            return parse_labelled(self._ok(*result))
        except ValueError:
            raise self._foreign(result[1]) from None

    def image_labels(self, image: str) -> Mapping[str, str]:
        """See EngineClient."""
        if not image:
            return {}
        arguments = ["image", "inspect", "--format", "{{json .Labels}}", "--", image]
        status, output, said = run_bounded([self._program, *arguments], self._deadline)
        if status and ("no such image" in said.lower() or "image not known" in said.lower()):
            return {}
        try:
            return parse_labels(json.loads(self._ok(status, output, said)))
        except (ValueError, RecursionError):
            raise self._foreign(output) from None

    def follow(self, writer: int) -> None:
        """Become `podman events`; it dies with the supervisor as this child would (prctl(2): kept by execve)."""
        engine_events.report_watching(writer)
        os.dup2(writer, 1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        filters = ["--filter=type=container", *(f"--filter=event={event}" for event in STARTS)]
        arguments = ["events", "--stream", "--since=10s", "--format={{.ID}} {{.Name}}", *filters]
        os.execv(self._program, [self._program, *arguments])  # noqa: S606  (no shell; nothing in it is foreign)

    def _foreign(self, output: bytes) -> ContainerRefused:
        shown = quoted(output.decode("utf-8", "backslashreplace"))
        return ContainerRefused(f"{self._program}: its answer is not understood: {shown}")

    def _ok(self, status: int, output: bytes, said: str) -> bytes:
        if status:
            last = (said.strip().splitlines() or ["it reported nothing"])[-1]
            raise NoAnswer(f"{self._program} failed with status {status}: {quoted(last)}")
        return output


def _socket() -> str:
    return local_socket_path("CONTAINER_HOST", SOCKET)
