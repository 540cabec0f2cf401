"""Containers whose root is no root of the host, with each engine's own way to make them: messages pass, files fit.

Docker's userns-remap, `podman --uidmap`, and Podman of a user who is not root (tests/system/test_userns.py: runc).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import ContainerRefused
from tests.system.conftest import Factory
from tests.system.engine_daemons import DaemonContainer, DockerDaemon, Podman
from tests.system.engines import EngineContainer, Program
from tests.system.nsbridged import Nsbridged
from tests.system.room import Room, run, tool
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files
from tests.unit.http_fake import FakeEngine

NOBODY, NOGROUP, FIRST, COUNT = 65534, 65534, 300_000, 65_536  # a user, and the ids that are subordinate to it
_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
runtime = "crun"
events_logger = "file"
"""


class RemappedDocker(DockerDaemon):
    """A dockerd all of whose containers have a user namespace."""

    def serve(self, *argv: str) -> None:
        """See Daemon."""
        super().serve(*argv, "--userns-remap=nobody:nogroup")


class RootlessPodman(Podman):
    """The Podman of the user nobody, with its API service."""

    def __init__(self, room: Room, base: Path) -> None:
        super().__init__(room, base)
        (base / "containers.conf").write_text(_CONF, encoding="utf-8")
        for directory in ("graph", "run", "home"):
            (base / directory).mkdir()
            os.chown(base / directory, NOBODY, NOGROUP)
        self.socket = base / "run/api.sock"
        own = {"HOME": str(base / "home"), "XDG_RUNTIME_DIR": str(base / "run")}
        self.env = {**self.env, **own, "CONTAINER_HOST": f"unix://{self.socket}"}
        self._as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOGROUP}", "--clear-groups", "--"]

    def command(
        self, *words: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run podman as that user, in a directory that it may enter."""
        env = {name: value for name, value in {**os.environ, **self.env}.items() if name != "CONTAINER_HOST"}
        argv = ["env", "--chdir=/", *self._as, tool("podman"), *words]
        return run(self._room.command(argv), check=check, stdin=stdin, env=env)

    def start_service(self) -> None:
        """Serve the API as that user."""
        service = [tool("podman"), "system", "service", "--time=0", f"unix://{self.socket}"]
        self.serve("env", "--chdir=/", "-u", "CONTAINER_HOST", *self._as, *service)

    def close(self) -> None:
        """Close it, and end the process that keeps the user's namespace."""
        super().close()
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            pause = psutil.Process(int((self.base / "run/libpod/tmp/pause.pid").read_text(encoding="ascii")))
            if pause.uids().real == NOBODY:
                pause.send_signal(signal.SIGKILL)


@pytest.fixture
def subordinate_ids(room: Room, tmp_path: Path) -> Iterator[None]:
    """Give nobody ids of its own, in the engines' mount namespace only."""
    ids = tmp_path / "subid"
    ids.write_text(f"nobody:{FIRST}:{COUNT}\n", encoding="ascii")
    with ExitStack() as cleanup:
        for path in ("/etc/subuid", "/etc/subgid"):
            run(room.command(["mount", "--bind", str(ids), path]))
            cleanup.callback(run, room.command(["umount", path]))
        yield


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[DockerDaemon | Podman], None]]:
    """Yield a function that starts an engine, which nsbridge then finds."""
    with ExitStack() as cleanup:

        def start(engine: DockerDaemon | Podman) -> None:
            cleanup.callback(engine.close)
            if isinstance(engine, DockerDaemon):
                engine.start()
            engine.import_image()
            for variable, value in engine.env.items():
                monkeypatch.setenv(variable, value)

        yield start


def check_relay(directory: Path, web: EngineContainer, legacy: EngineContainer, root: int) -> None:
    """Check that messages pass both ways, and that what the agent makes belongs to the container's root."""
    with Nsbridged(directory, route(web.spec, legacy.spec)) as daemon, Receiver(legacy, 0x51, 1) as receiver:
        daemon.wait_for("RUNNING")
        assert daemon.agents()["r:files"]["container_pid"] == web.pid
        put_into_spool(web.rootfs / "srv/out", [b"out"])
        assert receiver.messages() == [Sent(7, b"out")]
        send_all(legacy, 0x52, [Sent(1, b"in")])
        (path,) = wait_for_files(web.rootfs / "srv/in", 1)
        assert path.read_bytes() == b"in"
        assert path.stat().st_uid == root
        agent = psutil.Process(daemon.agents()["r:files"]["pid"])
        assert set(agent.uids()) == {root}


def test_container_of_a_remapped_docker_is_served(
    tmp_path: Path,
    room: Room,
    engine_base: Path,
    subordinate_ids: None,
    started: Callable[[DockerDaemon], None],
    unshare_container: Factory,
) -> None:
    base = engine_base / "remapped"
    base.mkdir()
    docker = RemappedDocker(room, base)
    started(docker)
    web = DaemonContainer(Program(), docker)
    web.start()
    check_relay(tmp_path, web, unshare_container(), FIRST)


def test_container_of_podman_with_a_map_of_ids_is_served(
    tmp_path: Path, podman_container: Factory, unshare_container: Factory
) -> None:
    maps = [f"--uidmap=0:{FIRST}:{COUNT}", f"--gidmap=0:{FIRST}:{COUNT}"]
    check_relay(tmp_path, podman_container(options=maps), unshare_container(), FIRST)


def test_container_of_a_rootless_podman_is_served(
    tmp_path: Path,
    room: Room,
    engine_base: Path,
    subordinate_ids: None,
    started: Callable[[Podman], None],
    unshare_container: Factory,
) -> None:
    """Its root is the user; it is found by the user's API service, which CONTAINER_HOST names."""
    base = engine_base / "rootless"
    base.mkdir(mode=0o755)
    podman = RootlessPodman(room, base)
    started(podman)
    podman.start_service()
    web = DaemonContainer(Program(options=["--cgroups=disabled"]), podman)
    web.start()
    check_relay(tmp_path, web, unshare_container(), NOBODY)


def test_user_s_engine_cannot_name_a_process_of_others(
    tmp_path: Path, unshare_container: Factory, runc_container: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another user's container nor root's: only a user namespace that the user made is the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/user.sock")
    web = Container(engines.podman.KIND, "web")
    foreign = runc_container(id_base=FIRST)
    for pid in (unshare_container().pid, foreign.pid):
        state = {"Status": "running", "Pid": pid, "StartedAt": "x"}
        about = json.dumps({"Id": "5203" * 16, "Name": "web", "State": state}).encode()
        fake = FakeEngine(Path("user.sock"), {"/containers/web/json": about}, uid=NOBODY)
        try:
            with pytest.raises(ContainerRefused, match=f"belongs to user {NOBODY}, and its process {pid} is in no"):
                containers.locate(web)
        finally:
            fake.close()
            Path("user.sock").unlink()
