"""Finds containers of containerd, `containerd:NAMESPACE/ID`, by the state that it keeps (bundles.py).

The daemon's API is not used: grpcio starts threads, and a process with threads cannot fork agents. If the runtime below
is neither runc nor crun, the `ctr` command is asked, which gives a pid only. So it is asked twice, as Docker is
(dockerapi.py). A child does all this, because `ctr` may hang.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.bundles import (
    TASKS,
    Bundle,
    UnknownRuntime,
    containerd_bundle,
    containerd_bundles,
    runtime_roots,
    state_roots,
)
from nsbridge.supervisor.containers.command import run_bounded
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Found,
    NoAnswer,
    NotRunning,
    found_by_pid,
    not_known,
    quoted,
)
from nsbridge.supervisor.containers.rows import Listed, names_in, row_of
from nsbridge.supervisor.containers.statefiles import START

_IDENTIFIER = r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*"  # containerd, identifiers/validate.go
KIND = ContainerKind(
    "containerd",
    re.compile(rf"(?=[^/]{{1,76}}/[^/]{{1,76}}$){_IDENTIFIER}/{_IDENTIFIER}"),
    'write the namespace and the ID, like "containerd:default/web" (`ctr namespaces ls`, `ctr -n NS tasks ls`)',
    is_unique=True,
)
_ALIVE = ("RUNNING", "PAUSED")


class Containerd(Engine):
    """A container has one namespace and one ID; nerdctl, k3s and Kubernetes are containerd's clients."""

    kind = KIND
    blocks = True
    steps_of_a_start = 4

    def locate(self, name: str) -> Found:
        """See Engine."""
        self.check_name(name)
        namespace, _, container = name.partition("/")
        for state in state_roots():
            bundle = containerd_bundle(state, namespace, container)
            if os.path.lexists(bundle.directory):
                return _running(state, bundle)
        raise not_known(name, str(KIND), f"looked in {', '.join(state_roots())}")

    def places(self, name: str) -> Sequence[tuple[str, str]]:
        """See Engine: the pid file comes when the container is created; runc removes the FIFO when it starts."""
        bundles = [containerd_bundle(state, *name.split("/")) for state in state_roots()]
        return [
            *[(bundle.directory, bundle.pid_file) for bundle in bundles],
            (f"{os.path.dirname(runtime_roots()[0])}/{name}", START),  # noqa: PTH120
        ]

    def is_installed(self) -> bool:
        """See Engine."""
        return shutil.which("containerd") is not None or any(map(os.path.isdir, state_roots()))

    def listed(self) -> Iterator[Listed]:
        """See Engine. A container without a task has no process, and is not listed."""
        for state in state_roots():
            for namespace in names_in(f"{state}/{TASKS}"):
                for bundle in containerd_bundles(state, namespace):
                    yield row_of(f"{KIND}:{namespace}/{bundle.id}", partial(_running, state, bundle), about=None)


def _running(state: str, bundle: Bundle) -> Found:
    if os.path.islink(bundle.directory):  # noqa: PTH114
        raise ContainerRefused(f"{bundle.which}: {quoted(bundle.directory)} is a link, which containerd never makes")
    try:
        return bundle.running()
    except UnknownRuntime as unknown:
        program = shutil.which("ctr")
        if program is None:
            raise NotRunning(f"{unknown}, and there is no ctr to ask") from None
        return _asked(program, f"{state}/containerd.sock", bundle)


def _asked(program: str, socket: str, bundle: Bundle) -> Found:
    """Return the init that `ctr` reports."""
    deadline = time.monotonic() + TIME_LIMIT
    first = _task(program, socket, bundle, deadline)
    if first is None:
        raise NotRunning(f"{bundle.which} has no task")
    pid, status = first
    if status not in _ALIVE:
        raise NotRunning(f"{bundle.which} is {quoted(status.lower())[1:-1]}, not running")
    found = found_by_pid(pid)
    if _task(program, socket, bundle, deadline) != first:
        raise NotRunning(f"{bundle.which} is just stopping or starting")
    return found


def _task(program: str, socket: str, bundle: Bundle, deadline: float) -> tuple[int, str] | None:
    command = [program, "--address", socket, "--namespace", bundle.namespace, "tasks", "ls"]
    status, output, said = run_bounded(command, deadline)
    if status:
        last = (said.strip().splitlines() or ["it reported nothing"])[-1]
        raise NoAnswer(f"{program} failed with status {status}: {quoted(last)}")
    for line in output.decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == [bundle.id] and len(words) == 3 and words[1].isdecimal() and len(words[1]) <= 10:  # noqa: PLR2004
            return int(words[1]), words[2]
    return None
