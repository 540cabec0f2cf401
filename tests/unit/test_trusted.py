"""Paths that the operator names: who may decide what they lead to. The rules as a table, then real files."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from pathlib import Path

import pytest

from nsbridge.config import trusted
from nsbridge.config.trusted import Parent, UntrustedError, fault, open_below, open_directory, open_file, pin

STRANGER = 51000
OWNERS = frozenset({0, 1000})
KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK, "device": stat.S_IFCHR}
MODES = (0o600, 0o644, 0o664, 0o646, 0o666, 0o755, 0o775, 0o777, 0o1777, 0o1775, 0o1755)
PARENTS = (Parent(), Parent(everybody=True), Parent(group=True))


def about(kind: str, mode: int, uid: int, links: int = 1) -> os.stat_result:
    return os.stat_result((KINDS[kind] | mode, 1, 1, links, uid, 7, 0, 0, 0, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parent", PARENTS)
def test_every_combination_follows_the_rules(kind: str, mode: int, parent: Parent) -> None:
    """owner × kind × mode × names × parent; the rules are written here a second time, in their shortest form."""
    for uid, links in itertools.product((0, 1000, STRANGER), (1, 2)):
        wrong = fault("/x", about(kind, mode, uid, links), parent, OWNERS)
        refused = uid == STRANGER
        refused |= kind in ("file", "directory") and bool(mode & 0o022) and not (kind == "directory" and mode & 0o1000)
        refused |= (parent.everybody or parent.group) and kind != "directory" and links > 1
        refused |= parent.group and kind == "link"
        assert bool(wrong) == refused, (uid, links, wrong)
        assert wrong == "" or (wrong.startswith("/x ") and "; " in wrong and "\n" not in wrong), "what; how to fix it"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(UntrustedError) as raised:
        os.close(pin(str(path)))
    return str(raised.value)


def test_what_only_root_can_change_is_opened(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a/file").write_text("x")
    (root / "link").symlink_to("a/../a")
    os.symlink(root / "link", root / "absolute")
    for name in ("a/file", "link/file", "absolute/file", "a/../link/./file"):
        with os.fdopen(open_file(str(root / name))) as file:
            assert file.read() == "x"


def test_relative_path_begins_at_the_working_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_text("x")
    monkeypatch.chdir(root)
    os.close(open_file("file"))
    os.chown(root, STRANGER, STRANGER)
    assert refusal(Path("file")).startswith(
        f"{root} can be changed by users other than root (it belongs to uid {STRANGER})"
    )


@pytest.mark.parametrize("at", ["", "a", "a/b", "a/b/file"])
def test_stranger_anywhere_on_the_way_is_refused(root: Path, at: str) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("x")
    os.chown(root / at, STRANGER, STRANGER)
    assert refusal(root / "a/b/file").startswith(f"{root / at} can be changed by users other than root")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_other_writers_on_the_way_are_refused(root: Path, mode: int) -> None:
    (root / "a").mkdir()
    (root / "a/file").write_text("x")
    (root / "a").chmod(mode)
    assert f"chmod go-w {root / 'a'}" in refusal(root / "a/file")
    (root / "a").chmod(mode | stat.S_ISVTX)
    os.close(pin(str(root / "a/file")))


def test_link_of_a_stranger_is_refused_and_of_root_followed(root: Path) -> None:
    shared = root / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (root / "file").write_text("x")
    (shared / "link").symlink_to("../file")
    os.close(pin(str(shared / "link")))
    os.chown(shared / "link", STRANGER, STRANGER, follow_symlinks=False)
    assert refusal(shared / "link").startswith(f"{shared / 'link'} is a link of uid {STRANGER}")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_hard_link_in_a_shared_directory_is_refused(root: Path, kind: str) -> None:
    """A stranger may have made it of any file of root's."""
    shared = root / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (root / "file").write_text("x")
    (root / "link").symlink_to("file")
    os.link(root / kind, shared / "pid", follow_symlinks=False)
    assert refusal(shared / "pid").startswith(f"{shared / 'pid'} has 2 names")


