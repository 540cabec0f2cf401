"""Taking from a log that is truncated, is no log, or whose agent is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.kills import killed_at
from tests.log_life import PARTS, Life

# -- truncation


def test_a_truncated_file_is_reported_and_read_from_its_start(life: Life) -> None:
    life.start()
    life.append(b"one\ntwo\npart")
    life.expect(b"one", b"two")
    os.truncate(life.log, 0)
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")
    assert life.warned("was truncated or written anew (1 times so far)") == 1


def test_a_truncation_is_seen_although_the_file_grew_again(life: Life) -> None:
    """Also if no agent looked in between, as with copytruncate under load."""
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    os.truncate(life.log, 0)
    life.append(b"another\nand another\n")
    life.expect(b"one", b"another", b"and another")
    life.kill()
    os.truncate(life.log, 0)
    life.append(b"one\n" * 30)
    life.start()
    life.expect(b"one", b"another", b"and another", *[b"one"] * 30)
    assert life.warned("was truncated or written anew (2 times so far)") == 1


def test_a_truncation_is_seen_where_only_the_end_differs(life: Life) -> None:
    """The same header, and more, is at the file's beginning."""
    header = b"#" * 300 + b"\n"
    life.append(header + b"one\n")
    life.start()
    life.expect(header[:-1], b"one")
    life.kill()
    life.log.write_bytes(header + b"two\nthree\n")
    life.start()
    life.expect(header[:-1], b"one", header[:-1], b"two", b"three")
    life.log.write_bytes(header + b"six\nthree\nfour\n")
    life.expect(header[:-1], b"one", *[header[:-1], b"two", b"three"], *[header[:-1], b"six", b"three", b"four"])


def test_a_truncation_loses_only_what_was_not_delivered(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start(confirms=False)
    os.truncate(life.log, 0)
    life.append(b"three\n")
    life.host.run_until(lambda: b"three" in life.host.bodies(), "the new content is read")
    life.host.confirms = True
    life.host.confirm()
    life.expect(b"one", b"two", b"three")


def test_a_new_file_with_the_old_ones_inode_is_not_taken_for_it(life: Life) -> None:
    """ext4 gives a deleted file's inode to the next one."""
    life.append(b"one\n" * 100)
    life.start()
    life.expect(*[b"one"] * 100)
    life.kill()
    life.log.write_bytes(b"two\n" * 200)  # the same inode for certain
    life.start()
    life.expect(*[b"one"] * 100, *[b"two"] * 200)


# -- what is no log


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory"])
def test_what_is_no_regular_file_is_never_read_but_reported(life: Life, kind: str) -> None:
    make: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(life.log),
        "symlink": lambda: life.log.symlink_to("/etc/passwd"),
        "directory": life.log.mkdir,
    }
    make[kind]()
    life.start()
    assert str(life.log) in life.host.reason
    life.log.rmdir() if kind == "directory" else life.log.unlink()
    life.append(b"one\n")
    life.expect(b"one")
    assert life.host.reason == ""


def test_a_directory_that_is_not_there_yet_is_waited_for(life: Life) -> None:
    life.directory.rmdir()
    life.start()
    assert life.host.reason
    life.directory.mkdir()
    life.append(b"one\n")
    life.expect(b"one")


def test_a_huge_hole_takes_no_memory_and_does_not_block_the_loop(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    os.truncate(life.log, 1 << 30)
    life.host.run_until(lambda: b"one" in life.host.bodies(), "what is before it arrives")
    os.truncate(life.log, 4)
    life.append(b"two\n")
    life.host.run_until(lambda: b"two" in life.host.bodies(), "what comes after it arrives")


# -- kills


def run_and_kill(life: Life, line: int) -> tuple[int, bool]:
    """Kill a process before that line of endpoint, journal and store; return how many lines ran, and if all did."""
    steps: list[Callable[[], object]] = [
        lambda: life.append(b"one\ntwo\n"),
        lambda: life.append(b"x" * 2000 + b"\nthree\nrest"),
        life.rotate,
        lambda: life.append(b"four\n"),
        lambda: life.append(b"five\n"),
    ]
    life.start()
    life.kill()  # from its first start on, no file is forgotten
    life.create()
    assert life._source is not None
    done = False
    with killed_at(line, *PARTS) as ran:
        life._source.start()
        while steps:
            steps.pop(0)()
            for _ in range(4):
                life.host.loop.run_once(0)
        done = True
    life.kill()
    for step in steps:
        step()
    return ran[0], done


STRIDE = 3  # every third line; all took 45 s, and passed too


@pytest.mark.usefixtures("make")
def test_a_kill_at_any_line_loses_and_repeats_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Messages, something too long, a rotation with an unended line: one kill, at each line that runs, one by one."""
    line, done = 0, False
    while not done:
        line += STRIDE
        life = Life(tmp_path_factory.mktemp("life"))
        try:
            _, done = run_and_kill(life, line)
            life.start()
            life.expect(b"one", b"two", b"three", b"rest", b"four", b"five")
            assert life.warned("lost") == 0
        except BaseException:
            print("killed at line", line)
            raise
        finally:
            life.kill()
    assert line > 500


@pytest.mark.alone  # it measures
def test_a_lost_log_is_not_searched_again_among_many_names(life: Life) -> None:
    """After a kill, for each of the messages that have to be read again: ten thousand names cost once."""
    life.start(confirms=False)
    for number in range(60):  # one by one, so that each has a note of its own
        life.append(b"%d\n" % number)
        life.host.run_until(lambda: len(life.host.bodies()) > number, "it is taken")  # noqa: B023
    life.kill()
    life.received.clear()
    life.log.unlink()
    for number in range(10_000):
        (life.directory / f"app.log.{number}").touch()
    started = time.process_time()
    life.start()
    life.host.run_until(lambda: len(life.received) >= 60, "they are given up")
    assert time.process_time() - started < 2
    assert life.warned("the message at byte") == 60
