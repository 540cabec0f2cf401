"""Logs with room for what is still to be written, holes, and a container that makes work without messages."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.log_life import Life


def step(life: Life, body: bytes) -> None:
    """Let the program write a line, and the agent see it."""
    life.append(body + b"\n")
    life.host.settle()


def test_a_preallocated_log_is_read_as_it_is_written(life: Life) -> None:
    """Issue 13, F22. The kind: fallocate, truncate to a larger size, a mapping; all leave zeros behind the data."""
    with life.log.open("w+b", buffering=0) as writer:
        os.posix_fallocate(writer.fileno(), 0, 1 << 20)
        life.start()
        life.host.skips_waits = True
        for body in (b"one", b"two"):
            writer.write(body + b"\n")
            life.host.run_until(lambda body=body: body in life.host.bodies(), "it is read")  # type: ignore[misc]
        life.host.run_until(lambda: "preallocated" in life.host.reason, "status says what is waited for")
        assert "1048568 bytes from byte 8 on are preallocated" in life.host.reason
        writer.write(b"three\nfour")
        life.host.run_until(lambda: b"three" in life.host.bodies(), "it is read")
    life.rotate()
    life.append(b"five\n")
    life.expect(b"one", b"two", b"three", b"four", b"five")
    assert not life.said + life.host.said


@pytest.fixture
def shm_life(monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    """Yield a log on tmpfs, whose files may have 2^63 bytes."""
    monkeypatch.chdir("/")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        life = Life(Path(directory))
        yield life
        life.kill()


def cpu_share(life: Life, work: Callable[[], object]) -> float:
    """Return the share of a core that the agent takes while the container does `work` again and again."""
    begun, spent, until = time.monotonic(), 0.0, time.monotonic() + 2
    while time.monotonic() < until:
        work()
        before = time.thread_time()
        life.host.loop.run_once(0.002)
        spent += time.thread_time() - before
    return spent / (time.monotonic() - begun)


def test_a_log_that_is_made_huge_costs_nothing(shm_life: Life) -> None:
    """Issue 12, section 3. The kind: everything that makes a file without data look long."""
    life = shm_life
    life.start()
    step(life, b"one")
    os.truncate(life.log, 6 << 60)
    assert cpu_share(life, lambda: None) < 0.1
    life.host.skips_waits = True
    life.host.run_until(lambda: "preallocated" in life.host.reason, "status says what is waited for")
    os.truncate(life.log, 4)
    step(life, b"two")
    life.expect(b"one", b"two")


@pytest.mark.parametrize("kind", ["truncates", "renames", "makes other files", "renames back"])
def test_a_container_that_makes_work_without_messages_is_paced(shm_life: Life, kind: str) -> None:
    """Issue 12, section 3: the kind. Each turn of the container is as fast as it can be."""
    life = shm_life
    life.start()
    step(life, b"one")
    aside = life.directory / "aside"

    def truncate() -> None:
        os.truncate(life.log, 6 << 60)
        os.truncate(life.log, 4)

    def rename() -> None:
        life.log.rename(life.directory / "app.log.1")
        life.log.touch()

    def make() -> None:
        aside.touch()
        aside.unlink()

    def back() -> None:
        life.log.rename(aside)
        aside.rename(life.log)

    work = {"truncates": truncate, "renames": rename, "makes other files": make, "renames back": back}[kind]
    share = cpu_share(life, lambda: [work() for _ in range(20)])
    assert share < 0.3, "a tenth on average, and the first burst"
    step(life, b"two")
    life.host.run_until(lambda: life.host.bodies()[-1:] == [b"two"], "the log is read on")
    assert life.host.bodies() == [b"one", b"two"]


def test_a_hole_between_lines_is_passed_over(life: Life) -> None:
    life.start()
    step(life, b"one")
    os.truncate(life.log, 1 << 40)
    life.append(b"in the hole's line\ntwo\n")
    life.expect(b"one", b"two")
    assert life.warned("are passed over") == 1
    life.kill()
    life.start()
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")


def test_lines_that_are_written_through_a_mapping_are_read(life: Life) -> None:
    """Such writes are no events: the file is looked at now and then as long as it has room."""
    life.log.touch()
    os.truncate(life.log, 1 << 16)
    life.start()
    with life.log.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"one\n"
        life.host.run_until(lambda: life.host.bodies() == [b"one"], "it is read")
        mapped[4:8] = b"two\n"
        life.host.run_until(lambda: life.host.bodies() == [b"one", b"two"], "it is read")
        mapped[8:11] = b"end"
    life.rotate()
    life.expect(b"one", b"two", b"end")
