"""Containers restarted under load: the short form of comings.py. docs/comings.md has the long one (`make comings`)."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system import comings
from tests.system.comings import Comings, of_daemon, of_runtime, report, restart_under_load
from tests.system.comings_containerd import of_containerd
from tests.system.containerd_daemon import ContainerdDaemon
from tests.system.engine_daemons import DockerDaemon
from tests.system.room import Room, crowd
from tests.system.storm_outcome import EXACTLY_ONCE, Plan

PLAN = Plan(comings.PAIR, EXACTLY_ONCE, 4, seed=7, pause=1000)
BACK_WITHIN = 0.5  # seconds, median; the long form is held to 0.2 on a quiet machine


def check(came: Comings) -> None:
    print(report([came], PLAN.seed))
    assert came.outcome.problems() == []
    assert len(came.all_delays) == PLAN.strikes
    assert statistics.median(came.all_delays) < BACK_WITHIN * crowd()


def test_restarts_with_runc_lose_and_repeat_nothing(tmp_path: Path, room: Room, engine_base: Path) -> None:
    with ExitStack() as cleanup:
        check(restart_under_load("runc", tmp_path, of_runtime("runc", room, engine_base, cleanup), PLAN))


@pytest.mark.parametrize("engine", ["containerd", "k8s", "rolling"])
def test_restarts_with_containerd_lose_and_repeat_nothing(
    tmp_path: Path, containerd: ContainerdDaemon, engine: str
) -> None:
    """A container of `ctr`, one of a pod; and pods that replace each other as those of a Deployment do."""
    with ExitStack() as cleanup:
        check(restart_under_load(engine, tmp_path, of_containerd(engine, containerd, cleanup), PLAN))


def test_restarts_with_docker_lose_and_repeat_nothing(
    tmp_path: Path, docker_daemon: DockerDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in docker_daemon.env.items():
        monkeypatch.setenv(variable, value)
    with ExitStack() as cleanup:
        check(restart_under_load("docker", tmp_path, of_daemon(docker_daemon, cleanup), PLAN))
