"""Machines of systemd-nspawn (`machine:NAME`), with a real nspawn and machined, and files that no machined wrote."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning
from tests.system.comings import pair_of
from tests.system.conftest import Factory
from tests.system.engine_checks import check_life, check_removal, check_restarts, check_seen_to_come
from tests.system.machines import MachineContainer, Machined


def machine(name: str = "web") -> Container:
    return Container(engines.machine.KIND, name)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory for files as machined writes them."""
    monkeypatch.setenv(engines.machine.VARIABLE, str(tmp_path))
    return tmp_path


def registered(
    directory: Path, leader: object, *, name: str = "web", more: str = "", when: float | None = None
) -> Path:
    """Write the file of a machine that was registered at that time, now if none is given."""
    stamp = int((time.monotonic() if when is None else when) * 1e6)
    path = directory / name
    path.write_text(
        f"# This is private data. Do not parse.\nNAME=web\nSERVICE=systemd-nspawn\nLEADER={leader}\nCLASS=container\n"
        f"REALTIME=1795933968236747\nMONOTONIC={stamp}\n{more}",
        encoding="utf-8",
    )
    path.chmod(0o644)
    return path


def test_machine_is_found_by_name(machine_container: Factory) -> None:
    web = machine_container(start=False)
    web.create()
    check_life(web)


def test_machine_is_seen_to_come(tmp_path: Path, machine_container: Factory) -> None:
    check_seen_to_come(tmp_path, machine_container(start=False))


def test_removal_does_not_wait_for_an_agent(tmp_path: Path, machine_container: Factory) -> None:
    check_removal(tmp_path, machine_container(), machine_container())


def test_restarts_with_nspawn_lose_and_repeat_nothing(tmp_path: Path, machined: Machined) -> None:
    with ExitStack() as cleanup:
        check_restarts("machine", tmp_path, pair_of(lambda program: MachineContainer(program, machined), cleanup))


def test_file_of_a_machine_is_understood(directory: Path, unshare_container: Factory) -> None:
    web = unshare_container()
    path = registered(directory, web.pid)
    (directory / "unit:machine-web.scope").symlink_to("web")
    assert containers.locate(machine()).pid == web.pid
    rows = [row for row in listing.list_containers() if "machine:web" in row.names]
    assert [row.pid for row in rows] == [web.pid]
    path.unlink()
    with pytest.raises(NotRunning, match='"web" is not known to machine'):
        containers.locate(machine())


def test_stale_file_whose_number_was_reused_is_stopped(directory: Path, unshare_container: Factory) -> None:
    before = time.monotonic()
    registered(directory, unshare_container().pid, when=before - 1)
    with pytest.raises(NotRunning, match="has stopped"):
        containers.locate(machine())


def test_pid_that_is_no_container_s_init_is_refused(directory: Path) -> None:
    for pid in (os.getpid(), 1):
        registered(directory, pid)
        with pytest.raises(ContainerRefused, match="is not the first one of a container"):
            containers.locate(machine())


@pytest.mark.parametrize("leader", ["", "-1", "0", "1x", "9" * 30, "\N{ARABIC-INDIC DIGIT ONE}", "\x1b[2J"])
def test_lying_leader_is_refused_in_one_line(directory: Path, leader: str) -> None:
    registered(directory, leader)
    with pytest.raises(ContainerRefused, match="has no number LEADER") as refused:
        containers.locate(machine())
    assert str(refused.value).isprintable()


def test_virtual_machine_is_refused(directory: Path, unshare_container: Factory) -> None:
    path = registered(directory, unshare_container().pid)
    path.write_text(path.read_text(encoding="utf-8").replace("CLASS=container", "CLASS=vm"), encoding="utf-8")
    with pytest.raises(ContainerRefused, match='of the class "vm"'):
        containers.locate(machine())


def test_file_of_another_machine_is_refused(directory: Path, unshare_container: Factory) -> None:
    """Also by a link."""
    registered(directory, unshare_container().pid)
    (directory / "db").symlink_to("web")
    with pytest.raises(ContainerRefused, match='is about the machine "web"'):
        containers.locate(machine("db"))


@pytest.mark.parametrize("damage", ["huge", "binary", "writable", "directory", "fifo"])
def test_damaged_file_is_refused_in_one_line(directory: Path, unshare_container: Factory, damage: str) -> None:
    path = directory / "web"
    match damage:
        case "huge":
            registered(directory, unshare_container().pid, more="X=" + "y" * (1 << 20))
        case "binary":
            path.write_bytes(bytes(range(256)) * 16)
        case "writable":
            registered(directory, unshare_container().pid).chmod(0o666)
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with pytest.raises((ContainerRefused, NotRunning)) as refused:
        containers.locate(machine())
    assert str(refused.value).isprintable()
    assert [row.pid for row in listing.list_containers() if row.name == "machine:web"] == [0]
