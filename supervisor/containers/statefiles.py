"""Reads the state files that OCI runtimes keep of their containers: what runc and crun have in common.

Some facts about these files, and what they mean here:
* The runtime replaces them by rename, so each reading is whole. They stay until `delete`, long after the container is
  dead: only the start time beside the pid shows that the pid is still the container's.
* Between `create` and `start` init is the runtime's own program, waiting on exec.fifo in the state directory; the
  runtime removes the fifo at `start`. Its namespaces exist, but hooks may still mount into them, its user program may
  never come, and an agent inside would outlive a `delete`. So, as the runtimes do themselves, such a container is
  called created and is not running.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Created,
    Found,
    NotPermitted,
    NotRunning,
    escaped,
    not_known,
    quoted,
    read_stat,
    read_state,
)
from nsbridge.supervisor.containers.rows import Listed, names_in, row_of

STATE_LIMIT = 4 << 20  # bytes; runc's holds the whole container configuration (5.9 kB for a plain one)
START = "exec.fifo"  # in the runtime's directory of a container, from its creation to its start
InitIdentity = tuple[int, int]  # init's pid, its start time in clock ticks since boot


@dataclass(frozen=True, slots=True)
class StateFile:
    """The state file that a runtime keeps in its directory of a container."""

    runtime: str
    name: str
    pid_key: str
    start_key: str

    def parse(self, text: bytes, container: str) -> InitIdentity:
        """Read a state file. Raises ValueError if the runtime did not write it, or wrote it of another container."""
        try:
            state = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None
        identity = _number(state, self.pid_key), _number(state, self.start_key)
        if state.get("id", container) != container:  # crun writes none
            raise ValueError(f"is the state of another container, {quoted(str(state['id']))}")
        return identity

    def running(self, directory: str, container: str, which: str) -> Found:
        """Return the container's init. Messages call it `which`. Raises NotRunning, ContainerRefused."""
        path = f"{directory}/{self.name}"
        text = read_state(path, STATE_LIMIT, which)
        if not text:
            raise NotRunning(f"{which} is being created ({escaped(path)} is still empty)")
        try:
            pid, start_time = self.parse(text, container)
        except ValueError as error:
            raise ContainerRefused(f"{which}: {escaped(path)} {error}") from None
        if not _is_still(pid, start_time):
            raise NotRunning(f"{which} has stopped (its process {pid} is gone)")
        if Path(f"{directory}/{START}").exists():
            raise Created(f"{which} is created, not running: `{self.runtime} start` has not been called")
        return Found(pid, start_time, "")


RUNC_STATE = StateFile("runc", "state.json", "init_process_pid", "init_process_start")
CRUN_STATE = StateFile("crun", "status", "pid", "process-start-time")


class StateFileRuntime(Engine):
    """A runtime that keeps a directory for each container, ROOT/NAME, with one state file in it."""

    state: ClassVar[StateFile]

    @abstractmethod
    def roots(self) -> tuple[str, ...]:
        """Return the directories where the runtime looks by default."""

    def locate(self, name: str) -> Found:
        """See Engine."""
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise ContainerRefused(f"{self.kind} cannot have a container {quoted(name)}: a name has no slash")
        roots = self.roots()
        for root in roots:
            directory = f"{root}/{name}"
            try:
                os.stat(directory)  # noqa: PTH116  (Path.exists hides some errors and raises others)
            except PermissionError:
                raise NotPermitted(f"{root} may not be looked at: run nsbridge as root") from None
            except OSError:
                continue
            return self.state.running(directory, name, f"container {quoted(name)} of {self.kind}")
        raise not_known(name, str(self.kind), f"looked in {', '.join(roots)}")

    def is_installed(self) -> bool:
        """See Engine."""
        return shutil.which(str(self.kind)) is not None or any(map(os.path.isdir, self.roots()))

    def places(self, name: str) -> Sequence[tuple[str, str]]:
        """See Engine: the runtime makes the directory when it creates the container."""
        return [(f"{root}/{name}", "") for root in self.roots()]

    def listed(self) -> Iterator[Listed]:
        """See Engine: every container that has a state directory, running or not."""
        seen: set[str] = set()
        for root in self.roots():
            for name in names_in(root, os.DirEntry.is_dir):
                if name not in seen:
                    seen.add(name)
                    about = f"container {quoted(name)} of {self.kind} "
                    yield row_of(f"{self.kind}:{name}", partial(self.locate, name), about)


def _is_still(pid: int, start_time: int) -> bool:
    if pid <= 0:
        return False
    try:
        now = read_stat(pid)
    except NotRunning:
        return False
    return now.start_time == start_time and not now.is_dead


def _number(state: object, key: str) -> int:
    value = state.get(key) if isinstance(state, dict) else None
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"has no number {key}: it was written by another version of the runtime")
    return value
