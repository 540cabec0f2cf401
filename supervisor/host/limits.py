"""Limits of the host that a configuration needs, and which of them are too small for it.

`shortages` compares; `read_host` reads. Each shortage is one line: which limit, what it is, what is needed and why, and
what to set. A shortage stops nothing: what is there may be enough for those containers that happen to run.

Some facts about these limits, and what they mean here:
* inotify's instances and watches are counted for each user, and others of that user have some too. An agent whose
  `user` is not configured becomes the owner of its directory; all of those are taken for one user, which is the worst.
* pid_max and pids.max count threads. A control group's limit is that of all groups above it too.
* msgmnb and msgmax belong to a container's ipc namespace, and are not the host's: the agent of a queue reports them.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nsbridge.config.schema import Config

INSTANCES = "fs.inotify.max_user_instances"
WATCHES = "fs.inotify.max_user_watches"
PID_MAX = "kernel.pid_max"
_OF_OTHERS = 64  # inotify instances that a user has for other things
_WATCHES_EACH = 4  # of an instance, at most: the directory, the one above, files that are followed
_BASE_DESCRIPTORS = 320  # of the supervisor: callers of the control socket, and its own
_ROUTE_DESCRIPTORS = 10
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Limits that the host sets; _UNLIMITED if it sets none."""

    instances: int
    watches: int
    descriptors: int  # of one process, hard limit
    pids: int  # numbers there are
    tasks: int  # processes and threads that our control group has room for
    tasks_where: str = ""  # the file that has this limit


def shortages(config: Config, host: HostLimits) -> list[str]:
    """Return what is too small for `config`, a line each; the daemon's one thread is not counted."""
    return [*_inotify(config, host), *_descriptors(config, host), *_tasks(config, host)]


def read_host() -> HostLimits:
    """Return this host's limits, as this process sees them."""
    tasks, where = _room_in_control_group()
    return HostLimits(
        instances=_sysctl(INSTANCES),
        watches=_sysctl(WATCHES),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        pids=_sysctl(PID_MAX),
        tasks=tasks,
        tasks_where=where,
    )


def _inotify(config: Config, host: HostLimits) -> Iterator[str]:
    for user, needed in _instances(config).items():
        whose = "the owners of directories" if user is None else f"uid {user}"
        for limit, name, count in (
            (host.instances, INSTANCES, needed + _OF_OTHERS),
            (host.watches, WATCHES, _WATCHES_EACH * needed + _OF_OTHERS),
        ):
            if limit < count:
                yield (
                    f"{name} is {limit}, and agents of {whose} may need {count}: sysctl -w {name}={count} "
                    "(or give agents a user of their own)"
                )


def _instances(config: Config) -> Counter[int | None]:
    """Count inotify instances by uid; None: the owner of the directory."""
    found: Counter[int | None] = Counter()
    for route in config.routes:
        for agent in route.agents:
            if needed := agent.endpoint.needs(route.delivery).watches:
                found[agent.user.uid if agent.user else None] += needed
    return found


def _descriptors(config: Config, host: HostLimits) -> Iterator[str]:
    needed = _BASE_DESCRIPTORS + _ROUTE_DESCRIPTORS * len(config.routes)
    if host.descriptors < needed:
        yield (
            f"RLIMIT_NOFILE is {host.descriptors}, and the supervisor of {len(config.routes)} routes may need {needed} "
            f"descriptors: LimitNOFILE={needed} in the unit, or ulimit -Hn {needed}"
        )


def _tasks(config: Config, host: HostLimits) -> Iterator[str]:
    extra = [agent.endpoint.needs(route.delivery).tasks for route in config.routes for agent in route.agents]
    needed = len(extra) + sum(extra)  # the agents, and the threads and processes of their endpoints
    why = f"{len(config.routes)} routes may need {needed} processes and threads"
    if host.pids < needed + _OF_OTHERS:
        wanted = 2 * needed + 1024
        yield f"{PID_MAX} is {host.pids}, and {why}: sysctl -w {PID_MAX}={wanted}"
    if host.tasks < needed:
        yield f"{host.tasks_where} leaves room for {host.tasks}, and {why}: set it, or TasksMax, to {2 * needed + 64}"


def _sysctl(name: str) -> int:
    return _number(Path("/proc/sys", *name.split(".")))


def _number(path: Path) -> int:
    """Return the number in a file of the kernel; _UNLIMITED if it is `max`, or the file is missing."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _UNLIMITED


def _room_in_control_group() -> tuple[int, str]:
    """Return (tasks that may be added, the file that limits them): the narrowest of all control groups above us."""
    room, where = _UNLIMITED, ""
    for group in _control_groups():
        limit = _number(group / "pids.max")
        if limit < _UNLIMITED:
            left = limit - min(_number(group / "pids.current"), limit)
            if left < room:
                room, where = left, str(group / "pids.max")
    return room, where


def _control_groups() -> Iterator[Path]:
    """Yield our group of the pids controller and all above it, in either version's hierarchy (cgroups(7))."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "pids"):
            continue
        mounts = ("/sys/fs/cgroup/pids",) if controllers else ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
        for mount in mounts:
            group = Path(os.path.normpath(f"{mount}/{name}"))
            yield from (above for above in (group, *group.parents) if str(above).startswith(mount))
