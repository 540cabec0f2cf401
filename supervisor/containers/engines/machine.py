"""Finds machines of systemd-nspawn, `machine:NAME`, by the files that systemd-machined keeps of those registered there.

Some facts about these files (systemd 252, src/machine/machine.c), and what they mean here:
* /run/systemd/machines/NAME has lines KEY=VALUE and is replaced by rename. A link `unit:SCOPE` beside it leads to it.
  sd-login(3) reads the same files; that their content is "private data" has not kept LEADER and CLASS from staying as
  they are since systemd 209.
* LEADER is the machine's init, in the host's pid namespace. A file outlives its machine if machined is not running. So
  the leader counts only if it is older than its registration (MONOTONIC), and the first process of a pid namespace.
* MONOTONIC stands still while the host sleeps, and a process's start time does not. The time that the host has slept
  since boot is added, so a number that was reused during the last such sleep is not noticed.
* A machine of the class `vm` has no namespaces to join: its leader is the hypervisor. One of the class `host` is not
  another machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    PID_PATTERN,
    ContainerRefused,
    Found,
    NotRunning,
    is_init_of_its_own,
    not_known,
    quoted,
    read_stat,
    read_state,
)
from nsbridge.supervisor.containers.rows import Listed, names_in, row_of
from nsbridge.supervisor.host import procfs

# systemd, basic/hostname-util.c: hostname_is_valid, which machined asks of a name.
KIND = ContainerKind(
    "machine",
    re.compile(r"(?=.{1,64}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"),
    "a machine name is a host name: at most 64 letters, digits, _, - and single dots within",
)
VARIABLE = "NSBRIDGE_MACHINES"
_USUAL = "/run/systemd/machines"
_FILE_LIMIT = 64 << 10  # bytes; a machine's file has some 300
_NUMBER = re.compile(r"[0-9]{1,19}")
_SLACK = 0.1  # seconds: a start time has a resolution of 10 ms


class Machine(Engine):
    """Reads its files only, so machined is not asked and cannot hang."""

    kind = KIND

    def locate(self, name: str) -> Found:
        """See Engine."""
        self.check_name(name)
        path = f"{_directory()}/{name}"
        which = f"machine {quoted(name)}"
        text = read_state(path, _FILE_LIMIT, which, not_known(name, str(KIND), f"looked in {_directory()}"))
        try:
            fields = _parse(text)
            leader, registered = _number(fields, "LEADER", PID_PATTERN), _number(fields, "MONOTONIC", _NUMBER)
            if fields.get("NAME") != name:
                raise ValueError(f"is about the machine {quoted(fields.get('NAME', ''))}")
        except ValueError as error:
            raise ContainerRefused(f"{which}: {path} {error}") from None
        if fields.get("CLASS", "container") != "container":
            raise ContainerRefused(f"{which} is of the class {quoted(fields['CLASS'])}, and not a container")
        return _running(which, leader, registered / 1e6)

    def is_installed(self) -> bool:
        """See Engine."""
        return os.path.isdir(_directory())  # noqa: PTH112

    def places(self, name: str) -> Sequence[tuple[str, str]]:
        """See Engine: machined puts the file there when the machine is registered."""
        return ((_directory(), name),)

    def listed(self) -> Iterator[Listed]:
        """See Engine."""
        for name in names_in(_directory(), lambda entry: not entry.is_symlink()):
            yield row_of(f"{KIND}:{name}", partial(self.locate, name))


def _running(which: str, leader: int, registered: float) -> Found:
    """Return the leader, which was registered so many seconds after boot without the host's sleep."""
    now = read_stat(leader)
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    if now.is_dead or now.start_time / procfs.TICKS > registered + slept + _SLACK:
        raise NotRunning(f"{which} has stopped (its process {leader} is gone)")
    if not is_init_of_its_own(leader):
        raise ContainerRefused(f"{which}: process {leader} is not the first one of a container")
    return Found(leader, now.start_time, "")


def _parse(text: bytes) -> dict[str, str]:
    """Return the fields of a machine's file; the first of each key counts. Raises ValueError if it is no such file."""
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "backslashreplace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            fields.setdefault(key, value)
    return fields


def _number(fields: dict[str, str], key: str, pattern: re.Pattern[str]) -> int:
    value = fields.get(key, "")
    if not pattern.fullmatch(value):
        raise ValueError(f"has no number {key}: machined did not write it")
    return int(value)


def _directory() -> str:
    return os.environ.get(VARIABLE) or _USUAL
