"""`nsbridged --check` and `reload --dry-run` warn of names that no container of this host has, or can have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nsbridge.config.load import load
from nsbridge.config.schema import Config
from nsbridge.supervisor.cli import nsbridged, render
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.identity import ContainerRefused, read_stat
from nsbridge.supervisor.containers.unknown import missing_engines, unknown_containers, warnings

ROUTE = """
[route.{name}.agent.a]
container = "{a}"
spool = {{ out = "/srv/{name}/out" }}
[route.{name}.agent.b]
container = "{b}"
queue = {{ in = {{ key = 7 }} }}
"""


def config(tmp_path: Path, *pairs: tuple[str, str]) -> Config:
    path = tmp_path / "nsbridge.toml"
    routes = (ROUTE.format(name=f"r{number}", a=a, b=b) for number, (a, b) in enumerate(pairs))
    path.write_text("".join(routes), encoding="utf-8")
    return load(str(path))


@pytest.fixture(autouse=True)
def runc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a host where runc has three containers: one runs, one has stopped, one is being created."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(tmp_path / "runc"))
    monkeypatch.setenv("NSBRIDGE_CRUN_ROOT", str(tmp_path / "crun"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    root = tmp_path / "runc"
    for name, pid in (("web", os.getpid()), ("legacy", 1 << 30), ("new", 0)):
        (root / name).mkdir(parents=True)
        if pid:
            start = read_stat(os.getpid()).start_time
            state = {"init_process_pid": pid, "init_process_start": start}
            (root / name / "state.json").write_text(json.dumps(state), encoding="ascii")
    return root


def test_unknown_name_is_reported_with_those_there_are(tmp_path: Path) -> None:
    """The most similar name comes first."""
    assert list(unknown_containers(config(tmp_path, ("runc:legcay", "runc:web")))) == [
        "runc knows no container legcay (yet); it knows legacy, new, web (container of r0:a)"
    ]


def test_names_that_do_not_run_are_known(tmp_path: Path) -> None:
    assert list(unknown_containers(config(tmp_path, ("runc:legacy", "runc:new")))) == []


def test_name_of_several_agents_is_one_line(tmp_path: Path) -> None:
    (line,) = unknown_containers(config(tmp_path, ("runc:wbe", "runc:legacy"), ("runc:wbe", "host")))
    assert line.endswith("(container of r0:a, r1:a)")


def test_long_list_of_names_is_cut(tmp_path: Path, runc: Path) -> None:
    for number in range(20):
        (runc / f"job-{number:02}").mkdir()
    (line,) = unknown_containers(config(tmp_path, ("runc:legcay", "host")))
    assert "it knows legacy, job-00, job-01, job-02, job-03, job-04, job-05, job-06 and 15 more (" in line


def test_engine_without_containers_knows_none(tmp_path: Path) -> None:
    (tmp_path / "crun").mkdir()
    (line,) = unknown_containers(config(tmp_path, ("crun:web", "host")))
    assert line == "crun knows no container web (yet); it knows none (container of r0:a)"


def test_engine_that_does_not_answer_warns_of_nothing(tmp_path: Path) -> None:
    """Nothing listens at DOCKER_HOST: status shows that, and it passes by itself."""
    assert warnings(config(tmp_path, ("docker:web", "docker:legacy"))) == []


def test_engine_that_is_not_here_is_reported_once(tmp_path: Path) -> None:
    (line,) = warnings(config(tmp_path, ("crun:web", "host")))
    assert line == "r0:a: no engine that could have crun:web is installed here (crun)"


def test_check_prints_the_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, ("runc:legcay", "runc:web")).source
    assert nsbridged.main(["-c", path, "--check"]) == 0
    assert f"{path}: this host: runc knows no container legcay (yet); it knows legacy, " in capsys.readouterr().out


def test_dry_run_shows_the_warnings_below_the_plan() -> None:
    plan = {"dry_run": True, "stop": [], "start": ["r"], "restart": [], "unchanged": []}
    lines = render.reload(plan | {"warnings": ["runc knows no container legcay (yet); it knows web"]})
    assert lines == [
        "would start        r",
        "this host          runc knows no container legcay (yet); it knows web",
    ]


def test_name_of_an_engine_that_is_not_here_is_reported(tmp_path: Path) -> None:
    assert list(missing_engines(config(tmp_path, ("crun:web", "crun:db")))) == [
        "r0:a: no engine that could have crun:web is installed here (crun)",
        "r0:b: no engine that could have crun:db is installed here (crun)",
    ]


@pytest.mark.parametrize("name", ["host", "pid:1", "pidfile:/run/x.pid", "ns:/run/x"])
def test_name_that_needs_no_engine_is_not_reported(tmp_path: Path, name: str) -> None:
    assert len(list(missing_engines(config(tmp_path, (name, "crun:db"))))) == 1


def test_state_or_a_program_shows_that_an_engine_is_here(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/crun").touch(0o755)
    assert list(missing_engines(config(tmp_path, ("runc:web", "crun:db")))) == []


def test_engine_that_cannot_be_looked_for_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST=tcp://… can be no socket of this host."""

    def refuse(_self: object) -> bool:
        raise ContainerRefused("DOCKER_HOST is no Unix socket")

    monkeypatch.setattr(engines.docker.Docker, "is_installed", refuse)
    assert list(missing_engines(config(tmp_path, ("docker:web", "host")))) == ["r0:a: DOCKER_HOST is no Unix socket"]
