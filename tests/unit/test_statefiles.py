"""State files of runc and crun: what is in them, where they are, what damage they may have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines, identity, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.engines.crun import Crun
from nsbridge.supervisor.containers.engines.runc import Runc
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning

RUNC = '{"id":"t1","init_process_pid":15685,"init_process_start":104284,"created":"2026-11-23T19:17:56Z","config":{}}'
CRUN = '{"pid": 15880, "process-start-time": 104370, "cgroup-path": "", "bundle": "/b", "owner": "root"}'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(tmp_path))
    monkeypatch.setenv("NSBRIDGE_CRUN_ROOT", str(tmp_path / "none"))
    return tmp_path


def state_file(root: Path, name: str, content: str, file: str = "state.json") -> Path:
    path = root / name / file
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)
    return path


def state_of(pid: int) -> str:
    return json.dumps({"init_process_pid": pid, "init_process_start": identity.read_stat(pid).start_time})


def runc(name: str) -> Container:
    return Container(engines.runc.KIND, name)


def test_what_runc_and_crun_write_is_understood() -> None:
    assert Runc.state.parse(RUNC.encode(), "t1") == (15685, 104284)
    assert Crun.state.parse(CRUN.encode(), "t1") == (15880, 104370)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "null",
        "{}",
        "\x00",
        "[" * 100_000,
        RUNC.replace("15685", "-1"),
        RUNC.replace("15685", "true"),
        RUNC.replace("15685", '"15685"'),
        RUNC.replace("15685", "1.5"),
        RUNC.replace("15685", "9" * 5000),
        RUNC.replace("104284", "null"),
        RUNC.replace('"t1"', '"t2"'),
        RUNC.replace('"t1"', "[]"),
        RUNC[:-20],
    ],
)
def test_a_damaged_state_file_is_refused_with_its_path(root: Path, text: str) -> None:
    path = state_file(root, "t1", text)
    with pytest.raises(ContainerRefused, match=str(path)) as refused:
        containers.locate(runc("t1"))
    assert "\n" not in str(refused.value)


def test_a_state_file_that_is_being_made_is_waited_for(root: Path) -> None:
    (root / "t0").mkdir()
    with pytest.raises(NotRunning, match="being created"):
        containers.locate(runc("t0"))
    state_file(root, "t1", "")
    with pytest.raises(NotRunning, match="still empty"):
        containers.locate(runc("t1"))


def test_a_state_file_that_is_too_long_is_refused(root: Path) -> None:
    with state_file(root, "t1", "").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would fill the memory
    with pytest.raises(ContainerRefused, match="is longer than"):
        containers.locate(runc("t1"))


def test_a_state_file_that_others_may_write_is_refused(root: Path) -> None:
    state_file(root, "t1", state_of(os.getpid())).chmod(0o622)
    with pytest.raises(ContainerRefused, match="chmod go-w"):
        containers.locate(runc("t1"))


def test_a_state_file_of_a_living_process_leads_to_it(root: Path) -> None:
    path = state_file(root, "t1", state_of(os.getpid()))
    assert containers.locate(runc("t1")).pid == os.getpid()
    os.mkfifo(path.with_name("exec.fifo"))
    with pytest.raises(NotRunning, match="`runc start` has not been called"):
        containers.locate(runc("t1"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../t1", "/run", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(root: Path, name: str) -> None:
    state_file(root, "t1", state_of(os.getpid()))
    with pytest.raises(ContainerRefused, match="a name has no slash"):
        containers.locate(runc(name))


def test_crun_is_searched_in_the_user_s_directory_then_in_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSBRIDGE_CRUN_ROOT", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert Crun().roots() == ("/run/crun",)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    start = identity.read_stat(os.getpid()).start_time
    state_file(tmp_path / "crun", "t1", json.dumps({"pid": os.getpid(), "process-start-time": start}), "status")
    assert containers.locate(Container(engines.crun.KIND, "t1")).pid == os.getpid()
    with pytest.raises(NotRunning, match=f"{tmp_path}/crun, /run/crun"):
        containers.locate(Container(engines.crun.KIND, "t2"))


def test_real_root_does_not_look_for_runc_in_the_users_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSBRIDGE_RUNC_ROOT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert Runc().roots() == (("/run/runc",) if os.geteuid() == 0 else ("/run/user/0/runc",))


def test_the_listing_escapes_names_and_says_what_is_damaged(root: Path) -> None:
    state_file(root, "a\x1b[2J\n", "{}")
    (row,) = [row for row in listing.list_containers() if row.name.startswith("runc:")]
    assert (row.name, row.pid, row.state) == (r"runc:a\x1b[2J\n", 0, "unknown")
    assert "has no number init_process_pid" in row.note
    assert row.note.isprintable()
