"""A container that puts into the place of files what is none, or what never ends: refused, named, and nobody waits.

Each kind of bait is put into a spool, and into the place of every directory and file of every kind of endpoint. The
checks: nothing behind a bait is read or written, the messages behind it come within a second, the other route and the
supervisor notice nothing, the log names what was refused. With files opened by name the same checks fail.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbridge.agents import linux
from tests.system.conftest import Factory
from tests.system.hostile import SECRET
from tests.system.hostile_scene import Scene, contents, scene
from tests.system.room import crowd, wait_until
from tests.system.traffic import visible

WITHIN = 1.0  # seconds that a bait may cost the messages behind it
MANY = 10_000
RACE = 1.5  # seconds
RENAME_EXCHANGE = 2

BAITS = {  # kind → what the log calls it
    "a link to a file of the container's": "a symbolic link",
    "a relative link": "a symbolic link",
    "a dangling link": "a symbolic link",
    "a link to the root of init": "a symbolic link",
    "a FIFO": "a FIFO",
    "a character device": "a device",
    "an endless device": "a device",
    "a block device": "a device",
    "a directory": "a directory",
    "a socket": "a socket",
}
_LINKS = {
    "a link to a file of the container's": "/etc/shadow",
    "a relative link": "../../../etc/shadow",
    "a dangling link": "/srv/made-by-the-agent",
    "a link to the root of init": "/proc/1/root/etc/shadow",
}


def plant(kind: str, path: Path) -> None:
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a character device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        case "an endless device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        case "a block device":
            os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 0))
        case "a directory":
            path.mkdir()
        case "a file":
            path.write_bytes(b"")
        case "a socket":
            with socket.socket(socket.AF_UNIX) as bound, _at(path.parent) as parent:
                bound.bind(f"/proc/self/fd/{parent}/{path.name}")
        case _:
            path.symlink_to(_LINKS[kind])


@contextmanager
def _at(directory: Path) -> Iterator[int]:
    """Yield a short name for a directory whose path is longer than a socket's may be."""
    fd = os.open(directory, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def plant_secrets(scene: Scene) -> None:
    (scene.evil.parent / "etc/shadow").write_bytes(SECRET)


def nothing_was_read_or_written(scene: Scene) -> None:
    """Assert that nothing that the baits lead to was read or written."""
    arrived = b"".join(path.read_bytes() for path in scene.peer.rglob("*") if path.is_file())
    assert b"must-not-leave" not in arrived
    assert (scene.evil.parent / "etc/shadow").read_bytes() == SECRET
    assert os.listdir(scene.evil.parent / "etc") == ["shadow"]
    assert not (scene.evil / "made-by-the-agent").exists()


# -- in a spool


def test_a_bait_in_a_spool_delays_others_less_than_a_second(tmp_path: Path, runc_container: Factory) -> None:
    with scene(tmp_path, runc_container) as played:
        plant_secrets(played)
        for kind in BAITS:
            plant(kind, played.evil / "bait")
            (played.evil / "bait").rename(played.evil / "s/out" / kind)
            played.passes(played.evil / "s/out", played.peer / "s/in", WITHIN)
            played.healthy_passes(WITHIN)
        played.daemon.call("restart", names=["s:evil"], wait=True)  # all of them at once, as a scan finds them
        played.everything_passes()
        said = played.daemon.said()
        for kind, what in BAITS.items():
            assert f"/srv/s/out/{kind} is {what}, not a regular file; left where it is" in said
            assert os.path.lexists(played.evil / "s/out" / kind)
        nothing_was_read_or_written(played)
        played.undisturbed("s:evil", "s:peer", "h:one", "h:two")


def test_an_endless_file_delays_others_less_than_a_second(tmp_path: Path, runc_container: Factory) -> None:
    """A sparse terabyte; a file that is written faster than it is read."""
    with scene(tmp_path, runc_container) as played:
        with (played.evil / "sparse").open("wb") as sparse:
            sparse.truncate(1 << 40)
        (played.evil / "sparse").rename(played.evil / "s/out/sparse")
        played.passes(played.evil / "s/out", played.peer / "s/in", WITHIN)
        with growing(played.evil / "grows"):
            (played.evil / "grows").rename(played.evil / "s/out/grows")
            played.passes(played.evil / "s/out", played.peer / "s/in", WITHIN)
            played.healthy_passes(WITHIN)
        assert "/srv/s/out/sparse has more than max_message = 10000 bytes" in played.daemon.said()
        refused = "/srv/s/out/grows has more than max_message = 10000 bytes"
        wait_until(lambda: refused in played.daemon.said(), "it is refused once it is too large")
        played.undisturbed("s:evil", "s:peer", "h:one", "h:two")


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """Yield while another process appends to a file as fast as it can."""
    path.write_bytes(b"x")
    with path.open("ab") as file, subprocess.Popen(["dd", "if=/dev/zero", "bs=4k", "count=10k"], stdout=file) as writer:
        try:
            yield
        finally:
            writer.kill()


def test_a_leased_file_delays_others_less_than_a_second(tmp_path: Path, runc_container: Factory) -> None:
    """A process that opens it without O_NONBLOCK waits for 45 s."""
    with scene(tmp_path, runc_container) as played:
        holder = leased(played.evil / "leased")
        try:
            (played.evil / "leased").rename(played.evil / "s/out/leased")
            for _ in range(3):
                played.passes(played.evil / "s/out", played.peer / "s/in", WITHIN)
                played.healthy_passes(WITHIN)
        finally:
            os.close(holder)
        wait_until(lambda: b"leased" in contents(played.peer / "s/in"), "it comes when the lease is gone")
        assert "s/out/leased cannot be opened: a program of the container holds a lease on it" in played.daemon.said()
        played.undisturbed("s:evil", "s:peer", "h:one", "h:two")


def leased(path: Path) -> int:
    """Make a file with a write lease, which lasts as long as the descriptor."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    path.write_bytes(b"leased")
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, linux.F_SETLEASE, fcntl.F_WRLCK)
    return fd


def test_another_name_of_a_file_is_a_message_and_the_file_stays(tmp_path: Path, runc_container: Factory) -> None:
    """Inside its container a container may do what it likes; only the name in the spool is removed."""
    with scene(tmp_path, runc_container) as played:
        (played.evil / "kept").write_bytes(b"has two names")
        os.link(played.evil / "kept", played.evil / "linked")
        (played.evil / "linked").rename(played.evil / "s/out/linked")
        wait_until(lambda: b"has two names" in contents(played.peer / "s/in"), "it arrives")
        wait_until((played.evil / "s/done/linked").exists, "it is moved away")
        assert (played.evil / "kept").read_bytes() == b"has two names"
        played.everything_passes()


def test_ten_thousand_files_at_once_arrive_and_disturb_nobody(tmp_path: Path, runc_container: Factory) -> None:
    """Every other one is a bait; the healthy route continues meanwhile."""
    with scene(tmp_path, runc_container) as played:
        heap = played.evil / "heap"
        heap.mkdir()
        for number in range(MANY // 2):
            os.mkfifo(heap / f"{number:05d}")
            (heap / f"{number:05d}.message").write_bytes(b"%d" % number)
        played.daemon.call("stop", names=["s:evil"], wait=True)
        (played.evil / "s/out").rmdir()
        heap.rename(played.evil / "s/out")
        played.daemon.call("start", names=["s:evil"])
        played.healthy_passes(WITHIN)
        wait_until(lambda: len(visible(played.peer / "s/in")) == MANY // 2, "all messages arrive")
        assert played.daemon.said().count("left where it is") < 100, "the log is not flooded"
        played.everything_passes()
        wait_until(lambda: "more files were refused" in played.daemon.said(), "the others are counted")
        played.undisturbed("s:evil", "s:peer", "h:one", "h:two")


# -- in the place of directories and files


OTHER = "a file for a directory and the other way round"
PLACES = ("s/out", "s/in", "s/done", "log/out", "log/in", "file/out", "file/in")


@pytest.mark.parametrize("kind", [*_LINKS, "a FIFO", "an endless device", "a socket", OTHER])
def test_a_bait_in_place_of_a_directory_or_file_is_not_touched(
    tmp_path: Path, runc_container: Factory, kind: str
) -> None:
    """This holds for every endpoint at once; messages for them wait meanwhile, and none is lost."""
    with scene(tmp_path, runc_container, "log", "file") as played:
        plant_secrets(played)
        work(played, "before")
        for place in PLACES:
            (played.evil / place).rename(played.evil / f"{place}.away")
            what = "a directory" if place.startswith(("log", "file")) else "a file"
            bait(what if kind == OTHER else kind, played.evil / place)
        waiting = [played.sent(played.peer / "s/out")]
        append(played.peer / "log/out", b"while it was away")
        (played.peer / "file/out").write_bytes(b"while it was away")
        for route in ("s", "log", "file"):
            wait_until(lambda: is_refused(played, route), f"{route} says what it waits for")  # noqa: B023
        played.healthy_passes(WITHIN)
        nothing_was_read_or_written(played)
        for place in PLACES:
            remove(played.evil / place)
        (played.evil / "log/out").touch()
        wait_until(lambda: contents_in(played.evil / "s/in").issuperset(waiting), "what waited arrives")
        wait_until(lambda: b"while it was away" in read(played.evil / "log/in"), "in the log")
        wait_until(lambda: read(played.evil / "file/in") == b"while it was away", "in the file")
        wait_until(lambda: not any(is_refused(played, route) for route in ("s", "log", "file")), "nobody waits")
        work(played, "after")
        played.undisturbed("s:evil", "log:evil", "file:evil", "h:one", "h:two")


def bait(kind: str, path: Path) -> None:
    """Plant it although the agent may make the missing directory or file again at the same time."""
    while True:
        try:
            plant(kind, path)
        except (FileExistsError, IsADirectoryError):
            remove(path)
        else:
            return


def is_refused(played: Scene, route: str) -> bool:
    agent = played.agent(f"{route}:evil")
    return agent["phase"] == "blocked" and f"/srv/{route}" in agent["detail"]


def contents_in(directory: Path) -> set[bytes]:
    return contents(directory) if directory.is_dir() else set()


def read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")


def remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()


def work(played: Scene, word: str) -> None:
    """Send a message in each direction of each route."""
    played.everything_passes()
    for one, other in ((played.evil, played.peer), (played.peer, played.evil)):
        append(one / "log/out", word.encode())
        wait_until(lambda: word.encode() in read(other / "log/in"), f"{word} in a log; {played.daemon.said()}")  # noqa: B023
        (one / "file/out").write_bytes(word.encode())
        wait_until(lambda: read(other / "file/in") == word.encode(), f"{word} in a file; {played.daemon.said()}")  # noqa: B023


# -- exchanged while they are used


def test_names_that_are_exchanged_all_the_time_lead_nowhere(tmp_path: Path, runc_container: Factory) -> None:
    """A file and a link, the spool and a link to /etc, as fast as it goes."""
    with scene(tmp_path, runc_container, "file") as played:
        plant_secrets(played)
        (played.evil / "link").symlink_to("/etc/shadow")
        (played.evil / "etc").symlink_to("/etc")
        (played.evil / "shadow").symlink_to("/etc/shadow")
        (played.evil / "s/out/shadow").write_bytes(b"harmless")
        pairs = [("s/out/shadow", "link"), ("s/out", "etc"), ("file/in", "shadow")]
        with exchanging(played.evil, pairs):
            end = time.monotonic() + RACE
            while time.monotonic() < end:
                (played.peer / "file/out").write_bytes(b"into a file that is exchanged")
                played.sent(played.peer / "s/out")
                played.healthy_passes(WITHIN)
        nothing_was_read_or_written(played)
        wait_until(lambda: not is_refused(played, "s"), "it resumes")
        played.everything_passes()
        played.undisturbed("h:one", "h:two")


@contextmanager
def exchanging(directory: Path, pairs: list[tuple[str, str]]) -> Iterator[None]:
    """Exchange each pair's names all the time; at the end they are what they were."""
    ended = threading.Event()
    with _at(directory) as fd:

        def run() -> None:
            turns = 0
            while turns % 2 or not ended.is_set():
                turns += 1
                for one, other in pairs:
                    exchange(fd, one.encode(), other.encode())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def exchange(directory: int, one: bytes, other: bytes) -> None:
    """Exchange them in one step, if both are there."""
    linux._libc.renameat2(directory, one, directory, other, RENAME_EXCHANGE)


# -- with files opened by name


def test_without_defences_the_same_checks_see_a_link_followed(tmp_path: Path, runc_container: Factory) -> None:
    """Read, and written."""
    with scene(tmp_path, runc_container, "file", variants="naive,unfrozen") as played:
        plant_secrets(played)
        (played.evil / "file/in").unlink()
        (played.evil / "file/in").symlink_to("/etc/shadow")
        (played.evil / "s/out/link").symlink_to("/etc/shadow")
        played.sent(played.evil / "s/out")
        played.daemon.call("restart", names=["s:evil"], wait=True)
        wait_until(lambda: SECRET in contents(played.peer / "s/in"), "the secret leaves its container")
        (played.peer / "file/out").write_bytes(b"overwritten")
        wait_until(
            lambda: (played.evil.parent / "etc/shadow").read_bytes() == b"overwritten", "another file is written"
        )


@pytest.mark.parametrize("kind", ["a FIFO", "a lease"])
def test_without_defences_the_same_checks_see_a_bait_that_blocks(
    tmp_path: Path, runc_container: Factory, kind: str
) -> None:
    with scene(tmp_path, runc_container, variants="naive,unfrozen") as played:
        holder = -1
        if kind == "a lease":
            holder = leased(played.evil / "bait")
        else:
            plant(kind, played.evil / "bait")
        (played.evil / "bait").rename(played.evil / "s/out/bait")
        body = played.sent(played.evil / "s/out")
        time.sleep(WITHIN * crowd())  # which is what a bait may cost
        assert body not in contents(played.peer / "s/in")
        if kind == "a FIFO":
            holder = os.open(played.evil / "s/out/bait", os.O_WRONLY | os.O_NONBLOCK)  # ENXIO if nobody waited there
        os.close(holder)
