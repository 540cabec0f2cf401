"""A container engine of the tests' own, `dir:NAME`, and a launcher that registers it.

    python -m tests.system.directory_engine nsbridged|nsbridge|nsbridgectl ARGUMENTS...

$NSB_TEST_DIR/NAME/init holds the pid of a container's init and its start time. Nothing else knows of this engine.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.cli import nsbridge, nsbridgectl, nsbridged
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import Found, NotRunning, not_known, read_stat
from nsbridge.supervisor.containers.rows import Listed, row, row_without_process

VARIABLE = "NSB_TEST_DIR"
PROGRAMS = {"nsbridge": nsbridge.main, "nsbridgectl": nsbridgectl.main, "nsbridged": nsbridged.main}


class Directory(Engine):
    """Its containers are found by files, are seen to start by inotify, and come back under their names."""

    kind = ContainerKind("dir", re.compile(r"[a-z][a-z0-9-]{0,63}"), "a dir name has small letters, digits and -")

    def locate(self, name: str) -> Found:
        """See Engine."""
        try:
            pid, start_time = map(int, (_root() / name / "init").read_text(encoding="ascii").split())
        except FileNotFoundError:
            raise not_known(name, str(self.kind), f"looked in {_root()}") from None
        now = read_stat(pid)
        if now.is_dead or now.start_time != start_time:
            raise NotRunning(f"container {name} has stopped")
        return Found(pid, start_time, "")

    def places(self, name: str) -> Sequence[tuple[str, str]]:
        """See Engine."""
        return [(str(_root() / name), "init")]

    def listed(self) -> Iterator[Listed]:
        """See Engine."""
        for path in sorted(_root().iterdir()):
            try:
                yield row(f"{self.kind}:{path.name}", self.locate(path.name).pid, "running")
            except NotRunning as error:
                yield row_without_process(f"{self.kind}:{path.name}", "stopped", str(error))


def report_started(root: Path, name: str, pid: int) -> None:
    """Write what the engine would: the state file of a container that has started, replaced by rename."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "new").write_text(f"{pid} {read_stat(pid).start_time}", encoding="ascii")
    (directory / "new").rename(directory / "init")


def _root() -> Path:
    return Path(os.environ[VARIABLE])


if __name__ == "__main__":
    engines.register(Directory())
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:]))
