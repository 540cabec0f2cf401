"""The `in` side of a spool, where what it is to write comes of two sources."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.sink import SpoolSink
from nsbridge.agents.wire import Run
from tests.fake_host import OfferedSinkHost
from tests.kills import killed_at
from tests.spool_box import OLD, Box, hidden_name_of, name_of


def test_a_lost_journal_s_message_leaves_no_intent_for_the_new(tmp_path: Path) -> None:
    """Killed after it: the new source's message of that number is not taken for handed over."""
    box = tmp_path / "in"
    for life in range(2):
        host = OfferedSinkHost(tmp_path / "a.in")
        sink = SpoolSink(host, host.tree, SpoolEndpoint(in_=str(box)), host.journal)
        sink.start()
        if life == 0:
            host.journal.adopt(OLD + 1, 0)
            assert sink.put(Run(OLD, 1, 0, (b"old",))) == 1
        else:
            assert host.journal.handed == 0, host.said
            assert sink.put(Run(OLD + 1, 1, 0, (b"new",))) == 1
        host.lose(sink._directory.watch)
    assert [path.read_bytes() for path in sorted(box.iterdir())] == [b"old", b"new"]


def test_a_moved_parent_directory_is_noticed_at_a_heartbeat(tmp_path: Path) -> None:
    """The next message goes where the program looks for it."""
    box = tmp_path / "spool" / "in"
    box.parent.mkdir()
    host = OfferedSinkHost(tmp_path / "a.in")
    sink = SpoolSink(host, host.tree, SpoolEndpoint(in_=str(box)), host.journal)
    sink.start()
    box.parent.rename(tmp_path / "moved")
    box.mkdir(parents=True)
    host.beat()
    assert sink.put(Run(OLD, 1, 0, (b"body",))) == 1
    assert [path.read_bytes() for path in box.iterdir()] == [b"body"]
    host.lose(sink._directory.watch)


# -- names that other programs take, and names of another time


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.kill()


@pytest.mark.parametrize("forged", [b"forged", b"", None])
def test_forged_name_is_waited_for_and_nothing_is_lost(box: Box, forged: bytes | None) -> None:
    """A file, or a directory (None). Not before it is gone is the message counted. Siblings: the next tests."""
    taken = box.path / name_of(1)
    if forged is None:
        taken.mkdir()
    else:
        taken.write_bytes(forged)
    for _ in range(3):
        assert box.offer(1, b"honest") == 0
        assert box.host.journal.handed == 0
        assert f"{name_of(1)} already exists, and nsbridge did not create it" in box.host.reason
        box.kill()
        box.start()
    if forged is None:
        taken.rmdir()
    else:
        taken.unlink()
    assert [box.offer(1, b"honest"), box.offer(2, b"next")] == [1, 1]
    assert box.bodies() == [b"honest", b"next"]


def test_forged_name_of_another_user_is_not_the_message(box: Box) -> None:
    """Even with its content: that user could still change it."""
    taken = box.path / name_of(1)
    taken.write_bytes(b"honest")
    os.chown(taken, 54321, 54321)
    assert box.offer(1, b"honest") == 0
    taken.unlink()
    assert box.offer(1, b"honest") == 1


def test_message_that_is_there_already_counts_as_delivered(box: Box, tmp_path: Path) -> None:
    """An earlier agent with a lost journal leaves such a file."""
    assert box.offer(1, b"body") == 1
    box.kill()
    (tmp_path / "a.in").unlink()
    box.start()
    assert [box.offer(1, b"body"), box.offer(2, b"next")] == [1, 1]
    assert box.bodies() == [b"body", b"next"]
    assert any("counts as delivered" in text for text in box.host.said)


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_taken_hidden_name_blocks_nothing(box: Box, kind: str) -> None:
    """It is also no evidence for a message that a killed agent was handing over."""
    taken = box.path / hidden_name_of(1)
    match kind:
        case "directory":
            (taken / "full").mkdir(parents=True)
        case "file":
            taken.write_bytes(b"forged")
        case "link":
            taken.symlink_to("/etc/shadow")
    assert [box.offer(1, b"one"), box.offer(2, b"two")] == [1, 1]
    assert sorted(path.name for path in box.path.iterdir() if not path.name.startswith(".")) == [name_of(1), name_of(2)]
    assert box.bodies() == [b"one", b"two"]


