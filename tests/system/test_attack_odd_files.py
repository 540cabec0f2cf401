"""A container gives its files and directories what no honest program does: odd times, flags, access control lists.

The kind of fault: a number of the container's is kept in fewer bits than it may have, and what keeps it raises; or a
step that never fails for an honest program (an unlink, a rename) fails each time, and a message is lost or repeated.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.hostile_scene import contents, scene
from tests.system.room import wait_until

TIMES = {"before 1970": -86_400, "2400": 13_569_465_600}
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, linux/fs.h
IMMUTABLE, APPEND_ONLY = 0x10, 0x20


@pytest.mark.parametrize("when", TIMES.values(), ids=TIMES)
def test_a_file_s_odd_time_of_change_ends_no_agent(tmp_path: Path, unshare_container: Factory, when: int) -> None:
    """In a spool, and of a file whose content is the message, also when the agent starts anew."""
    with scene(tmp_path, unshare_container, "file") as played:
        odd = played.evil / "s/odd"
        odd.write_bytes(b"odd")
        os.utime(odd, (when, when))
        odd.rename(played.evil / "s/out/000")
        content = played.evil / "file/content"
        content.write_bytes(b"content")
        os.utime(content, (when, when))
        content.rename(played.evil / "file/out")
        wait_until(lambda: (played.peer / "file/in").read_bytes() == b"content", played.daemon.said())
        played.everything_passes()
        for name in ("file:evil", "s:evil"):
            played.begin_anew(name, played.agent(name)["pid"])
        played.everything_passes()
        assert "exit code" not in played.daemon.said()


@contextmanager
def flagged(directory: Path, flag: int) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        before = struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0]
        fcntl.ioctl(fd, SETFLAGS, struct.pack("i", before | flag))
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no such flags here: {error}")
    try:
        yield
    finally:
        fcntl.ioctl(fd, SETFLAGS, struct.pack("i", before))
        os.close(fd)


@pytest.mark.parametrize("flag", [APPEND_ONLY, IMMUTABLE], ids=["append only", "immutable"])
def test_a_spool_that_gives_nothing_back_repeats_nothing(tmp_path: Path, unshare_container: Factory, flag: int) -> None:
    """A file that is delivered and cannot be removed is not delivered again, also by the next agent."""
    with scene(tmp_path, unshare_container) as played:
        one = played.sent(played.evil / "s/out")
        wait_until(lambda: one in contents(played.peer / "s/in"), "it relays")
        kept = [played.sent(played.evil / "s/out", f"{number}") for number in range(3)]
        with flagged(played.evil / "s/out", flag):
            wait_until(lambda: set(kept) <= contents(played.peer / "s/in"), "they are delivered")
            played.begin_anew("s:evil", played.agent("s:evil")["pid"])
            played.healthy_passes()
        with flagged(played.peer / "s/in", flag):
            last = played.sent(played.evil / "s/out")
            wait_until(lambda: "blocked" in played.agent("s:peer")["phase"], "it says what it waits for")
            played.begin_anew("s:peer", played.agent("s:peer")["pid"])
            played.healthy_passes()
        wait_until(lambda: last in contents(played.peer / "s/in"), "it relays again")
        played.everything_passes()
        bodies = [path.read_bytes() for path in (played.peer / "s/in").iterdir() if not path.name.startswith(".")]
        assert len(bodies) == len(set(bodies))
        assert {one, last, *kept} <= set(bodies)
