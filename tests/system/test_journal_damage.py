"""A journal that was damaged between two runs of the daemon, or that a newer nsbridge wrote."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from nsbridge.agents.journal.journalfile import PAGE, VERSION
from nsbridge.agents.journal.sourcejournal import CONFIRMED
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_dead, wait_until
from tests.system.traffic import put_into_spool, visible, wait_for_files

_CELLS_AT = 128
_WINDOW = 8


def route(one: str, two: str) -> str:
    """Return a route `s` with two spool agents, from `s:one` to `s:two`."""
    agent = '[route.s.agent.{}]\ncontainer = "{}"\nspool = {{ {} = "/srv/{}" }}\n'
    window = f"[route.s]\nwindow = {{ messages = {_WINDOW} }}\n"
    return window + agent.format("one", one, "out", "spool") + agent.format("two", two, "in", "spool")


def run_with_pending(daemon: Nsbridged, spool: Path, sink: Path) -> None:
    """Leave a full window in the source's journal: a file stands where the other side's directory would be made."""
    put_into_spool(spool, [b"%d" % number for number in range(_WINDOW)])
    wait_until(lambda: daemon.flow("s:one")["pending"] == _WINDOW, "the window is full")
    for pid in daemon.kill():
        wait_dead(pid)
    sink.unlink()
    sink.mkdir()


def flip(path: Path, at: int) -> None:
    """Flip all bits of one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def truncate(path: Path, size: int) -> None:
    """Cut it off."""
    with path.open("r+b") as file:
        file.truncate(size)


_RING = PAGE + 8 * (2 * _WINDOW + 3)  # a journal of notes has room for two windows
DAMAGE = {
    "truncated to nothing": lambda path: truncate(path, 0),
    "truncated within the ring": lambda path: truncate(path, _RING + 40),
    "a byte of the header flipped": lambda path: flip(path, 9 + 8),
    "its magic flipped": lambda path: flip(path, 0),
    "a byte of a message's type flipped": lambda path: flip(path, _RING + 9),
    "a byte of a message flipped": lambda path: flip(path, _RING + 20),
    "an entry of the index flipped": lambda path: flip(path, PAGE + 8 + 3),
    "confirmed beyond taken": lambda path: flip(path, _CELLS_AT + 8 * CONFIRMED + 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_source_journal_is_moved_and_the_route_resumes(
    tmp_path: Path, unshare_container: Factory, damage: str
) -> None:
    """It is reported as an error; every file is still there and delivered, since only the files were the messages."""
    one, two = unshare_container(), unshare_container()
    spool, sink = one.rootfs / "srv/spool", two.rootfs / "srv/spool"
    spool.mkdir()
    sink.write_bytes(b"")
    journal = tmp_path / "state/journal/s/one.out"
    with Nsbridged(tmp_path, route(one.spec, two.spec)) as daemon:
        run_with_pending(daemon, spool, sink)
        DAMAGE[damage](journal)
        broken = journal.read_bytes()
        daemon.start()
        files = wait_for_files(sink, _WINDOW)
        assert [file.read_bytes() for file in files] == [b"%d" % number for number in range(_WINDOW)]
        wait_until(lambda: not visible(spool), "delivered files are removed")
        (line,) = [line for line in daemon.said().splitlines() if "is damaged" in line]
        assert " ERROR s:one journal " in line
        assert daemon.agents()["s:one"]["restarts"] == 0
        (aside,) = journal.parent.glob("one.out.damaged-*")
        assert aside.read_bytes() == broken
        assert str(aside) in line


def test_a_damaged_sink_journal_is_moved_and_the_route_resumes(tmp_path: Path, unshare_container: Factory) -> None:
    """Confirmed messages are not delivered again: the source names them in its greeting."""
    one, two = unshare_container(), unshare_container()
    spool, sink = one.rootfs / "srv/spool", two.rootfs / "srv/spool"
    spool.mkdir()
    sink.mkdir()
    with Nsbridged(tmp_path, route(one.spec, two.spec)) as daemon:
        put_into_spool(spool, [b"before"])
        wait_for_files(sink, 1)
        wait_until(lambda: not visible(spool), "delivered files are removed")
        daemon.stop()
        flip(tmp_path / "state/journal/s/two.in", _CELLS_AT)
        daemon.start()
        put_into_spool(spool, [b"after"])
        assert [file.read_bytes() for file in wait_for_files(sink, 2)] == [b"before", b"after"]
        assert " ERROR s:two journal " in daemon.said()
        assert list((tmp_path / "state/journal/s").glob("two.in.damaged-*"))


@pytest.mark.parametrize(("agent", "name"), [("s:one", "one.out"), ("s:two", "two.in")])
def test_a_journal_of_a_newer_version_is_refused_and_left_alone(
    tmp_path: Path, unshare_container: Factory, agent: str, name: str
) -> None:
    """FATAL with one line that says which version it has; with the old version back, `start` succeeds."""
    one, two = unshare_container(), unshare_container()
    spool, sink = one.rootfs / "srv/spool", two.rootfs / "srv/spool"
    spool.mkdir()
    sink.write_bytes(b"")
    journal = tmp_path / "state/journal/s" / name
    with Nsbridged(tmp_path, route(one.spec, two.spec)) as daemon:
        run_with_pending(daemon, spool, sink)
        known = journal.read_bytes()
        fixed = known[:8] + struct.pack("<I", 7) + known[12:48]
        journal.write_bytes(fixed + struct.pack("<I", zlib.crc32(fixed)) + known[52:])
        newer = journal.read_bytes()
        daemon.start()
        daemon.wait_for("FATAL", agent)
        detail = daemon.agents()[agent]["detail"]
        assert detail == (
            f"journal {journal} is left alone: it has version 7, and this nsbridge knows up to {VERSION}; "
            "use the nsbridge that wrote it"
        )
        assert journal.read_bytes() == newer
        names = ["one.out", "one.waiting", "two.in"]
        wait_until(lambda: sorted(path.name for path in journal.parent.iterdir()) == names, "nothing is moved aside")
        journal.write_bytes(known)
        daemon.call("start", names=[agent])
        assert len(wait_for_files(sink, _WINDOW)) == _WINDOW


def test_older_copy_of_a_journal_is_fatal_once(tmp_path: Path, unshare_container: Factory) -> None:
    """The other side has handed over more than it has taken. No restart changes that, so there is none."""
    one, two = unshare_container(), unshare_container()
    spool, sink = one.rootfs / "srv/spool", two.rootfs / "srv/spool"
    journal = tmp_path / "state/journal/s/one.out"
    with Nsbridged(tmp_path, route(one.spec, two.spec)) as daemon:
        older = b""
        for number in (1, 2):
            daemon.wait_for("RUNNING")
            older = journal.read_bytes()
            put_into_spool(spool, [b"%d" % number])
            wait_for_files(sink, number)
            wait_until(lambda: not visible(spool), "it is confirmed")
            assert daemon.stop() == 0
            if number == 1:
                daemon.start()
        journal.write_bytes(older)
        daemon.start()
        daemon.wait_for("FATAL", "s:one")
        about = daemon.agents()["s:one"]
        assert "message 2 of this route was handed over, and this agent's has taken only 1" in about["detail"]
        assert about["restarts"] == 1, "it died once"
        daemon.wait_for("RUNNING", "s:two")
