"""Containers of runc and crun, read from the state files that these runtimes keep.

Some facts about these files, and what they mean here:
* They are replaced by rename, so each reading is whole. They stay until `delete`, long after the container is dead:
  only the start time beside the pid tells that the pid is still the container's.
* Between `create` and `start` init is the runtime's own program, waiting on exec.fifo in the state directory; the
  runtime removes the fifo at `start`. Its namespaces exist, but hooks may still mount into them, its user program may
  never come, and an agent inside would outlive a `delete`. So, as the runtimes do themselves, such a container is
  called created and is not running.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nsbridge.config.schema import ContainerKind
from nsbridge.config.trusted import UntrustedError, is_real_root
from nsbridge.supervisor.containers.identity import (
    ContainerRefused,
    Found,
    NotPermitted,
    NotRunning,
    escaped,
    not_known,
    quoted,
    read_bounded,
    read_stat,
)

STATE_LIMIT = 4 << 20  # bytes; runc's holds the whole container configuration (5.9 kB for a plain one)
LISTED_AT_MOST = 4096  # directories looked at in one state root

InitIdentity = tuple[int, int]  # init's pid, its start time in clock ticks since boot


class Created(NotRunning):
    """It was created and not started."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a runtime keeps its state and how the file is read."""

    name: str
    file: str
    parse: Callable[[bytes], InitIdentity]
    roots: Callable[[], tuple[str, ...]]


def locate(kind: ContainerKind, name: str) -> Found:
    """The running container of that name; raises NotRunning, ContainerRefused."""
    runtime = RUNTIMES[kind]
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ContainerRefused(f"{runtime.name} cannot have a container {quoted(name)}: a name has no slash")
    roots = runtime.roots()
    for root in roots:
        directory = f"{root}/{name}"
        try:
            os.stat(directory)  # noqa: PTH116  (Path.exists hides some errors and raises others)
        except PermissionError:
            raise NotPermitted(f"{root} may not be looked at: run nsbridge as root") from None
        except OSError:
            continue
        return _running(runtime, name, directory)
    raise not_known(name, runtime.name, f"looked in {', '.join(roots)}")


def names(kind: ContainerKind) -> Iterator[str]:
    """Every container that the runtime has a state directory for, running or not. Raises NotPermitted."""
    seen: set[str] = set()
    for root in RUNTIMES[kind].roots():
        try:
            with os.scandir(root) as entries:
                found = [entry.name for entry in itertools.islice(entries, LISTED_AT_MOST) if entry.is_dir()]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NotPermitted(f"{root} cannot be listed: {error.strerror}") from None
        yield from sorted(set(found) - seen)
        seen.update(found)


def parse_runc(text: bytes) -> InitIdentity:
    """Runc's state.json: init_process_pid and init_process_start; ValueError if it is not."""
    return _identity(text, "init_process_pid", "init_process_start")


def parse_crun(text: bytes) -> InitIdentity:
    """Crun's status: pid and process-start-time; ValueError if it is not."""
    return _identity(text, "pid", "process-start-time")


def runc_roots() -> tuple[str, ...]:
    """Where runc looks by default: real root never uses XDG_RUNTIME_DIR (runc's main.go and rootless_linux.go)."""
    forced = os.environ.get("NSBRIDGE_RUNC_ROOT")
    if forced:
        return (forced,)
    user_dir = os.environ.get("XDG_RUNTIME_DIR")
    if user_dir and not is_real_root():
        return (f"{user_dir}/runc",)
    return ("/run/runc",)


def crun_roots() -> tuple[str, ...]:
    """Where crun looks by default, XDG_RUNTIME_DIR also as root; then where one without that variable has put it."""
    forced = os.environ.get("NSBRIDGE_CRUN_ROOT")
    if forced:
        return (forced,)
    user_dir = os.environ.get("XDG_RUNTIME_DIR")
    return (f"{user_dir}/crun", "/run/crun") if user_dir else ("/run/crun",)


def _running(runtime: Runtime, name: str, directory: str) -> Found:
    which = f"container {quoted(name)} of {runtime.name}"
    path = escaped(f"{directory}/{runtime.file}")
    try:
        text = read_bounded(f"{directory}/{runtime.file}", STATE_LIMIT)
        if not text:
            raise NotRunning(f"{which} is being created ({path} is still empty)")
        pid, start_time = runtime.parse(text)
    except FileNotFoundError:
        raise NotRunning(f"{which} is being created or deleted ({path} is not there)") from None
    except OSError as error:
        raise NotPermitted(f"{which}: {path} cannot be read: {error.strerror}") from None
    except UntrustedError as error:
        raise ContainerRefused(f"{which}: {error}") from None
    except ValueError as error:
        raise ContainerRefused(f"{which}: {path} {error}") from None
    if not _is_still(pid, start_time):
        raise NotRunning(f"{which} has stopped (its process {pid} is gone)")
    if Path(f"{directory}/exec.fifo").exists():
        raise Created(f"{which} is created, not running: `{runtime.name} start` has not been called")
    return Found(pid, start_time, "")


def _is_still(pid: int, start_time: int) -> bool:
    if pid <= 0:
        return False
    try:
        now = read_stat(pid)
    except NotRunning:
        return False
    return now.start_time == start_time and not now.is_dead


def _identity(text: bytes, pid_key: str, start_key: str) -> InitIdentity:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    return _number(state, pid_key), _number(state, start_key)


def _number(state: object, key: str) -> int:
    value = state.get(key) if isinstance(state, dict) else None
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"has no number {key}: it was written by another version of the runtime")
    return value


RUNTIMES = {
    ContainerKind.RUNC: Runtime("runc", "state.json", parse_runc, runc_roots),
    ContainerKind.CRUN: Runtime("crun", "status", parse_crun, crun_roots),
}
