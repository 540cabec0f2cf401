"""The list of names that wait in a spool (agents/journal/waitinglist.py), and agents that begin with it."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.spool import names as spool_names
from nsbridge.agents.endpoints.spool.cells import WAITING
from nsbridge.agents.endpoints.spool.names import CLOSED, SpoolNames
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.waitinglist import NAMES_AT, WaitingList
from nsbridge.supervisor.health import deadwatch
from tests.fake_host import RING
from tests.kills import killed_at
from tests.spool_life import Life, Make

INODE = 7
NAMES = [b"a", b"bb", b"\xffccc", b"d d"]
SIZE = 1000
STEP = 11  # lines between two kills
FILES = (
    "endpoints/spool/source.py",
    "spool/names.py",
    "spool/aside.py",
    "spool/taken.py",
    "spool/delivered.py",
    "journal/waitinglist.py",
)


class Kept:
    """Holds what outlives an agent: the file, and one cell of its journal."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.cells = memoryview(bytearray(8)).cast("Q")

    def list(self, size: int = SIZE) -> WaitingList:
        """Return the list of a new agent."""
        return WaitingList(self.fd, size, self.cells, 0)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """Yield the file and the cell."""
    kept = Kept(tmp_path / "a.waiting")
    yield kept
    os.close(kept.fd)


def test_next_agent_reads_what_was_not_passed(kept: Kept) -> None:
    waiting = kept.list()
    assert not waiting.open(INODE)
    assert waiting.write(NAMES, 1, INODE) == 4
    assert waiting.read() == NAMES[1:]
    assert not waiting.has_more()
    for name in NAMES[:2]:
        waiting.passed(name)
    again = kept.list()
    assert again.open(INODE)
    assert again.read() == NAMES[2:]
    for name in NAMES[2:]:
        again.passed(name)
    assert not kept.list().open(INODE), "the list has ended"


def test_list_of_another_directory_or_journal_is_not_used(kept: Kept) -> None:
    waiting = kept.list()
    waiting.write(NAMES, 0, INODE)
    assert not kept.list().open(INODE + 1)
    before = kept.cells[0]
    waiting.write(NAMES, 0, INODE)
    kept.cells[0] = before
    assert not kept.list().open(INODE), "the place in an earlier list"
    kept.cells[0] = 0
    assert not kept.list().open(INODE), "another journal"
    kept.cells[0] = 1 << 63
    assert not kept.list().open(INODE), "a damaged cell"


def test_every_damaged_byte_is_detected(kept: Kept) -> None:
    kept.list().write(NAMES, 0, INODE)
    data = os.pread(kept.fd, SIZE, 0)
    for at in (*range(32), *range(NAMES_AT, len(data))):
        os.pwrite(kept.fd, bytes([data[at] ^ 0x10]), at)
        assert not kept.list().open(INODE), at
        os.pwrite(kept.fd, data[at : at + 1], at)
    os.truncate(kept.fd, len(data) - 1)
    assert not kept.list().open(INODE)


def test_forged_names_end_the_list(kept: Kept) -> None:
    """A compromised agent has the checksum right."""
    for forged in ([b"a/b"], [b"a", b"", b"b"]):
        waiting = kept.list()
        waiting.write(forged, 0, INODE)
        assert waiting.read() == []
        assert not waiting.has_more()


def test_list_has_a_limited_size(kept: Kept) -> None:
    waiting = kept.list(size=9)
    assert waiting.write(NAMES, 4, INODE) == 2
    assert not waiting.has_more()
    assert kept.list(size=9).open(INODE)
    assert not kept.list(size=4).open(INODE), "longer than this version makes it"


def test_full_disk_leaves_no_list(kept: Kept) -> None:
    waiting = kept.list()
    waiting.write(NAMES, 0, INODE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (NAMES_AT, before[1]))  # as a file system without room
    try:
        assert waiting.write(NAMES, 0, INODE) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not waiting.has_more()
    assert not kept.list().open(INODE)


def test_supervisor_counts_the_list_with_the_journals(tmp_path: Path) -> None:
    (tmp_path / "journal/r").mkdir(parents=True)
    (tmp_path / "journal/r/a.waiting").write_bytes(bytes(1 << 16))
    assert deadwatch._journals(str(tmp_path), "r:a") == 1 << 16


