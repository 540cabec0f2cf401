"""The scene of the identity tests: which death of an agent counts as a refusal."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tests.system.engines import RuntimeContainer
from tests.system.identity_scene import EVIL, Scene
from tests.system.nsbridged import Nsbridged


class _Daemon:
    """A daemon that reports one agent, as the test sets it; a new pid for each death, as a supervisor gives."""

    def __init__(self, pid: int) -> None:
        self.agent = {"pid": pid, "state": "RUNNING", "restarts": 0, "last_exit": None, "detail": "", "phase": "idle"}
        self.reports = 0

    def agents(self) -> dict[str, Any]:
        self.reports += 1
        if self.reports == 2:  # the look after the kill
            self.die()
        return {EVIL: self.agent}

    def die(self) -> None:
        self.agent |= {"pid": None, "state": "BACKOFF", "last_exit": "killed by SIGKILL"}
        self.agent["restarts"] = cast(int, self.agent["restarts"]) + 1


def test_only_the_scene_s_own_kill_is_no_refusal(tmp_path: Path) -> None:
    container = cast(RuntimeContainer, SimpleNamespace(rootfs=tmp_path))
    with subprocess.Popen(["sleep", "60"]) as agent:
        daemon = _Daemon(agent.pid)
        scene = Scene(cast(Nsbridged, daemon), container, container)
        scene.enter_again()
    assert agent.returncode == -signal.SIGKILL
    assert scene.refusal() == ""
    daemon.die()
    assert scene.refusal() == "killed by SIGKILL"
