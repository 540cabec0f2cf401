"""inotify on one directory: real events, also the ones that are easily missed."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.watch import Change, Changes, DirectoryWatch
from tests.child import in_child
from tests.descriptors import open_descriptors

NOBODY = 65534
NOTHING = Changes([], gone=False, lost=False)
EVENTS = watch.CLOSED | watch.MOVED_IN
Make = Callable[..., DirectoryWatch]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def watched(spool: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Yield a maker of watches of a directory, which stays open as an agent keeps it; all are closed in the end."""
    monkeypatch.chdir("/")  # where every agent is
    before = open_descriptors()
    made: list[DirectoryWatch] = []
    opened: list[int] = []

    def make(path: Path = spool, mask: int = EVENTS) -> DirectoryWatch:
        opened.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        made.append(DirectoryWatch(opened[-1], mask))
        return made[-1]

    yield make
    for each in made:
        each.close()
    for fd in opened:
        os.close(fd)
    assert open_descriptors() == before
    assert os.getcwd() == "/"


def is_readable(watching: DirectoryWatch) -> bool:
    return bool(select.select([watching], [], [], 0)[0])


def test_files_closed_after_writing_or_renamed_in_are_seen(watched: Make, spool: Path) -> None:
    changes = watched()
    (spool / "written").write_bytes(b"x")
    (spool.parent / "x").write_bytes(b"x")
    (spool.parent / "x").rename(spool / "moved")
    assert is_readable(changes)
    assert changes.read().files == [Change(b"written", watch.CLOSED), Change(b"moved", watch.MOVED_IN)]
    assert not is_readable(changes)
    assert changes.read() == NOTHING


def test_watch_reports_more_events_when_asked(watched: Make, spool: Path) -> None:
    changes = watched(mask=watch.MOVED_IN)
    (spool / "before").write_bytes(b"x")
    assert changes.read() == NOTHING
    assert changes.add(watch.CLOSED)
    assert not changes.add(watch.CLOSED)
    (spool / "after").write_bytes(b"x")
    (spool.parent / "x").write_bytes(b"x")
    (spool.parent / "x").rename(spool / "moved")
    assert changes.read().files == [Change(b"after", watch.CLOSED), Change(b"moved", watch.MOVED_IN)]
    assert changes.read() == NOTHING


def test_what_was_not_asked_for_wakes_nobody(watched: Make, spool: Path) -> None:
    changes = watched()
    (spool / "x").touch()
    changes.read()
    (spool / "x").read_bytes()
    (spool / "x").chmod(0o600)
    (spool / "x").rename(spool.parent / "x")
    (spool.parent / "y").write_bytes(b"x")
    assert not is_readable(changes)


def test_a_file_open_for_writing_is_not_seen_before_its_close(watched: Make, spool: Path) -> None:
    changes = watched()
    with (spool / "x").open("wb") as file:
        file.write(b"x")
        file.flush()
        assert not is_readable(changes)
    assert changes.read().files == [Change(b"x", watch.CLOSED)]


def test_a_directory_is_no_file(watched: Make, spool: Path) -> None:
    changes = watched(mask=EVENTS | watch.CREATED)
    (spool / "d").mkdir()
    (spool.parent / "e").mkdir()
    (spool.parent / "e").rename(spool / "e")
    assert changes.read() == NOTHING


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"\x1b[31m", b"x" * 255, "ä".encode()])
def test_a_name_is_any_bytes(watched: Make, spool: Path, name: bytes) -> None:
    changes = watched()
    Path(os.fsdecode(os.fsencode(spool) + b"/" + name)).touch()
    assert changes.read().files == [Change(name, watch.CLOSED)]


def test_identical_events_may_come_as_one(watched: Make, spool: Path) -> None:
    """An event therefore never counts."""
    changes = watched()
    for _ in range(3):
        (spool / "x").write_bytes(b"x")
    assert set(changes.read().files) == {Change(b"x", watch.CLOSED)}