# Agents


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List spools of any size; return a list that gets an item for each scan."""
    monkeypatch.setattr(spool_names, "_WORTH_LISTING", 1)
    scan, begun = SpoolNames.scan, list[int]()

    def counted(names: SpoolNames) -> None:
        begun.append(1)
        scan(names)

    monkeypatch.setattr(SpoolNames, "scan", counted)
    return begun


def _restarted_with_a_backlog(make_spool: Make, total: int = 30, window: int = 4) -> Life:
    """Return a source whose second life has confirmed nothing yet, with that many files in the spool."""
    life = make_spool(window=window)
    life.kill()
    for number in range(total):
        life.put(f"{number:04d}", b"%d" % number)
    life.start()
    life.host.run_until(lambda: len(life.received) >= window, "some are taken")
    life.kill()
    return life


def _expect(life: Life, bodies: list[bytes]) -> None:
    life.host.run_until(lambda: len(life.received) >= len(bodies), "all arrive")
    life.host.settle()
    assert life.host.bodies() == bodies


@pytest.mark.parametrize("is_listed", [False, True])
def test_waiting_files_are_counted_at_each_heartbeat(
    make_spool: Make, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """About: those on the list are estimated by the bytes of their names."""
    monkeypatch.setattr(spool_names, "_WORTH_LISTING", 1 if is_listed else 1000)
    life = make_spool(window=4)
    life.kill()
    for number in range(300):
        life.put(f"{number:04d}", b"%d" % number)
    life.start()
    life.host.confirms = False
    life.host.run_until(lambda: len(life.received) >= 4, "the window is full")
    life.host.beat()
    assert 280 <= life.host.waiting_files <= 320
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: len(life.received) == 300, "all are taken")
    life.host.beat()
    assert life.host.waiting_files == 0


def test_killed_agent_begins_without_a_scan(make_spool: Make, scans: list[int]) -> None:
    """Files that came while no agent ran come last: a scan finds them when the list has ended."""
    life = _restarted_with_a_backlog(make_spool)
    life.put("00", b"new")
    del scans[:]
    life.start()
    life.host.run_until(lambda: len(life.received) >= 29, "nearly all arrive")
    assert not scans
    _expect(life, [*(b"%d" % number for number in range(30)), b"new"])
    assert scans


def test_flow_continues_if_no_life_is_long_enough_for_a_scan(
    make_spool: Make, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    life = _restarted_with_a_backlog(make_spool, total=200)
    monkeypatch.setattr(SpoolNames, "_step", lambda _names: None)  # the scan does not end
    del scans[:]
    while len(life.received) < 190:
        before = len(life.received)
        life.start()
        life.host.run_until(lambda before=before: len(life.received) > before, "the flow continues")  # type: ignore[misc]
        life.kill()
    assert not scans
    assert life.host.bodies() == [b"%d" % number for number in range(len(life.received))]
    life.start()


def test_names_that_are_gone_are_passed_over(make_spool: Make, scans: list[int]) -> None:
    life = _restarted_with_a_backlog(make_spool)
    for number in range(10, 30):
        (life.out / f"{number:04d}").unlink()
    life.put("0012", b"again")
    life.start()
    _expect(life, [*(b"%d" % number for number in range(10)), b"again"])
    assert scans


def test_closes_are_heard_of_when_a_listed_file_is_being_written(make_spool: Make, scans: list[int]) -> None:
    """Before that, to watch for closes costs too much: the kernel marks every file of the directory first."""
    life = _restarted_with_a_backlog(make_spool, window=1)
    del scans[:]
    with (life.out / "0002").open("ab", buffering=0) as writer:
        life.start()
        watch = life.source._directory.watch
        assert watch is not None
        assert not watch._mask & CLOSED
        life.host.run_until(lambda: b"3" in life.host.bodies(), "the next one is taken")
        assert watch._mask & CLOSED
        assert not scans
        writer.write(b" and more")
    life.host.run_until(lambda: b"2 and more" in life.host.bodies(), "it is taken at its close")


def test_another_directory_is_scanned(make_spool: Make, scans: list[int]) -> None:
    life = _restarted_with_a_backlog(make_spool)
    taken = len(life.received)
    life.out.rename(life.out.parent / "former")
    life.out.mkdir()
    life.put("1", b"other")
    del scans[:]
    life.start()
    life.host.run_until(lambda: b"other" in life.host.bodies(), "the new file arrives")
    assert scans
    assert len(life.host.bodies()) <= taken + 1


@pytest.mark.parametrize(
    "forged", [b".", b"..", b".hidden", b"x" * 300, b"0001", b"no such file", b"a.tmp", b"directory"]
)
def test_forged_list_neither_loses_nor_repeats(make_spool: Make, scans: list[int], forged: bytes) -> None:
    life = _restarted_with_a_backlog(make_spool)
    for name in (".hidden", "a.tmp"):
        (life.out / name).write_bytes(b"no message")
    (life.out / "directory").mkdir()
    journal = open_source(str(life._journal), 7, RING, patience=0)
    fd = os.open(f"{life._journal}.waiting", os.O_RDWR)
    WaitingList(fd, 1 << 20, journal.cells, WAITING).write([forged] * 100, 0, life.out.stat().st_ino)
    os.close(fd)
    journal.close()
    life.start()
    _expect(life, [b"%d" % number for number in range(30)])
    assert scans


def life_killed_at(directory: Path, line: int) -> int:
    """Kill the source before that line; return how many lines there were."""
    directory.mkdir()
    life = Life(directory, window=2)
    life.kill()
    for number in range(5):
        life.put(f"{number}", b"%d" % number)
    life.start()
    life.kill()
    life.start()
    with killed_at(line, *FILES) as ran:
        life.host.run_until(lambda: len(life.received) >= 5, "all arrive")
        life.host.settle()
    life.kill()
    life.start()
    life.put("9", b"9")
    life.expect(b"0", b"1", b"2", b"3", b"4", b"9")
    assert life.host.bodies()[:5] == [b"0", b"1", b"2", b"3", b"4"]
    life.host.run_until(lambda: not os.listdir(life.out), "all are removed")
    life.kill()
    return ran[0]


@pytest.mark.usefixtures("scans")
def test_every_kill_of_a_source_with_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for line in count(1, STEP):
            if life_killed_at(Path(directory) / str(line), line) < line:
                return
