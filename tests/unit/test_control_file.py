"""The control socket's file: whole from the start, never stolen, gone with its daemon."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import ConfigError, NsbridgeError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control.server import ControlServer
from tests.control_fake import FakeApi, Served, Wire

STRANGER = 51000


def test_the_socket_has_its_group_and_mode_and_is_removed() -> None:
    with Served(group="daemon", mode=0o660) as served:
        found = os.lstat(served.path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (0, _gid("daemon"))
        assert os.listdir(served.directory) == ["control.sock"]
        served.server.close()
        assert os.listdir(served.directory) == []


def _gid(name: str) -> int:
    lines = Path("/etc/group").read_text().splitlines()
    return next(int(line.split(":")[2]) for line in lines if line.startswith(name + ":"))


def test_the_socket_s_name_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server, loop = _server(path)
    with INotify() as inotify:
        inotify.add_watch(str(tmp_path), flags.CREATE | flags.MOVED_TO | flags.ATTRIB)
        server.open()
        happened = [(event.name, flags.from_mask(event.mask)) for event in inotify.read(timeout=0)]
    server.close()
    loop.close()
    assert [masks for name, masks in happened if name == path.name] == [[flags.MOVED_TO]]


def _server(path: Path, **config: str) -> tuple[ControlServer, Loop]:
    loop = Loop()
    return ControlServer(loop, ControlConfig(path=str(path), **config), FakeApi()), loop  # type: ignore[arg-type]


def _refused(path: Path, **config: str) -> str:
    server, loop = _server(path, **config)
    try:
        with pytest.raises(NsbridgeError) as refusal:
            server.open()
    finally:
        server.close()
        loop.close()
    assert isinstance(refusal.value, ConfigError) or "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    server, loop = _server(path)
    server.open()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    server.close()
    loop.close()


def test_a_live_socket_is_never_stolen() -> None:
    with Served() as served:
        assert "another daemon listens there" in _refused(Path(served.path))
        with Wire(served) as wire:
            assert wire.ask("version")["result"]
        assert os.listdir(served.directory) == ["control.sock"]


def test_a_daemon_too_busy_to_accept_is_not_taken_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))  # fills the backlog
        assert "another daemon listens there" in _refused(path)


def test_what_is_not_a_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    assert "is not a socket" in _refused(path)
    assert path.read_text() == "precious"


def test_close_leaves_the_socket_of_a_later_daemon(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server, loop = _server(path)
    server.open()
    path.unlink()
    path.write_text("somebody else's")
    server.close()
    loop.close()
    assert path.read_text() == "somebody else's"


def test_missing_directories_are_made_enterable_under_any_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "nsbridge" / "control.sock"
    before = os.umask(0o077)
    try:
        server, loop = _server(path)
        server.open()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(directory.stat().st_mode) for directory in (path.parent, path.parent.parent)]
    server.close()
    loop.close()
    assert modes == [0o755, 0o755]


@pytest.mark.parametrize(("owner", "mode"), [(STRANGER, 0o755), (0, 0o775), (0, 0o757)])
def test_a_directory_that_others_can_change_is_refused(tmp_path: Path, owner: int, mode: int) -> None:
    tmp_path.chmod(mode)
    os.chown(tmp_path, owner, 0)
    assert "can be changed by users other than root" in _refused(tmp_path / "control.sock")


@pytest.mark.parametrize("kind", ["a parent of somebody else's", "a link that somebody else can exchange"])
def test_a_directory_that_others_can_redirect_is_refused(tmp_path: Path, kind: str) -> None:
    """The owner of a directory above can rename what is in it."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if kind.startswith("a link"):
        (tmp_path / "real").mkdir()
        (theirs / "run").symlink_to(tmp_path / "real")
    else:
        (theirs / "run").mkdir()
    os.chown(theirs, STRANGER, STRANGER)
    assert f"{theirs} can be changed by users other than root" in _refused(theirs / "run/control.sock")


def test_a_path_too_long_for_a_socket_says_how_long_it_may_be(tmp_path: Path) -> None:
    assert "at most 107 bytes" in _refused(tmp_path / ("x" * 108))


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in _refused(tmp_path / "file" / "control.sock")


def test_groups_that_do_not_exist_are_both_named(tmp_path: Path) -> None:
    problems = _refused(tmp_path / "control.sock", group="nobodys", read_group="noones").splitlines()
    assert [line.split(":")[0] for line in problems] == ["daemon.control.group", "daemon.control.read_group"]
    assert "groupadd nobodys" in problems[0]


def test_a_minimal_system_without_the_default_groups_will_do(tmp_path: Path) -> None:
    program = """
import sys
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control.server import ControlServer
server = ControlServer(Loop(), ControlConfig(path=sys.argv[1]), None)
server.open(); server.close(); print("served")
"""
    shell = 'mount --bind /dev/null /etc/group && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, sys.executable, "-c", program, str(tmp_path / "control.sock")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "served\n"
