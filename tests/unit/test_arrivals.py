"""Watches for containers: which places are watched, and what the log says when they cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.watch import PathWatch
from nsbridge.agents.loop import Loop
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.schema import Container, LogConfig
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.log.log import open_log
from tests.child import in_child


@pytest.mark.parametrize(
    ("kind", "name", "places"),
    [
        (engines.runc.KIND, "web", [("/run/runc/web", "")]),
        (engines.crun.KIND, "web", [("/x/crun/web", ""), ("/run/crun/web", "")]),
        (engines.pidfile.KIND, "/run/web/pid", [("/run/web", "pid")]),
        (engines.pid.KIND, "1", []),
        (engines.ns.KIND, "/proc/1/ns/ipc", []),
        (engines.host.KIND, "", []),
    ],
)
def test_where_a_container_s_coming_is_to_be_seen(
    kind: ContainerKind, name: str, places: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """crun looks at XDG_RUNTIME_DIR first, also as root."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x")
    assert list(engines.engine_of(kind).places(name)) == places


def test_what_does_not_come_back_is_not_watched(tmp_path: Path) -> None:
    loop, log = Loop(), open_log(LogConfig(file=str(tmp_path / "log")))
    arrivals = Arrivals(loop, log)
    assert not arrivals.expect(Container(engines.pid.KIND, "1"), lambda: None).is_watched
    arrivals.close()
    loop.close()
    log.close()


def test_exhausted_inotify_is_logged_once_and_used_when_free(tmp_path: Path) -> None:
    """Runs as another user, whose instances nobody else uses. Polling remains, and each look tries the watch again."""

    def child() -> list[object]:
        log = open_log(LogConfig(file=str(tmp_path / "log")))
        os.setresuid(54323, 54323, 54323)
        arrivals, held, called = Arrivals(Loop(), log), [], []
        try:
            while True:
                held.append(PathWatch())
        except Blocked:
            pass
        pidfile = Container(engines.pidfile.KIND, "/tmp/none/pid")
        watched = [arrivals.expect(pidfile, lambda: called.append(1)).is_watched for _ in range(3)]
        held.pop().close()
        watched.append(arrivals.expect(pidfile, lambda: called.append(2)).is_watched)
        arrivals._loop.run_once(1)
        return [watched, called, [entry.message for entry in log.ring.recent()]]

    watched, called, said = in_child(child)
    assert watched == [False, False, False, True]
    assert called == [2]
    (complaint,) = said
    assert "nothing can report their start: inotify instances of uid 54323 are used up: raise sysctl" in complaint