def test_links_that_never_end_are_an_error(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as raised:
        pin(str(root / "a"))
    assert raised.value.errno == errno.ELOOP


def test_view_of_a_process_is_refused_but_for_a_namespace() -> None:
    """/proc/PID/root and the like lead to what that process chose, and their text says something else."""
    for name in ("root", "root/etc/passwd", "cwd", "exe"):
        assert "leads to what that process chooses" in refusal(Path(f"/proc/{os.getppid()}/{name}"))
    fd = pin(f"/proc/{os.getppid()}/ns/ipc")
    assert os.fstat(fd).st_ino == os.stat(f"/proc/{os.getppid()}/ns/ipc").st_ino
    os.close(fd)


def test_own_pipe_may_be_read() -> None:
    """`nsbridged -c /dev/stdin`: the user who started it opened that."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(writer)
    with os.fdopen(open_file(f"/dev/fd/{reader}"), "rb") as file:
        assert file.read() == b"x"
    os.close(reader)


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_no_file_is_not_opened(root: Path, kind: str) -> None:
    """Nothing waits for the other end of a FIFO."""
    path = root / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    with pytest.raises(ValueError, match="is not a regular file"):
        open_file(str(path))


def test_missing_file_is_made_with_its_mode_whatever_the_umask(root: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(open_file(str(root / "log"), os.O_WRONLY, create=0o640))
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "log").stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError):
        open_file(str(root / "no/log"), os.O_WRONLY, create=0o640)


def test_group_may_write_a_logs_directory_and_nothing_else(root: Path) -> None:
    """/var/log is such a directory on Ubuntu. A group member could move any link to that name."""
    logs = root / "log"
    logs.mkdir()
    logs.chmod(0o775)
    os.close(open_file(str(logs / "a"), os.O_WRONLY, create=0o640, group_dir=True))
    os.close(open_file(str(logs / "a"), os.O_WRONLY, group_dir=True))
    with pytest.raises(UntrustedError):
        open_file(str(logs / "a"))
    (logs / "link").symlink_to("a")
    os.link(logs / "a", logs / "b")
    (logs / "deeper").mkdir()
    for name in ("link", "b", "deeper/a"):
        with pytest.raises(UntrustedError):
            open_file(str(logs / name), os.O_WRONLY, create=0o640, group_dir=True)
    logs.chmod(0o777)
    with pytest.raises(UntrustedError):
        open_file(str(logs / "a"), os.O_WRONLY, group_dir=True)


def test_missing_directories_are_made(root: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(open_directory(str(root / "a/b"), make=0o755))
    finally:
        os.umask(before)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o755]
    (root / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        open_directory(str(root / "file/x"), make=0o755)


def test_directory_below_is_private_and_no_link(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        os.close(open_below(fd, "dead", {0}, "dead"))
        assert stat.S_IMODE((root / "dead").stat().st_mode) == 0o700
        (root / "theirs").mkdir(mode=0o755)
        os.chown(root / "theirs", STRANGER, STRANGER)
        (root / "link").symlink_to("theirs")
        for name in ("link", "theirs"):
            with pytest.raises(UntrustedError, match="move it away: it is made anew"):
                open_below(fd, name, {0}, name)
        assert stat.S_IMODE((root / "theirs").stat().st_mode) == 0o755
    finally:
        os.close(fd)


def test_no_exchange_during_the_walk_leads_elsewhere(root: Path) -> None:
    """A directory of a stranger's and a link of root's take turns at one name; what is opened is always root's."""
    (root / "good").mkdir()
    (root / "good/file").write_text("good")
    (root / "bad").mkdir()
    (root / "bad/file").write_text("bad")
    os.chown(root / "bad", STRANGER, STRANGER)
    (root / "name").symlink_to("good")
    (root / "other").symlink_to("bad")
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            for target in ("bad", "good"):
                os.symlink(target, root / "new")
                os.rename(root / "new", root / "name")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        seen = set()
        for _ in range(300):
            try:
                with os.fdopen(open_file(str(root / "name/file"))) as file:
                    seen.add(file.read())
            except UntrustedError:
                seen.add("")
    finally:
        over.set()
        thread.join()
    assert "bad" not in seen


def test_nothing_is_left_open(root: Path) -> None:
    (root / "link").symlink_to("/proc/self/fd")
    before = os.listdir("/proc/self/fd")
    test_stranger_anywhere_on_the_way_is_refused(root, "a/b")
    refusal(root / "link/0/x")
    os.close(open_file(str(root / "new"), os.O_WRONLY, create=0o640))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert trusted.trusted_owners() >= {0, os.geteuid()}
