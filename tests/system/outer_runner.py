"""nsbridged as a service manager runs it: whenever it ends, it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from nsbridge.config.errors import NsbridgeError
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, tool, wait_dead, wait_until

_LOOP = 'while :; do "$@"; done'


class UnderRunner(Nsbridged):
    """Under a loop of the shell, or runit's runsv (`runit`). `start` waits for the one that the runner started."""

    def __init__(self, directory: Path, routes: str, more: str = "", *, runit: bool = False) -> None:
        super().__init__(directory, routes, more)
        self._runit = runit
        self._pid = 0  # of the daemon that answered last

    @property
    def pid(self) -> int:
        """Return the supervisor's pid."""
        return self._pid

    def start(self) -> None:
        """Start the runner, the first time; returns when a daemon answers that is not the last one."""
        if self.process is None:
            self.process = subprocess.Popen(self._command())
        wait_until(self._another_answers, f"another nsbridged answers; its log:\n{self.said()[-3000:]}")

    def _command(self) -> list[str]:
        nsbridged = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "-c", str(self.config)]
        if not self._runit:
            return ["sh", "-c", _LOOP, "runner", *nsbridged]
        service = self.directory / "service"
        service.mkdir()
        script = service / "run"
        script.write_text(f"#!/bin/sh\nexec {' '.join(nsbridged)}\n", encoding="utf-8")
        script.chmod(0o755)
        return [tool("runsv"), str(service)]

    def _another_answers(self) -> bool:
        try:
            pid = self.call("status")["daemon"]["pid"]
        except NsbridgeError:
            return False
        before, self._pid = self._pid, pid
        return bool(pid != before)

    def kill(self) -> list[int]:
        """Kill the supervisor alone; return the pids of the processes it had."""
        children = self.processes()
        os.kill(self._pid, signal.SIGKILL)
        return children

    def stop(self) -> int:
        """End the runner, then the daemon, in order; return 0, as only the runner learns its exit code."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(LIMIT)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
            wait_dead(self._pid)
        return 0

    def __exit__(self, *_exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
