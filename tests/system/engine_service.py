"""The service of a container engine, for tests: a process in the room that can be stuck, killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.system.room import LIMIT, Room


class EngineService:
    """The common part of Docker, Podman, containerd and LXD. `env` is the environment that nsbridge finds it by."""

    def __init__(self, room: Room, base: Path) -> None:
        self.base = base
        self.env: Mapping[str, str] = {}
        self._room = room
        self._service: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it has a service that is always there."""

    def import_image(self) -> None:
        """Import the image that all containers here have."""

    def run_service(self, *argv: str, env: Mapping[str, str]) -> None:
        """Start the process. It ends with the session, however that ends."""
        command = self._room.command(["setpriv", "--pdeathsig", "TERM", "--", *argv])
        with (self.base / "log").open("ab") as log:
            self._service = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env}
            )

    def end_service(self) -> None:
        """Send SIGTERM, or SIGKILL if it takes too long; harmless when done before."""
        if self._service is not None:
            self._service.terminate()
            try:
                self._service.wait(LIMIT)
            finally:
                self._service.kill()
                self._service.wait()
                self._service = None

    def crash_service(self) -> None:
        """Send SIGKILL, which leaves its socket file behind."""
        assert self._service is not None
        self._service.kill()
        self._service.wait()
        self._service = None

    def freeze(self) -> None:
        """Make it stuck: it accepts and does not answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.end_service()

    @property
    def _has_died(self) -> bool:
        return self._service is not None and self._service.poll() is not None

    def _signal(self, signum: signal.Signals) -> None:
        assert self._service is not None
        self._service.send_signal(signum)
