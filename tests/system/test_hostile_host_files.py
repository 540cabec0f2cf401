"""Files on the host that the operator names, where another user can change what they lead to; and a hostile comm.

The kind: a path that root follows, and of which another user decides a part. config/trusted.py has the one check, and
tests/unit/test_trusted.py its rules. Here each place that uses it is attacked: configuration (also at a reload),
state_dir and what is below it, log file, pid file, namespace file, a runtime's state.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

STRANGER = 4321
# comm is set by prctl(PR_SET_NAME), which Linux also offers as a file
RENAME = "printf '\\rUid: 0 0' > /proc/self/comm; trap 'exit 0' TERM; while :; do busybox sleep 1000 & wait; done"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a directory of another user."""
    tmp_path.chmod(0o755)
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, STRANGER, STRANGER)
    return directory


def refused(config: Path) -> str:
    """Return the error of a daemon that refuses to start: one line."""
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def configured(path: Path, state: Path, more: str = "") -> Path:
    path.write_text(f'[daemon]\nstate_dir = "{state}"\ncontrol = {{ path = "{state}/control.sock" }}\n{more}')
    return path


def one_route(container: str) -> str:
    return (
        f'[route.r.agent.a]\ncontainer = "{container}"\nspool = {{ out = "/srv/out" }}\n'
        f'[route.r.agent.b]\ncontainer = "{container}"\nspool = {{ in = "/srv/in" }}\n'
    )


# -- init's name


def test_comm_of_init_cannot_forge_its_user(tmp_path: Path, runc_container: Factory) -> None:
    """The name of a process has a carriage return and other line ends of Python: one parser, on bytes."""
    web: EngineContainer = runc_container(["/bin/busybox", "sh", "-c", RENAME], id_base=300000, user=(7, 7))
    wait_until(lambda: "Uid: 0 0" in Path(f"/proc/{web.pid}/comm").read_text(), "its name is set")
    srv = web.rootfs / "srv"
    for name in ("out", "in"):
        (srv / name).mkdir()
        os.chown(srv / name, 300007, 300007)
    status = Path(f"/proc/{web.pid}/status").read_bytes()
    assert b"\rUid: 0 0" in status, "the kernel does not escape it"
    from nsbridge.supervisor.containers.identity import ContainerProcess, found_by_pid  # noqa: PLC0415

    process = ContainerProcess.open(found_by_pid(web.pid))
    try:
        assert (process.uid, process.gid) == (300007, 300007)
    finally:
        process.close()
    with Nsbridged(tmp_path, one_route(web.spec)) as daemon:
        daemon.wait_for("RUNNING")
        for agent in daemon.agents().values():
            uids = [line for line in Path(f"/proc/{agent['pid']}/status").read_text().split("\n") if "Uid:\t" in line]
            assert uids == ["Uid:\t300007\t300007\t300007\t300007"]


# -- the configuration


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_configuration_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    config = configured(tmp_path / "my.toml", tmp_path / "state")
    config.chmod(mode)
    said = refused(config)
    assert said.startswith(f"nsbridged: {config}: {config} can be changed by users other than root (")
    assert f"chmod go-w {config}" in said
    assert f"install -D -m 644 {config} /etc/nsbridge/my.toml" in said
    assert not (tmp_path / "state").exists()


def test_configuration_in_a_home_directory_is_refused(theirs: Path, tmp_path: Path) -> None:
    """Root runs it in a checkout of uid 1000. `--check` accepts it, and prints the daemon's error."""
    config = configured(theirs / "my.toml", tmp_path / "state")
    said = refused(config)
    assert f"{theirs} can be changed by users other than root (it belongs to uid {STRANGER})" in said
    check = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridged", "--check", "-c", str(config)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done
    assert f"{config}: this host: {theirs} can be changed by users other than root" in done.stdout


def test_reload_refuses_a_configuration_that_changed_its_owner(tmp_path: Path) -> None:
    with Nsbridged(tmp_path, "") as daemon:
        os.chown(daemon.config, STRANGER, STRANGER)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "reload: nothing was changed" in daemon.said(), "it is refused")
        assert f"it belongs to uid {STRANGER}" in daemon.said()


# -- state_dir


