"""Containers are found, by every kind of name and in every state, with real engines."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nsbridge.config import containerkind
from nsbridge.config.schema import JOINED, Container, Namespace
from nsbridge.supervisor.containers import engines, listing
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.dockerapi import ApiClient
from nsbridge.supervisor.containers.engines.podman import PodmanCommand
from nsbridge.supervisor.containers.identity import (
    ContainerProcess,
    ContainerRefused,
    Found,
    NotRunning,
    own_namespace_inode,
    read_stat,
)
from nsbridge.supervisor.containers.namespacefile import namespace_file_inode
from tests.system.engines import BUSYBOX
from tests.system.room import run

NAMED = ["runc", "crun", "docker", "podman"]  # kinds that find a restarted container by its name
LIMIT_AND_SLACK = TIME_LIMIT + 1.0


def make(request: pytest.FixtureRequest, kind: str, *args: Any, **fields: Any) -> Any:
    return request.getfixturevalue(f"{kind}_container")(*args, **fields)


@pytest.mark.parametrize("kind", [*NAMED, "unshare"])
def test_a_running_container_is_found_with_its_identity(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind)
    found = containers.locate(web.container)
    assert found == Found(web.pid, read_stat(web.pid).start_time, "")
    process = ContainerProcess.open(found)
    try:
        assert process.alive()
        assert (process.uid, process.gid) == (0, 0)
        for namespace in JOINED:
            inode = process.namespace_inode(namespace)
            assert inode == os.stat(f"/proc/{web.pid}/ns/{namespace}").st_ino
            assert inode != own_namespace_inode(namespace)
    finally:
        process.close()


@pytest.mark.parametrize("kind", NAMED)
def test_an_unknown_container_is_reported_as_unknown(request: pytest.FixtureRequest, kind: str) -> None:
    make(request, kind, start=False)
    with pytest.raises(NotRunning, match=f'container "nowhere" is not known to {kind}'):
        containers.locate(Container(containerkind.known()[kind], "nowhere"))


@pytest.mark.parametrize("kind", NAMED)
def test_a_created_container_is_not_running_until_it_is_started(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind, start=False)
    with pytest.raises(NotRunning, match="not known"):
        containers.locate(web.container)
    web.create()
    with pytest.raises(NotRunning, match="is created, not running"):
        containers.locate(web.container)
    web.start()
    assert containers.locate(web.container).pid == web.pid


@pytest.mark.parametrize("kind", [*NAMED, "unshare"])
def test_death_is_seen_by_the_pidfd_and_by_locate(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind)
    process = ContainerProcess.open(containers.locate(web.container))
    try:
        web.kill()
        assert select.select([process.pidfd], [], [], 0)[0] == [process.pidfd]
        assert not process.alive()
        with pytest.raises(NotRunning):
            process.namespace_inode(Namespace.MNT)
    finally:
        process.close()
    with pytest.raises(NotRunning):
        containers.locate(web.container)


@pytest.mark.parametrize("kind", NAMED)
def test_a_restarted_container_is_found_with_its_new_process(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind)
    before = containers.locate(web.container)
    web.stop()
    web.start()
    after = containers.locate(web.container)
    assert after.pid == web.pid
    assert (after.pid, after.start_time) != (before.pid, before.start_time)
    with pytest.raises(NotRunning):
        ContainerProcess.open(before)


@pytest.mark.parametrize("kind", ["runc", "docker", "podman"])
def test_a_paused_container_lives(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind)
    web.pause()
    try:
        process = ContainerProcess.open(containers.locate(web.container))
        assert process.alive()
        process.close()
    finally:
        web.resume()


def test_a_reused_process_number_is_not_taken_for_the_container(unshare_container: Any) -> None:
    web = unshare_container()
    found = containers.locate(web.container)
    earlier = Found(found.pid, found.start_time - 1, "")
    with pytest.raises(NotRunning, match="given to another process"):
        ContainerProcess.open(earlier)


def test_a_stale_runc_state_whose_number_was_reused_is_stopped(
    runc_container: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = runc_container()
    state = Path("/run/runc", web.name, "state.json").read_text(encoding="utf-8")
    start = read_stat(web.pid).start_time
    stale = tmp_path / web.name / "state.json"
    stale.parent.mkdir()
    stale.write_text(
        state.replace(f'"init_process_start":{start}', f'"init_process_start":{start - 1}'), encoding="utf-8"
    )
    stale.chmod(0o600)
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(tmp_path))
    with pytest.raises(NotRunning, match="has stopped"):
        containers.locate(web.container)


def test_a_zombie_init_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    try:
        with pytest.raises(NotRunning, match="has ended"):
            containers.locate(Container(engines.pid.KIND, str(child.pid)))
        with pytest.raises(NotRunning, match="has ended"):
            ContainerProcess.open(Found(child.pid, read_stat(child.pid).start_time, ""))
    finally:
        child.wait()


def test_a_thread_is_not_a_container() -> None:
    ready, done = threading.Event(), threading.Event()

    def live() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        ready.wait()
        with pytest.raises(NotRunning, match="cannot be held"):
            ContainerProcess.open(containers.locate(Container(engines.pid.KIND, str(thread.native_id))))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("id_base", [0, 200_000])
def test_the_ids_of_init_are_those_the_host_sees(runc_container: Any, id_base: int) -> None:
    web = runc_container(user=(1000, 1001), id_base=id_base)
    process = ContainerProcess.open(containers.locate(web.container))
    process.close()
    assert (process.uid, process.gid) == (id_base + 1000, id_base + 1001)


def test_a_pidfile_of_runc_leads_to_its_container(runc_container: Any) -> None:
    web = runc_container()
    by_file = Container(engines.pidfile.KIND, str(web.bundle / "pid"))
    assert containers.locate(by_file) == containers.locate(web.container)
    web.kill()
    with pytest.raises(NotRunning, match="pidfile"):
        containers.locate(by_file)
    web.start()
    assert containers.locate(by_file).pid == web.pid


def test_a_proc_namespace_file_leads_to_its_process(unshare_container: Any) -> None:
    web = unshare_container()
    path = f"/proc/{web.pid}/ns/ipc"
    found = containers.locate(Container(engines.ns.KIND, path))
    assert found == Found(web.pid, read_stat(web.pid).start_time, path)
    process = ContainerProcess.open(found)
    try:
        assert process.namespace_inode(Namespace.IPC) == os.stat(path).st_ino
        with pytest.raises(ContainerRefused, match=f"name /proc/{web.pid}/ns/mnt"):
            process.namespace_inode(Namespace.MNT)
    finally:
        process.close()
    web.kill()
    with pytest.raises(NotRunning):
        containers.locate(Container(engines.ns.KIND, path))


def test_a_bare_namespace_file_is_found_while_it_is_bound(unshare_container: Any, tmp_path: Path) -> None:
    web = unshare_container()
    path = tmp_path / "ipc"
    bare = Container(engines.ns.KIND, str(path))
    with pytest.raises(NotRunning, match="No such file"):
        containers.locate(bare)
    path.touch()
    with pytest.raises(NotRunning, match="nothing is bound there"):
        containers.locate(bare)
    run(["mount", "--bind", f"/proc/{web.pid}/ns/ipc", path])
    try:
        assert containers.locate(bare) == Found(0, 0, str(path))
        inode = os.stat(f"/proc/{web.pid}/ns/ipc").st_ino
        assert namespace_file_inode(str(path), Namespace.IPC) == inode
        with pytest.raises(ContainerRefused, match="is of the ipc kind where an mnt namespace is needed"):
            namespace_file_inode(str(path), Namespace.MNT)
    finally:
        run(["umount", path])


@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_a_container_is_found_by_its_id_not_by_a_chance_prefix(request: pytest.FixtureRequest, kind: str) -> None:
    web = make(request, kind)
    assert containers.locate(Container(web.kind, web.id)).pid == web.pid
    assert containers.locate(Container(web.kind, web.id[:12])).pid == web.pid
    with pytest.raises(NotRunning, match="not known"):
        containers.locate(Container(web.kind, web.id[:6]))


def test_podman_is_asked_over_its_socket_too(podman_container: Any, podman_service: Any) -> None:
    web = podman_container()
    os.environ["CONTAINER_HOST"] = f"unix://{podman_service.socket}"  # undone by podman_service
    assert containers.locate(web.container).pid == web.pid
    with pytest.raises(NotRunning, match=r'container "nowhere" is not known to podman \(engine socket'):
        containers.locate(Container(engines.podman.KIND, "nowhere"))
    podman_service.end_service()
    with pytest.raises(NotRunning, match="is not there"):
        containers.locate(web.container)


def test_podman_s_command_is_used_if_its_socket_is_a_leftover(
    podman_container: Any, podman_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = podman_container()
    monkeypatch.delenv("CONTAINER_HOST")
    monkeypatch.setattr(engines.podman, "SOCKET", str(podman_service.socket))
    assert isinstance(engines.podman.Podman().client(time.monotonic() + TIME_LIMIT), ApiClient)
    podman_service.crash_service()
    assert podman_service.socket.exists()
    assert isinstance(engines.podman.Podman().client(time.monotonic() + TIME_LIMIT), PodmanCommand)
    assert containers.locate(web.container).pid == web.pid


def test_a_stuck_dockerd_costs_no_more_than_the_time_limit(docker_daemon: Any, docker_container: Any) -> None:
    web = docker_container()
    docker_daemon.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(NotRunning, match=r"api\.sock does not answer"):
            containers.locate(web.container)
        assert time.monotonic() - began < LIMIT_AND_SLACK
    finally:
        docker_daemon.thaw()
    assert containers.locate(web.container).pid == web.pid


def test_a_restarted_dockerd_is_found_again(docker_daemon: Any, docker_container: Any) -> None:
    web = docker_container()
    docker_daemon.end_service()
    with pytest.raises(NotRunning, match="is the docker service running"):
        containers.locate(web.container)
    docker_daemon.start()
    with pytest.raises(NotRunning, match="is exited, not running"):
        containers.locate(web.container)
    web.start()
    assert containers.locate(web.container).pid == web.pid


def test_the_listing_shows_every_container_once_by_its_own_name(request: pytest.FixtureRequest) -> None:
    made = [make(request, kind) for kind in [*NAMED, "unshare"]]
    rows = listing.list_containers()
    for web in made:
        (row,) = [row for row in rows if row.pid == web.pid]
        assert (row.name, row.state) == (web.spec, "running")
        assert row.mnt_inode == os.stat(f"/proc/{web.pid}/ns/mnt").st_ino
        assert row.ipc_inode == os.stat(f"/proc/{web.pid}/ns/ipc").st_ino
        assert not row.mnt_is_own
        assert not row.ipc_is_own
    assert {row.name: row.note for row in rows}[made[-1].spec] == "busybox"


@pytest.mark.parametrize(("kind", "dead"), [("runc", "stopped"), ("docker", "exited"), ("podman", "exited")])
def test_the_listing_separates_created_and_dead_containers(
    request: pytest.FixtureRequest, kind: str, dead: str
) -> None:
    web = make(request, kind, start=False)
    web.create()
    assert [row.state for row in listing.list_containers() if row.name == web.spec] == ["created"]
    web.start()
    web.kill()
    (row,) = [row for row in listing.list_containers() if row.name == web.spec]
    assert (row.pid, row.state, row.mnt_inode) == (0, dead, 0)


def test_the_listing_notes_a_stuck_engine_and_shows_the_rest(
    docker_daemon: Any, docker_container: Any, runc_container: Any
) -> None:
    web, hidden = runc_container(), docker_container()
    docker_daemon.freeze()
    try:
        rows = listing.list_containers()
    finally:
        docker_daemon.thaw()
    (note,) = [row for row in rows if row.name == "docker:*"]
    assert note.pid == 0
    assert "does not answer" in note.note
    assert web.spec in [row.name for row in rows]
    assert f"pid:{hidden.pid}" in [row.name for row in rows]  # seen by its namespaces at least


def test_a_helper_process_inside_a_listed_container_is_no_row(unshare_container: Any) -> None:
    web = unshare_container()
    helper = subprocess.Popen(
        ["nsenter", f"--target={web.pid}", "--mount", "--", "sh", "-c", "echo in; exec sleep 1000"],
        stdout=subprocess.PIPE,
    )
    try:
        assert helper.stdout is not None
        assert helper.stdout.readline() == b"in\n"
        names = [row.name for row in listing.list_containers()]
        assert web.spec in names
        assert f"pid:{helper.pid}" not in names
    finally:
        helper.kill()
        helper.communicate()


def test_a_hostile_command_name_reaches_no_terminal(unshare_container: Any) -> None:
    evil = "/srv/x) R 1\n\x1b[2J"
    web = unshare_container([evil, "1000"], files={evil: "/bin/sleep"})
    (row,) = [row for row in listing.list_containers() if row.pid == web.pid]
    assert row.note == r"x) R 1\n\x1b[2J"
    assert row.note.isprintable()


def test_a_container_whose_program_ends_at_once_is_not_found(runc_container: Any) -> None:
    web = runc_container([BUSYBOX, "true"])
    web.stop()
    with pytest.raises(NotRunning, match="has stopped"):
        containers.locate(web.container)


def test_the_host_has_no_process_to_hold() -> None:
    found = containers.locate(Container(engines.host.KIND, ""))
    assert found == Found(0, 0, "")
    with pytest.raises(ValueError, match="no process to hold"):
        ContainerProcess.open(found)
