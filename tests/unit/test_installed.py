"""`nsbridged --check` reports names that cannot match: their engine is not installed on this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbridge.config.load import load
from nsbridge.config.schema import Config
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.identity import ContainerRefused
from nsbridge.supervisor.containers.unknown import missing_engines

ROUTE = """
[route.r.agent.a]
container = "{a}"
spool = {{ out = "/srv/out" }}
[route.r.agent.b]
container = "{b}"
queue = {{ in = {{ key = 7 }} }}
"""


def config(tmp_path: Path, a: str, b: str) -> Config:
    path = tmp_path / "nsbridge.toml"
    path.write_text(ROUTE.format(a=a, b=b), encoding="utf-8")
    return load(str(path))


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a host without engines: no program on the PATH, no state directory, no socket; return where runc looks."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(tmp_path / "runc"))
    monkeypatch.setenv("NSBRIDGE_CRUN_ROOT", str(tmp_path / "crun"))
    return tmp_path


def test_name_of_an_engine_that_is_not_here_is_reported(tmp_path: Path) -> None:
    assert list(missing_engines(config(tmp_path, "runc:web", "crun:db"))) == [
        "r:a: no engine that could have runc:web is installed here (runc)",
        "r:b: no engine that could have crun:db is installed here (crun)",
    ]


@pytest.mark.parametrize("name", ["host", "pid:1", "pidfile:/run/x.pid", "ns:/run/x"])
def test_name_that_needs_no_engine_is_not_reported(tmp_path: Path, name: str) -> None:
    assert len(list(missing_engines(config(tmp_path, name, "runc:db")))) == 1


def test_state_or_a_program_shows_that_an_engine_is_here(tmp_path: Path, bare: Path) -> None:
    (bare / "runc").mkdir()
    (bare / "bin").mkdir()
    (bare / "bin/crun").touch(0o755)
    assert list(missing_engines(config(tmp_path, "runc:web", "crun:db"))) == []


def test_engine_that_cannot_be_looked_for_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST=tcp://… can be no socket of this host."""

    def refuse(_self: object) -> bool:
        raise ContainerRefused("DOCKER_HOST is no Unix socket")

    monkeypatch.setattr(engines.docker.Docker, "is_installed", refuse)
    assert list(missing_engines(config(tmp_path, "docker:web", "host"))) == ["r:a: DOCKER_HOST is no Unix socket"]