@pytest.mark.parametrize("below", ["", "state"])
def test_state_dir_of_another_user_is_refused(theirs: Path, tmp_path: Path, below: str) -> None:
    config = configured(tmp_path / "my.toml", theirs / below, f'log = {{ file = "{tmp_path}/log" }}\n')
    assert f"daemon.state_dir {theirs / below}: {theirs} can be changed by users other than root" in refused(config)
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("name", ["dead", "dead/r", "dead/r/a", "dead/r/.retry", "journal", "journal/r"])
def test_link_below_state_dir_is_not_followed(tmp_path: Path, unshare_container: Factory, name: str) -> None:
    """Nothing is made, chmod'ed or chown'ed where it leads."""
    web = unshare_container()
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o755)
    (victim / "a").mkdir()
    os.chown(victim, STRANGER, STRANGER)
    link = tmp_path / "state" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    (tmp_path / "state").chmod(0o755)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (victim, victim / "a")]
    with Nsbridged(tmp_path, one_route(web.spec)) as daemon:
        daemon.wait_for("FATAL", "r:a")
        daemon.wait_for("RUNNING" if name in ("dead/r/a", "dead/r/.retry") else "FATAL", "r:b")
        detail = daemon.agents()["r:a"]["detail"]
        assert detail.startswith(f"{link} is a link or a file, not a directory; move it away")
        assert [(path.stat().st_mode, path.stat().st_uid) for path in (victim, victim / "a")] == before
        assert [path.name for path in victim.iterdir()] == ["a"]
        link.unlink()
        daemon.call("start", names=["r"])
        daemon.wait_for("RUNNING")


# -- the log file


@pytest.mark.parametrize("attack", ["a link of theirs", "their directory", "a hard link in /tmp"])
def test_log_file_that_others_choose_is_refused(theirs: Path, tmp_path: Path, attack: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    log = (theirs if attack == "their directory" else shared) / "nsbridge.log"
    if attack == "a link of theirs":
        log.symlink_to(victim)
        os.chown(log, STRANGER, STRANGER, follow_symlinks=False)
    elif attack == "a hard link in /tmp":
        os.link(victim, log)
    config = configured(tmp_path / "my.toml", tmp_path / "state", f'log = {{ file = "{log}" }}\n')
    said = refused(config)
    assert said.startswith("nsbridged: daemon.log.file: ")
    assert "; " in said
    assert victim.read_text() == "precious"


# -- pid files, namespace files


def waits_or_fails(directory: Path, container: str) -> Any:
    """Return the agent a of a route in that container, once it is FATAL; use a daemon of its own."""
    directory.mkdir()
    with Nsbridged(directory, one_route(container)) as daemon:
        daemon.wait_for("FATAL")
        return daemon.agents()["r:a"]


@pytest.mark.parametrize("kind", ["pidfile", "ns"])
@pytest.mark.parametrize("attack", ["link", "directory"])
def test_link_to_another_container_is_refused(
    theirs: Path, tmp_path: Path, unshare_container: Factory, kind: str, attack: str
) -> None:
    """A link of theirs to a file of root's, in /tmp or their directory, leads an agent into no other container."""
    victim = unshare_container()
    (tmp_path / "victim").touch()
    if kind == "pidfile":
        (tmp_path / "victim").write_text(f"{victim.pid}\n")
    else:
        (tmp_path / "victim").unlink()
        (tmp_path / "victim").symlink_to(f"/proc/{victim.pid}/ns/mnt")
    link = theirs / "web"
    link.symlink_to(tmp_path / "victim")
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    if attack == "link":
        os.chown(theirs, 0, 0)
        theirs.chmod(0o1777)
    agent = waits_or_fails(tmp_path / "daemon", f"{kind}:{link}")
    expected = f"{link} is a link of uid {STRANGER}" if attack == "link" else f"{theirs} can be changed by users other"
    assert expected in agent["detail"]
    assert agent["pid"] is None
    assert not (victim.rootfs / "srv/in").exists()


def test_runtime_state_in_another_users_directory_is_refused(
    theirs: Path, tmp_path: Path, runc_container: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_RUNTIME_DIR may be a user's, whose directory leads to any state file of root's."""
    victim = runc_container()
    (theirs / "web").symlink_to(f"/run/runc/{victim.name}")
    shutil.copytree(f"/run/runc/{victim.name}", theirs / "copy", ignore=shutil.ignore_patterns("*.fifo", "*.sock"))
    monkeypatch.setenv("NSBRIDGE_RUNC_ROOT", str(theirs))
    for name in ("web", "copy"):
        agent = waits_or_fails(tmp_path / name, f"runc:{name}")
        assert f"{theirs} can be changed by users other than root" in agent["detail"]


# -- what continues to work


def test_root_owned_links_and_sticky_directories_are_fine(tmp_path: Path, unshare_container: Factory) -> None:
    """/var/run is a link on every host; the fixtures themselves are below /tmp."""
    web = unshare_container()
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    (tmp_path / "real/web.pid").write_text(f"{web.pid}\n")
    with Nsbridged(tmp_path, one_route(f"pidfile:{tmp_path}/run/web.pid")) as daemon:
        daemon.wait_for("RUNNING")
