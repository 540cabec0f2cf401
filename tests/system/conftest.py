"""Fixtures that start real containers. What they start is gone at the end, also after a failure and Ctrl-C.

A factory (`runc_container`, `crun_container`, `docker_container`, `podman_container`, `unshare_container`) is called
with a program's argv and the fields of engines.Program; it gives a running EngineContainer (engines.py), or with
start=False one that is not even created. `docker_container` and `podman_container` also set the environment variables
through which nsbridge finds that engine (for this process and what it starts).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from tests.system.containerd_daemon import ContainerdDaemon, CtrContainer, PodOfOne
from tests.system.engine_daemons import DaemonContainer, DockerDaemon, Podman
from tests.system.engine_service import EngineService
from tests.system.engines import IDLE, CrunContainer, EngineContainer, Program, RuncContainer, UnshareContainer
from tests.system.lxc_containers import LxcContainer
from tests.system.lxd_daemon import Lxd, LxdContainer
from tests.system.machines import MachineContainer, Machined
from tests.system.nsbridged import EVIDENCE
from tests.system.room import Room, sys_mounted

_Service = TypeVar("_Service", bound=EngineService)


class Factory(Protocol):
    """Makes containers of one kind; they are deleted at the end of the test."""

    def __call__(
        self,
        argv: Sequence[str] = IDLE,
        *,
        start: bool = True,
        files: Mapping[str, str | Path] = ...,
        user: tuple[int, int] = (0, 0),
        id_base: int = 0,
        capabilities: Sequence[str] = (),
        volumes: Mapping[str, str | Path] = ...,
        mounts: Sequence[tuple[str, str]] = (),
        options: Sequence[str] = (),
    ) -> Any:
        """See engines.Program."""


@pytest.fixture(scope="session")
def engine_base() -> Iterator[Path]:
    """Yield a directory with a short path (a socket's path has 107 bytes at most) that container users may pass."""
    with tempfile.TemporaryDirectory(prefix="nsb-", ignore_cleanup_errors=True) as base:
        Path(base).chmod(0o711)
        yield Path(base)


@pytest.fixture(scope="session")
def room(engine_base: Path) -> Iterator[Room]:
    """Yield the mount namespace of all engines: room.py lists what it changes."""
    with ExitStack() as cleanup:
        made = Room(engine_base)
        cleanup.callback(made.close)
        yield made


@pytest.fixture
def runc_container(room: Room, engine_base: Path) -> Iterator[Factory]:
    """Make containers of runc, in its usual state directory."""
    with _factory(lambda program: RuncContainer(program, room, engine_base)) as make:
        yield make


@pytest.fixture
def crun_container(room: Room, engine_base: Path) -> Iterator[Factory]:
    """Make containers of crun, in its usual state directory."""
    with _factory(lambda program: CrunContainer(program, room, engine_base)) as make:
        yield make


@pytest.fixture(scope="session")
def lxd(room: Room, engine_base: Path) -> Iterator[Lxd]:
    """Yield an LXD of this session's own."""
    with _running(Lxd, room, engine_base) as daemon:
        yield daemon


@pytest.fixture
def incus_container(lxd: Lxd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Make containers of that LXD, which nsbridge finds by LXD_DIR."""
    _enter(lxd, monkeypatch)
    with _factory(lambda program: LxdContainer(program, lxd)) as make:
        yield make


@pytest.fixture
def lxc_container(room: Room, engine_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Make containers of LXC, in a directory of the tests' own that nsbridge finds by NSBRIDGE_LXC_PATH."""
    monkeypatch.setenv("NSBRIDGE_LXC_PATH", str(engine_base / "lxc"))
    with _factory(lambda program: LxcContainer(program, room, engine_base)) as make:
        yield make


@pytest.fixture
def machined(room: Room, engine_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machined]:
    """Yield a machined of the test's own, whose machines nsbridge finds by NSBRIDGE_MACHINES."""
    base = engine_base / "machined"
    base.mkdir(exist_ok=True)
    made = Machined(room, base)
    monkeypatch.setenv("NSBRIDGE_MACHINES", str(made.machines))
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(base)


@pytest.fixture
def machine_container(machined: Machined) -> Iterator[Factory]:
    """Make machines of systemd-nspawn, registered there."""
    with _factory(lambda program: MachineContainer(program, machined)) as make:
        yield make


@pytest.fixture
def unshare_container(tmp_path: Path) -> Iterator[Factory]:
    """Make namespaces with util-linux: cheap, for tests that need many."""
    with _factory(lambda program: UnshareContainer(program, tmp_path)) as make:
        yield make


@pytest.fixture(scope="session")
def docker_daemon(room: Room, engine_base: Path) -> Iterator[DockerDaemon]:
    """Yield a dockerd of this session's own."""
    with _running(DockerDaemon, room, engine_base) as daemon:
        yield daemon


@pytest.fixture
def docker_container(docker_daemon: DockerDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Make containers of that dockerd, which nsbridge finds by DOCKER_HOST."""
    _enter(docker_daemon, monkeypatch)
    with _factory(lambda program: DaemonContainer(program, docker_daemon)) as make:
        yield make


@pytest.fixture(scope="session")
def podman(room: Room, engine_base: Path) -> Iterator[Podman]:
    """Yield a podman with storage of this session's own and no service."""
    with sys_mounted(), _running(Podman, room, engine_base) as engine:
        yield engine


@pytest.fixture
def podman_container(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Make containers of that podman, which nsbridge asks with the podman command."""
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    _enter(podman, monkeypatch)
    with _factory(lambda program: DaemonContainer(program, podman)) as make:
        yield make


@pytest.fixture
def podman_service(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    """Yield podman's API service, running; nsbridge finds it by CONTAINER_HOST."""
    podman.start_service()
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{podman.socket}")
    yield podman
    podman.end_service()


@pytest.fixture(scope="session")
def containerd_daemon(room: Room, engine_base: Path) -> Iterator[ContainerdDaemon]:
    """Yield a containerd of this session's own."""
    with _running(ContainerdDaemon, room, engine_base) as daemon:
        yield daemon


@pytest.fixture
def containerd(containerd_daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch) -> ContainerdDaemon:
    """Return that containerd; nsbridge, in this process and what it starts, finds its state."""
    _enter(containerd_daemon, monkeypatch)
    return containerd_daemon


@pytest.fixture
def ctr_container(containerd: ContainerdDaemon) -> Iterator[Factory]:
    """Make containers of that containerd with `ctr`."""
    with _factory(lambda program: CtrContainer(program, containerd)) as make:
        yield make


@pytest.fixture
def pod_container(containerd: ContainerdDaemon) -> Iterator[Factory]:
    """Make pods of one container with that containerd's CRI plugin."""
    with _factory(lambda program: PodOfOne(program, containerd)) as make:
        yield make


def _enter(engine: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in engine.env.items():
        monkeypatch.setenv(variable, value)


@contextmanager
def _running(make: Callable[[Room, Path], _Service], room: Room, engine_base: Path) -> Iterator[_Service]:
    """Yield an engine with a directory of its own, started and with its image."""
    base = Path(tempfile.mkdtemp(prefix="engine-", dir=engine_base))
    base.chmod(0o755)
    engine = make(room, base)
    try:
        engine.start()
        engine.import_image()
        yield engine
    finally:
        engine.close()


@contextmanager
def _factory(make: Callable[[Program], EngineContainer]) -> Iterator[Factory]:
    with ExitStack() as cleanup:

        def factory(argv: Sequence[str] = IDLE, *, start: bool = True, **fields: Any) -> EngineContainer:
            container = make(Program(argv, **fields))
            cleanup.callback(container.delete)
            if start:
                container.start()
            return container

        yield factory


@pytest.fixture(autouse=True)
def evidence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give daemons no counter where the test is marked `senders`, and one where it is marked `counter`.

    Such a test is about what nsbridge does without it, or with it.
    """
    if request.node.get_closest_marker("senders"):
        monkeypatch.setenv(EVIDENCE, "senders")
    elif request.node.get_closest_marker("counter"):
        monkeypatch.delenv(EVIDENCE, raising=False)