STEP = 8  # lines: the end of an inotify instance takes the kernel some 20 ms
STARTED_IN = ("endpoints/spool/sink.py", "endpoints/directory.py")
KILLED_IN = (*STARTED_IN, "agents/journal/sinkjournal.py", "endpoints/spool/epochs.py")


def life_killed_at(directory: Path, taken: bool, lines: tuple[int, int]) -> tuple[int, int]:
    """Kill a sink before that line while it hands over, its successor before that line while it starts.

    Returns how many lines there were. `taken`: the usual hidden name is taken by a directory.
    """
    directory.mkdir()
    box = Box(directory)
    if taken:
        (box.path / hidden_name_of(1) / "full").mkdir(parents=True)
    with killed_at(lines[0], *KILLED_IN) as handing:
        box.offer(1, b"one")
    box.kill()
    with killed_at(lines[1], *STARTED_IN) as starting:
        box.start()
    box.kill()
    box.start()
    if box.host.journal.handed == 0:
        assert box.offer(1, b"one") == 1
    assert box.offer(2, b"two") == 1
    assert box.bodies() == [b"one", b"two"], f"killed before lines {lines}"
    assert {path.name for path in box.path.iterdir() if path.name.startswith(".")} <= {hidden_name_of(1)}
    box.kill()
    return handing[0], starting[0]


@pytest.mark.parametrize("taken", [False, True])
def test_every_two_kills_while_a_message_is_handed_over(taken: bool) -> None:
    """Before every line of the first, every eighth of the second: the message comes once, whole, under its name."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        kill_everywhere(Path(directory), taken)


def kill_everywhere(directory: Path, taken: bool) -> None:
    ran = 0
    for first in count(1):
        for second in count(1 + first % STEP, STEP):
            ran, started = life_killed_at(directory / f"{first}-{second}", taken, (first, second))
            if started < second:
                break
        if ran < first:
            break


@pytest.mark.parametrize("what", ["name", "hidden name"])
def test_intent_of_a_failed_rename_counts_as_nothing(box: Box, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver's program removes the hidden name, or takes the name, just before the rename."""
    rename = linux.rename_noreplace

    def late(directory: int, old: bytes, new: bytes) -> None:
        monkeypatch.undo()
        if what == "name":
            (box.path / os.fsdecode(new)).write_bytes(b"forged")
        else:
            os.unlink(old, dir_fd=directory)
        rename(directory, old, new)

    monkeypatch.setattr(linux, "rename_noreplace", late)
    assert box.offer(1, b"one") == 0
    box.kill()
    box.start()
    assert box.host.journal.handed == 0
    if what == "name":
        (box.path / name_of(1)).unlink()
    assert box.offer(1, b"one") == 1
    assert box.bodies() == [b"one"]


def test_names_sort_after_those_of_a_later_epoch(box: Box, tmp_path: Path) -> None:
    """The clock went back to 1970 and both journals were lost; then a new source's journal, and another one."""
    assert [box.offer(seq, b"old %d" % seq, epoch=OLD) for seq in (1, 2)] == [1, 1]
    box.kill()
    (tmp_path / "a.in").unlink()
    box.start()
    for number, epoch in enumerate((7, 3, OLD + 99)):
        box.host.journal.adopt(epoch, 0)
        assert box.offer(1, b"new %d" % number, epoch) == 1
        box.kill()
        box.start()
        assert box.offer(2, b"newer %d" % number, epoch) == 1
    expected = [b"old 1", b"old 2"]
    for number in range(3):
        expected += [b"new %d" % number, b"newer %d" % number]
    assert box.bodies() == expected
    assert (box.path / name_of(1, OLD + 99)).exists(), "where nothing is later, the source's epoch is used"


def test_names_sort_after_those_that_were_taken_away(box: Box) -> None:
    """The journal knows the last epoch, though the directory is empty."""
    assert box.offer(1, b"old") == 1
    (box.path / name_of(1)).unlink()
    box.host.journal.adopt(3, 0)
    assert box.offer(1, b"new", 3) == 1
    assert (box.path / name_of(1, OLD + 1)).exists()


@pytest.mark.parametrize("name", ["ffffffffffffffff-00000000000000000001.0", "zzz", f"{OLD + 5:016x}-1.0", "a" * 255])
def test_names_that_are_not_ours_change_no_epoch(box: Box, name: str) -> None:
    (box.path / name).touch()
    assert box.offer(1, b"one") == 1
    assert (box.path / name_of(1)).exists()
