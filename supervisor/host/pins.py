"""Names the owner of each counter's pins, and releases those whose supervisor is dead.

The pins outlive their supervisor, so that the next one of the same state_dir continues with the counts. If none comes,
its programs would still run at each msgsnd and msgrcv of the host, for nothing. So each supervisor looks at the pins of
all others when it opens its own:

* The owner lives, or is of another pid namespace, where this cannot be seen: nothing is done.
* The owner is dead: its links are removed. Its agents died with it, so nothing is to be counted. The counts remain, and
  its successor attaches the programs again.
* Its state_dir is gone, too: all of its pins are removed.

The record is a symbolic link, the only thing besides directories and pins that a bpffs can hold.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from nsbridge.supervisor.host import procfs

LINK = "-link"  # how the names of pinned links end
_OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Owner:
    """A supervisor: its process, the namespaces in which that and the path are meant, and its state_dir."""

    pid: int
    start_time: int
    pid_namespace: int
    mount_namespace: int
    state_dir: str

    @classmethod
    def this_process(cls, state_dir: str) -> Self:
        """Return this process as the owner of the counter of `state_dir`."""
        pid = os.getpid()
        pids, mounts = (os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "mnt"))  # noqa: PTH116  (magic links)
        return cls(pid, procfs.read_stat(pid).start_time, pids, mounts, os.path.realpath(state_dir))

    @classmethod
    def of(cls, place: Path) -> Self | None:
        """Return the owner of a folder of pins; None if it has no record that can be read."""
        try:
            pid, start_time, pids, mounts, state_dir = str(place.joinpath(_OWNER).readlink()).split(":", 4)
            return cls(int(pid), int(start_time), int(pids), int(mounts), state_dir)
        except (OSError, ValueError):
            return None

    def claim(self, place: Path) -> None:
        """Record it as the owner of that folder. Raises OSError."""
        record = place / _OWNER
        record.unlink(missing_ok=True)
        record.symlink_to(":".join(map(str, astuple(self))))

    def lives(self) -> bool:
        """True if the process is there, and is no other one with the same number."""
        try:
            found = procfs.read_stat(self.pid)
        except (OSError, ValueError):
            return False
        return found.start_time == self.start_time and not found.is_dead

    def has_state(self) -> bool:
        """True if its state_dir exists."""
        return Path(self.state_dir).is_dir()


def release_dead(above: Path, me: Owner) -> None:
    """Release what dead supervisors left in the folders below `above`; see the top. Failures are left to the next."""
    for place in above.iterdir() if above.is_dir() else ():
        owner = Owner.of(place)
        if owner is None or owner.pid_namespace != me.pid_namespace or owner.lives():
            continue
        with suppress(OSError):
            if owner.mount_namespace == me.mount_namespace and not owner.has_state():
                shutil.rmtree(place)
            else:
                for link in place.glob(f"*{LINK}"):
                    link.unlink()
