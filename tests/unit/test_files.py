"""Files of a hostile container: what stands where a file should be is neither opened nor waited for nor followed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.files import NotAFileError, Tree
from tests.child import in_child
from tests.descriptors import open_descriptors

NOBODY = 65534


def tree_of_this_process() -> Tree:
    return Tree(os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = tree_of_this_process()
    yield made
    made.close()
    os.close(made.own_fds)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Open `tmp_path`."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def reason(function: object, *arguments: object) -> str:
    with pytest.raises(Blocked) as caught:
        function(*arguments)  # type: ignore[operator]
    return str(caught.value)


# -- files


def plant(kind: str, path: Path) -> None:
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "character device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        case "block device":
            os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 0))
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
        case "link":
            path.symlink_to("/etc/passwd")
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to a file beside it":
            path.with_name("real").write_bytes(b"x")
            path.symlink_to("real")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_TRUNC])
@pytest.mark.parametrize(
    "kind",
    [
        "FIFO",
        "character device",
        "block device",
        "directory",
        "socket",
        "link",
        "dangling link",
        "link to a file beside it",
    ],
)
def test_what_is_no_regular_file_is_not_opened(
    nothing_stays_open: None, tree: Tree, directory: int, tmp_path: Path, kind: str, flags: int
) -> None:
    plant(kind, tmp_path / "x")
    started = time.monotonic()
    with pytest.raises(NotAFileError, match="not a regular file"):
        tree.open_file(directory, b"x", flags)
    assert time.monotonic() - started < 5  # a FIFO without a peer would hang


@pytest.mark.parametrize("name", [b"../x", b"/etc/passwd", b"sub/../../x", b"link/passwd"])
def test_a_name_that_leads_out_of_the_directory_is_not_opened(tree: Tree, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/sub").mkdir()
    (tmp_path / "inside/link").symlink_to("/etc")
    inside = os.open(tmp_path / "inside", os.O_RDONLY)
    with pytest.raises(OSError, match=r"openat2|symbolic link"):
        tree.open_file(inside, name, os.O_RDONLY)
    os.close(inside)


def test_a_file_that_is_missing_says_so(tree: Tree, directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        tree.open_file(directory, b"x", os.O_RDONLY)


@pytest.mark.parametrize("name", [b"x", b"\xff\n\x1b[31m", b" ", b"-", "ä".encode(), b"x" * 255])
def test_a_regular_file_is_opened_by_any_name(
    nothing_stays_open: None, tree: Tree, directory: int, tmp_path: Path, name: bytes
) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"content")
    fd = tree.open_file(directory, name, os.O_RDONLY)
    assert os.read(fd, 100) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_file_under_a_write_lease_is_not_waited_for(directory: int, tmp_path: Path) -> None:
    """open(2) without O_NONBLOCK waits for the holder, 45 seconds by default."""
    (tmp_path / "x").write_bytes(b"")

    def child() -> str:
        own_tree = tree_of_this_process()
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        holder = os.open(tmp_path / "x", os.O_RDWR)
        fcntl.fcntl(holder, linux.F_SETLEASE, fcntl.F_WRLCK)
        try:
            own_tree.open_file(directory, b"x", os.O_RDONLY)
        except OSError as error:
            return type(error).__name__
        return "opened"

    assert in_child(child) == "BlockingIOError"


def test_a_file_is_opened_with_the_agent_s_own_rights(directory: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "x").chmod(0o600)

    def child() -> str:
        own_tree = tree_of_this_process()
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            own_tree.open_file(directory, b"x", os.O_RDONLY)
        except OSError as error:
            return str(files.blocked_by(error, "x"))
        return "opened"

    assert in_child(child).startswith("x: Permission denied for uid 65534 gid 0 (set user on the agent")


def test_a_file_is_made_with_exactly_its_mode(directory: int, tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        for mode in (0o600, 0o666, 0o640):
            os.close(files.make_file(directory, b"%o" % mode, mode))
            assert stat.S_IMODE((tmp_path / f"{mode:o}").stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["FIFO", "directory", "link", "dangling link", "socket"])
def test_a_file_is_not_made_where_something_is(directory: int, tmp_path: Path, kind: str) -> None:
    plant(kind, tmp_path / "x")
    with pytest.raises(FileExistsError):
        files.make_file(directory, b"x", 0o600)
    assert not (tmp_path / "nowhere").exists()


# -- leases


def test_a_lease_is_held_when_nobody_writes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with (tmp_path / "x").open("rb") as reader:
        assert files.lease(reader.fileno()) is True
        assert fcntl.fcntl(reader, linux.F_SETLEASE + 1) == fcntl.F_RDLCK  # F_GETLEASE


@pytest.mark.parametrize("mode", ["wb", "r+b", "ab"])
def test_no_lease_is_held_while_somebody_may_write(tmp_path: Path, mode: str) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with (tmp_path / "x").open(mode), (tmp_path / "x").open("rb") as reader:
        assert files.lease(reader.fileno()) is False
    with (tmp_path / "x").open("rb") as reader:
        assert files.lease(reader.fileno()) is True


def test_there_is_no_lease_on_a_foreign_file(tmp_path: Path) -> None:
    """fcntl(2): the file's owner must be the caller's, without CAP_LEASE."""
    (tmp_path / "x").write_bytes(b"x")
    reader = os.open(tmp_path / "x", os.O_RDONLY)

    def child() -> bool | None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return files.lease(reader)

    assert in_child(child) is None
    os.close(reader)


def test_there_is_no_lease_on_what_is_no_file() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert files.lease(fd) is None
    os.close(fd)


# -- directories


def test_a_directory_is_opened(nothing_stays_open: None, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "d\udcff").mkdir()
    for path in (os.fsencode(tmp_path / "d\udcff"), os.fsencode(tmp_path / "d\udcff") + b"//"):
        fd = tree.open_directory(path)
        assert os.fstat(fd).st_ino == (tmp_path / "d\udcff").stat().st_ino
        assert os.listdir(fd) == []
        os.close(fd)


def test_the_root_is_opened(nothing_stays_open: None, tree: Tree) -> None:
    fd = tree.open_directory(b"/")
    assert os.fstat(fd).st_ino == os.stat("/").st_ino
    os.close(fd)


@pytest.mark.parametrize(
    ("mode", "made"), [(0o660, 0o770), (0o600, 0o700), (0o644, 0o755), (0o640, 0o750), (0o000, 0o100), (0o622, 0o722)]
)
def test_a_missing_directory_is_made_with_access_for_its_readers(
    nothing_stays_open: None, tree: Tree, tmp_path: Path, mode: int, made: int
) -> None:
    before = os.umask(0o777)
    try:
        os.close(tree.open_directory(os.fsencode(tmp_path / "d"), mode))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == made


def test_a_directory_that_is_made_is_reported(tmp_path: Path) -> None:
    logged: list[tuple[str, str]] = []
    tree = Tree(-1, log=lambda *said: logged.append(said))
    for _ in range(2):
        os.close(tree.open_directory(os.fsencode(tmp_path / "d"), 0o640))
    tree.close()
    assert logged == [("info", f"{tmp_path}/d was missing and is made, mode 0750, owner {os.getuid()}:{os.getgid()}")]


def test_a_directory_that_is_there_keeps_its_mode(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(0o700)
    os.close(tree.open_directory(os.fsencode(tmp_path / "d"), 0o666))
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_links_among_the_parents_are_followed(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "run/spool").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "run")
    (tmp_path / "relative").symlink_to("./absolute")
    for parent in ("absolute", "relative"):
        fd = tree.open_directory(os.fsencode(tmp_path / parent / "spool"))
        assert os.fstat(fd).st_ino == (tmp_path / "run/spool").stat().st_ino
        os.close(fd)


def test_links_are_followed_within_the_container_s_root(tmp_path: Path) -> None:
    """Absolute ones, and those with more .. than there are levels."""
    for name in ("run/spool", "var"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "run/spool").mkdir(parents=True)  # outside
    (tmp_path / "root/var/run").symlink_to("/run")
    (tmp_path / "root/var/up").symlink_to("../../../../run")

    def child() -> list[int]:
        os.chroot(tmp_path / "root")
        os.chdir("/")
        tree = Tree(-1)
        return [os.fstat(tree.open_directory(path)).st_ino for path in (b"/var/run/spool", b"/var/up/spool")]

    assert in_child(child) == [(tmp_path / "root/run/spool").stat().st_ino] * 2


@pytest.mark.parametrize("mode", [None, 0o660])
@pytest.mark.parametrize("kind", ["FIFO", "character device", "socket", "link", "dangling link"])
def test_what_is_no_directory_is_not_opened(
    nothing_stays_open: None, tree: Tree, tmp_path: Path, kind: str, mode: int | None
) -> None:
    plant(kind, tmp_path / "x")
    said = reason(tree.open_directory, os.fsencode(tmp_path / "x"), mode)
    assert said.startswith(f"{tmp_path}/x: ")
    is_parent_missing = kind == "dangling link" and mode is None  # the link of a parent is followed
    assert said.endswith("No such file or directory" if is_parent_missing else " (links are not followed here)")


def test_a_link_to_a_directory_is_not_opened(nothing_stays_open: None, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "x").symlink_to("real")
    assert reason(tree.open_directory, os.fsencode(tmp_path / "x"), 0o660).endswith("(links are not followed here)")


@pytest.mark.parametrize("path", ["/proc/self/root/tmp", "/proc/self/cwd/x", "/proc/self/root"])
def test_a_magic_link_is_never_followed(nothing_stays_open: None, tree: Tree, path: str) -> None:
    assert reason(tree.open_directory, path.encode()).endswith("(links are not followed here)")


@pytest.mark.parametrize(("path", "kind"), [("/proc/sys/kernel", "proc"), ("/sys", "sysfs"), ("/x/kernel", "proc")])
def test_a_directory_of_the_kernel_s_is_not_opened(
    nothing_stays_open: None, tree: Tree, tmp_path: Path, path: str, kind: str
) -> None:
    """A write into a file there acts on the machine; a parent that is a link may lead there."""
    if not Path("/sys/kernel").exists() and kind == "sysfs":
        pytest.skip("no sysfs is mounted here")
    (tmp_path / "x").symlink_to("/proc/sys")
    said = reason(tree.open_directory, path.replace("/x", str(tmp_path / "x")).encode(), 0o660)
    assert f"leads into a {kind} file system" in said


def test_a_missing_directory_or_parent_says_so(tree: Tree, tmp_path: Path) -> None:
    assert reason(tree.open_directory, os.fsencode(tmp_path / "x")) == f"{tmp_path}/x: No such file or directory"
    said = reason(tree.open_directory, os.fsencode(tmp_path / "x/y"), 0o660)
    assert said.startswith(f"create {tmp_path}/x in the container")
    assert not (tmp_path / "x").exists()


def test_a_directory_that_cannot_be_made_says_who_could_not(tree: Tree, tmp_path: Path) -> None:
    def child() -> str:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return reason(tree.open_directory, b"/etc/x", 0o660)

    assert in_child(child).startswith("/etc/x: Permission denied for uid 65534 gid 0 (set user on the agent")
