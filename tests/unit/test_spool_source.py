"""Taking from a spool that belongs to somebody hostile: what stands there costs no other file, and little memory."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.spool import names as spool_names
from nsbridge.agents.endpoints.spool import refused as spool_refused
from nsbridge.agents.endpoints.spool import source as spool
from tests.spool_life import Make

MANY = 1000
WITHIN = 3.0  # seconds that a bait may cost the others, on a machine that does other work too


def plant(path: Path, kind: str) -> None:
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            os.mknod(path, 0o20666, os.makedev(1, 5))
        case "symbolic link":
            path.symlink_to("/etc/shadow")
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))


class Listing:
    """A listing that shows what it was given."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._entries

    def __next__(self) -> os.DirEntry[str]:
        return next(self._entries)

    def close(self) -> None:
        """Do nothing; scandir's iterator has this method."""


def test_listing_that_misses_earlier_files_keeps_order(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ext4 one listing in 80 did, while a program put files there as fast as it could."""
    life = make_spool()
    life.kill()
    listing = os.scandir

    def racing(directory: int) -> object:
        """List a directory into which three files come when the scan is already past the place of the first two."""
        monkeypatch.setattr(os, "scandir", listing)
        for number in (1, 2, 3):
            life.put(str(number), b"%d" % number)
        with listing(directory) as entries:
            return Listing([entry for entry in entries if entry.name == "3"])

    monkeypatch.setattr(os, "scandir", racing)
    life.start()
    life.expect(b"1", b"2", b"3")
    assert life.host.bodies() == [b"1", b"2", b"3"]


@pytest.mark.parametrize("kind", ["FIFO", "device", "symbolic link", "directory", "socket"])
def test_what_is_no_file_is_named_once_and_the_others_are_taken(make_spool: Make, kind: str) -> None:
    life = make_spool()
    plant(life.out.parent / "bait", kind)
    (life.out.parent / "bait").rename(life.out / "0 bait")
    life.put("1 message", b"one")
    life.expect(b"one")
    if kind != "directory":  # for which there is no event; a scan finds it
        life.host.run_until(lambda: life.said("0 bait") > 0, "it is refused")
        assert life.said("0 bait") == life.said(f"a {kind}") == 1
    life.kill()
    life.start()
    life.put("2 message", b"two")
    life.expect(b"one", b"two")
    assert life.said("0 bait") == life.said(f"a {kind}") == 1


def test_leased_file_delays_no_other_and_is_taken_later(make_spool: Make) -> None:
    """open(2) would wait for up to 45 seconds; it is named once."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    life = make_spool()
    (life.out.parent / "leased").write_bytes(b"leased")
    holder = os.open(life.out.parent / "leased", os.O_RDWR)
    fcntl.fcntl(holder, linux.F_SETLEASE, fcntl.F_WRLCK)
    (life.out.parent / "leased").rename(life.out / "0 leased")
    life.put("1", b"free")
    started = time.monotonic()
    life.expect(b"free")
    assert time.monotonic() - started < WITHIN
    life.host.run_until(lambda: life.host.loop.now() > started + 1.2, "it was tried some times")
    assert life.said("0 leased") == life.said("lease") == 1
    os.close(holder)
    life.expect(b"free", b"leased")


def test_a_file_that_is_too_large_is_not_read(make_spool: Make) -> None:
    life = make_spool()
    with (life.out.parent / "part").open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    (life.out.parent / "part").rename(life.out / "huge")
    life.put("small", b"x")
    life.expect(b"x")
    assert time.monotonic() - started < WITHIN
    assert life.said("huge") == life.said("max_message = 1000") == 1


def test_names_that_wait_are_bounded_and_none_is_forgotten(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan finds the names beyond the bound."""
    monkeypatch.setattr(spool_names, "_MOST", 100)
    life = make_spool(window=10)
    life.host.confirms = False  # the window fills
    bodies = [b"%05d" % number for number in range(1000)]
    for number, body in enumerate(bodies):
        life.put(f"{number:05d}", body)
        if not number % 100:
            life.host.settle()
    life.host.settle()
    assert len(life.source._names._backlog) <= 100
    assert len(life.source._names._how) <= 100 + 11
    life.host.confirms = True
    life.host.confirm()
    life.expect(*bodies)
    life.host.run_until(lambda: not os.listdir(life.out), "all are released")


def test_many_files_at_once_are_taken_in_time_in_order(make_spool: Make) -> None:
    life = make_spool(window=1024)
    life.kill()
    bodies = [b"%05d" % number for number in range(MANY)]
    for body in bodies:
        (life.out / body.decode()).write_bytes(body)
    life.start()
    life.host.run_until(lambda: len(life.received) == MANY, f"{MANY} messages arrive")
    assert life.host.bodies() == bodies


@pytest.mark.alone  # it counts what is logged in half a second
def test_many_baits_are_counted_and_forgotten_when_gone(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_REFUSED", 0.1)
    monkeypatch.setattr(spool_refused, "_WINDOW", 0.5)
    life = make_spool()
    life.kill()
    for number in range(MANY):
        os.mkfifo(life.out / f"{number:05d}")
    (life.out / "last").write_bytes(b"x")
    life.start()
    life.expect(b"x")
    life.host.run_until(lambda: life.host.refused_files == MANY, "all are refused")

    def counted() -> int:
        """Return how many were only counted, in each window of time (one, unless the machine is busy)."""
        texts = (re.search(r"(\d+) more files were refused", text) for text in life.host.said)
        return sum(int(found[1]) for found in texts if found)

    life.host.run_until(lambda: life.said("a FIFO") + counted() == MANY, "the others are counted")
    assert life.said("a FIFO") % 30 == 0
    for number in range(MANY):
        (life.out / f"{number:05d}").unlink()
    life.host.run_until(lambda: life.host.refused_files == 0, "they are forgotten")
    assert not life.source._names._how


def test_taken_file_that_its_program_removes_is_logged_as_lost(make_spool: Make) -> None:
    """The agent was killed before the delivery, so the message's content was only in the file."""
    life = make_spool()
    life.host.confirms = False
    life.put("1", b"one")
    life.put("2", b"two")
    life.expect(b"one", b"two")
    life.kill()
    (life.out / "1").unlink()
    (life.out / "2").write_bytes(b"different")
    life.start()
    life.host.run_until(lambda: life.said("LOST: ") == 2, "both are reported")
    assert f"LOST: {life.out}/1 was removed from `out` before it could be delivered" in life.host.said
    assert f"LOST: {life.out}/2 was replaced or changed before it could be delivered" in life.host.said


@pytest.mark.parametrize("kind", ["FIFO", "symbolic link", "missing parent"])
def test_a_replaced_done_directory_is_waited_for(make_spool: Make, kind: str) -> None:
    """The agent resumes as soon as it is fixed, and no descriptor is closed twice."""
    life = make_spool(move=True)
    life.put("1", b"one")
    life.host.run_until((life.done / "1").exists, "the first is moved")
    life.host.confirms = False
    life.put("2", b"two")
    life.expect(b"one", b"two")
    (life.done / "1").unlink()
    life.done.rmdir()
    if kind == "missing parent":
        life.done.symlink_to("nowhere/done")
    else:
        plant(life.done, kind)
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: "done" in life.host.reason, "it says what it waits for")
    life.host.run_until(lambda: "cannot be moved away" in life.host.reason, "it still waits")
    life.done.unlink()
    life.host.run_until((life.done / "2").exists, "it is moved when the directory can be made again")
    life.put("3", b"three")
    life.expect(b"one", b"two", b"three")


def test_what_comes_after_more_than_can_wait_is_taken_after_it(
    make_spool: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names beyond the limit are found by a scan; until then nothing newer may take the room that became free."""
    monkeypatch.setattr(spool_names, "_MOST", 10)
    life = make_spool(window=4)
    life.host.confirms = False
    for number in range(30):
        life.put(f"{number:03d}", b"%03d" % number)
    life.host.settle()
    for number in range(30, 60):
        life.host.confirm()  # of the four that are in the window
        life.put(f"{number:03d}", b"%03d" % number)
        life.host.settle()
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: len(life.received) == 60, "60 messages arrive")
    assert life.host.bodies() == [b"%03d" % number for number in range(60)]


def test_a_moved_parent_directory_is_noticed_at_a_heartbeat(make_spool: Make) -> None:
    """No event reports it, and the programs use the new one: what is put there is taken."""
    life = make_spool()
    life.put("1", b"one")
    life.expect(b"one")
    above = life.out.parent
    above.rename(above.with_name("moved"))
    life.host.beat()
    life.host.settle()
    assert "; nsbridge then makes " in life.host.reason
    life.out.mkdir(parents=True)
    life.put("2", b"two")
    life.expect(b"one", b"two")
    source = life.source._directory.watch
    life.host.beat()
    assert life.source._directory.watch is source, "where nothing has changed nothing is opened anew"
