"""`nsbridged --check` and `reload --dry-run` warn of a container name that no engine of this host has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nsbridge.config.load import load
from nsbridge.config.schema import Config
from nsbridge.supervisor.cli import nsbridged, render
from nsbridge.supervisor.containers.identity import read_stat
from nsbridge.supervisor.containers.unknown import unknown_containers, warnings

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
