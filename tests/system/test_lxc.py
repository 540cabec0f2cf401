"""Containers of LXC (`lxc:NAME`), with the real LXC 5."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.identity import NotRunning
from tests.system.comings import of_runtime
from tests.system.conftest import Factory
from tests.system.engine_checks import check_life, check_removal, check_restarts, check_seen_to_come
from tests.system.lxc_containers import LxcContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import Room, wait_until
from tests.system.test_arrivals import waiting
from tests.system.test_relay import route

RUNNING = 2  # lxc_state_t


def test_lxc_container_is_found_by_name(lxc_container: Factory) -> None:
    web = lxc_container(start=False)
    web.create()
    check_life(web)
    web.pause()
    assert containers.locate(web.container).pid == web.pid, "a frozen container lives"
    web.resume()


def test_lxc_container_is_seen_to_come(tmp_path: Path, lxc_container: Factory) -> None:
    check_seen_to_come(tmp_path, lxc_container(start=False))


def test_removal_does_not_wait_for_an_agent(tmp_path: Path, lxc_container: Factory) -> None:
    check_removal(tmp_path, lxc_container(), lxc_container())


def test_restarts_with_lxc_lose_and_repeat_nothing(
    tmp_path: Path, room: Room, engine_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(engines.lxc.VARIABLE, str(engine_base / "lxc"))
    with ExitStack() as cleanup:
        check_restarts("lxc", tmp_path, of_runtime("lxc", room, engine_base, cleanup))


@contextmanager
def impostor(web: LxcContainer, answers: bytes | None) -> Iterator[None]:
    """Listen where the monitor process of a stopped container would; answer each command so, or not at all."""
    callers: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0" + os.fsencode(web.directory / "command"))
        listener.listen(100)

        def serve() -> None:
            while True:
                try:
                    caller = listener.accept()[0]
                except OSError:
                    return
                callers.append(caller)
                if answers is not None:
                    command = struct.unpack("@iiP", caller.recv(16))[0]
                    caller.sendall(answers if command != engines.lxc._GET_STATE else struct.pack("@iiP", 0, 0, RUNNING))
                    caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for caller in callers:
                caller.close()


def test_lying_pid_of_a_foreign_listener_is_refused(lxc_container: Factory, unshare_container: Factory) -> None:
    """Any program on the host's network may listen under a stopped container's name."""
    web, other, foreign = lxc_container(start=False), lxc_container(), unshare_container()
    web.create()
    for pid in (foreign.pid, other.pid, os.getpid(), 1):
        with (
            impostor(web, struct.pack("@iiP", 0, 0, pid)),
            pytest.raises(NotRunning, match="another program listens there"),
        ):
            containers.locate(web.container)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP", b"\xff" * 16, struct.pack("@iiP", -1, 0, 1), struct.pack("@iiP", 0, 0, 1 << 40)]
)
def test_garbage_of_a_foreign_listener_is_one_line(lxc_container: Factory, answer: bytes) -> None:
    web = lxc_container(start=False)
    web.create()
    with impostor(web, answer), pytest.raises(NotRunning, match="does not answer as one does") as refused:
        containers.locate(web.container)
    assert str(refused.value).isprintable()


def test_stuck_monitor_process_delays_no_other_route(
    tmp_path: Path, lxc_container: Factory, unshare_container: Factory
) -> None:
    stuck, web, legacy = lxc_container(start=False), lxc_container(), unshare_container()
    stuck.create()
    with impostor(stuck, None):
        with pytest.raises(NotRunning, match=f"does not answer .waited {TIME_LIMIT:g} s"):
            containers.locate(stuck.container)
        with Nsbridged(tmp_path, waiting(stuck.spec, "lxc:nowhere") + route(web.spec, legacy.spec)) as daemon:
            daemon.wait_for("RUNNING", "r:files", "r:queue")
            daemon.wait_for("WAITING", "w:one", "w:other")
            wait_until(lambda: "does not answer" in daemon.agents()["w:one"]["detail"], "status has the reason")


def test_directory_of_containers_is_lxc_s_own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "lxc.conf"
    monkeypatch.delenv(engines.lxc.VARIABLE, raising=False)
    monkeypatch.setattr(engines.lxc, "SYSTEM_FILE", str(system))
    with pytest.raises(NotRunning, match="looked in /var/lib/lxc"):
        containers.locate(Container(engines.lxc.KIND, "nsb-nowhere"))
    system.write_text(f"lxc.bdev.lvm.vg = x\nlxc.lxcpath = {tmp_path}\n", encoding="utf-8")
    with pytest.raises(NotRunning, match=f"looked in {tmp_path}"):
        containers.locate(Container(engines.lxc.KIND, "nsb-nowhere"))


def test_hostile_directory_entry_is_listed_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.lxc.VARIABLE, str(tmp_path))
    for name in ("\x1b[2J", "-n", "x" * 200):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").touch()
    rows = [row for row in listing.list_containers() if row.name.startswith("lxc:")]
    assert {row.state for row in rows} == {"unknown"}
    assert all(row.name.isprintable() and row.note.isprintable() for row in rows)
    assert len(rows) == 3