def test_many_events_come_in_order(watched: Make, spool: Path) -> None:
    """More than one read brings."""
    changes = watched()
    names = [b"%05d" % number + b"x" * 200 for number in range(2000)]
    for name in names:
        os.close(os.open(os.fsencode(spool) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    seen: list[bytes] = []
    while is_readable(changes):
        got = changes.read()
        assert (got.gone, got.lost) == (False, False)
        seen += [name for name, _ in got.files]
    assert seen == names


def test_an_overflow_of_the_kernel_s_queue_is_reported(watched: Make, spool: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    changes = watched(mask=EVENTS | watch.CREATED)
    first, second = (spool / name for name in "ab")
    for _ in range(limit // 2 + 10):
        first.write_bytes(b"")
        second.write_bytes(b"")
    lost = False
    while is_readable(changes):
        got = changes.read()
        assert not got.gone
        lost = lost or got.lost
    assert lost
    (spool / "after").touch()
    assert Change(b"after", watch.CLOSED) in changes.read().files


# -- the directory itself


def test_a_removed_directory_is_gone_although_it_is_kept_open(watched: Make, spool: Path) -> None:
    """This is what happens after `rm -rf spool; mkdir spool`. The kernel reports the removal only once nobody has the
    directory open.
    """
    changes = watched()
    spool.rmdir()
    assert is_readable(changes)
    assert changes.read().gone


def test_a_directory_that_was_removed_and_made_again_is_gone(watched: Make, spool: Path) -> None:
    changes = watched()
    spool.rmdir()
    spool.mkdir()
    (spool / "x").touch()
    assert changes.read() == Changes([], gone=True, lost=False)


def test_a_directory_that_was_renamed_is_gone(watched: Make, spool: Path) -> None:
    changes = watched()
    spool.rename(spool.parent / "old")
    assert changes.read().gone


def test_a_directory_that_was_removed_with_its_parent_is_gone(watched: Make, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    changes = watched(tmp_path / "a/b")
    (tmp_path / "a/b").rmdir()
    (tmp_path / "a").rmdir()
    assert changes.read().gone


def test_a_directory_removed_before_its_watch_is_blocked(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    fd = os.open(spool, os.O_RDONLY)
    spool.rmdir()
    with pytest.raises(Blocked, match="inotify: No such file or directory"):
        DirectoryWatch(fd, EVENTS)
    os.close(fd)


def test_what_is_removed_beside_it_is_nothing(watched: Make, spool: Path, tmp_path: Path) -> None:
    changes = watched()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").rmdir()
    (tmp_path / "file").unlink()
    assert changes.read() == NOTHING
    (spool / "d").mkdir()
    (spool / "d").rmdir()
    assert changes.read() == NOTHING


def test_the_root_can_be_watched(watched: Make) -> None:
    """Its parent is itself."""
    changes = watched(Path("/"))
    mark = Path(f"/nsbridge-test-{os.getpid()}")
    mark.touch()
    try:
        assert Change(os.fsencode(mark.name), watch.CLOSED) in changes.read().files
    finally:
        mark.unlink()
    assert not changes.read().gone


def test_a_directory_whose_parent_is_not_ours_to_read_is_watched(spool: Path, tmp_path: Path) -> None:
    """inotify_add_watch(2) wants read permission, which a spool's parent need not give."""

    def child() -> list[str]:
        fd = os.open(spool, os.O_RDONLY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        changes = DirectoryWatch(fd, EVENTS)
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        return [os.fsdecode(name) for name, _ in changes.read().files]

    spool.chmod(0o777)
    tmp_path.chmod(0o711)
    assert in_child(child) == ["x"]


def test_a_path_that_is_exchanged_leads_nowhere_else(watched: Make, spool: Path, tmp_path: Path) -> None:
    """The watch is on the directory that was opened, not on what is at its path."""
    fd = os.open(spool, os.O_RDONLY)
    spool.rename(tmp_path / "old")
    spool.symlink_to("/etc")
    changes = DirectoryWatch(fd, EVENTS)
    (tmp_path / "old/x").touch()
    assert changes.read().files == [Change(b"x", watch.CLOSED)]
    changes.close()
    os.close(fd)


# -- limits


def test_used_up_instances_name_their_sysctl(spool: Path) -> None:
    """Runs as another user, whose instances nobody else uses."""

    def child() -> str:
        os.setresuid(54321, 54321, 54321)
        fd = os.open("/tmp", os.O_RDONLY)
        made = []
        try:
            while True:
                made.append(DirectoryWatch(fd, EVENTS))
        except Blocked as blocked:
            return str(blocked)

    assert in_child(child) == ("inotify instances of uid 54321 are used up: raise sysctl fs.inotify.max_user_instances")


def test_a_directory_that_may_not_be_read_is_blocked(spool: Path) -> None:
    def child() -> str:
        before = len(open_descriptors())
        fd = os.open(spool, os.O_PATH)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            DirectoryWatch(fd, EVENTS)
        except Blocked as blocked:
            return f"{blocked} {len(os.listdir('/proc/self/fd')) - before} {os.getcwd()}"
        return ""

    spool.chmod(0o711)
    assert in_child(child) == "inotify: Permission denied 1 /"


def test_a_watch_does_not_hang(watched: Make) -> None:
    signal.alarm(10)
    assert watched().read() == NOTHING
    signal.alarm(0)


def test_nothing_queued_behind_a_loss_is_believed(tmp_path: Path) -> None:
    """The kernel has one overflow event: while that waits, it drops later events without another one."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    numbers = itertools.count()

    def make(count: int) -> None:
        for number in itertools.islice(numbers, count):
            (tmp_path / f"{number:08d}").touch()

    directory = os.open(tmp_path, os.O_RDONLY)
    watched = watch.DirectoryWatch(directory, watch.CREATED)
    make(limit + 10)
    first = [watched.read() for _ in range(3)]
    assert not any(changes.lost for changes in first)
    make(sum(len(changes.files) for changes in first) + 50)  # they are queued behind the loss; the last are dropped too
    later = [watched.read() for _ in range(limit)]
    assert sum(changes.lost for changes in later) == 1
    at = next(at for at, changes in enumerate(later) if changes.lost)
    assert [changes.files for changes in later[at + 1 :] if changes.files] == []
    make(1)
    assert [os.fsdecode(change.name) for change in watched.read().files] == [f"{next(numbers) - 1:08d}"]
    watched.close()
    os.close(directory)


def test_libc_is_not_searched() -> None:
    """The search runs ldconfig or a compiler, which a container with a read-only root does not have."""
    program = (
        "import ctypes.util; ctypes.util.find_library = None; "
        "from nsbridge.agents.endpoints import watch; watch.PathWatch().close()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
