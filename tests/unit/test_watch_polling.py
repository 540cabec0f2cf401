"""If inotify is used up, endpoints poll, report that, and return to inotify when they can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents.endpoints import watch
from nsbridge.agents.endpoints.file import FileEndpoint, FileSink, FileSource
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.sink import SpoolSink
from nsbridge.agents.endpoints.watch import DirectoryWatch, PollingWatch, UsedUp
from nsbridge.agents.wire import Run
from tests.fake_host import OfferedSinkHost, SourceHost
from tests.spool_life import Make

pytestmark = pytest.mark.alone  # it uses up the instances of uid 0
USED_UP = "inotify instances of uid 0 are used up"


class Exhaustion:
    """Switches another program's use of all inotify instances on and off."""

    def __init__(self) -> None:
        self.is_on = True


@pytest.fixture
def exhaustion(monkeypatch: pytest.MonkeyPatch) -> Exhaustion:
    """Use up all instances until `is_on` is false; the pace is quick."""
    made = Exhaustion()
    instance = watch._instance

    def used_up() -> object:
        if made.is_on:
            raise UsedUp(USED_UP)
        return instance()

    monkeypatch.setattr(watch, "_instance", used_up)
    monkeypatch.setattr(watch, "_PACE", 0.02)
    monkeypatch.chdir("/")
    return made


def test_spool_is_scanned_until_inotify_can_be_had(make_spool: Make, exhaustion: Exhaustion) -> None:
    """Nothing is lost or repeated at the change, which status and log report."""
    life = make_spool()
    assert isinstance(life.source._directory.watch, PollingWatch)
    assert life.host.notices["out"].startswith(USED_UP)
    assert "meanwhile polls every" in life.host.notices["out"]
    assert life.host.reason == ""
    bodies = [b"%d" % number for number in range(20)]
    for body in bodies[:10]:
        life.put(body.decode(), body)
        life.host.settle()
    life.expect(*bodies[:10])
    exhaustion.is_on = False
    for body in bodies[10:]:
        life.put(body.decode(), body)
        life.host.settle()
    life.host.run_until(lambda: isinstance(life.source._directory.watch, DirectoryWatch), "inotify is used again")
    life.expect(*bodies)
    assert life.host.notices["out"] == ""
    assert life.said(USED_UP) == life.said("inotify can be used again") == 1


def test_polled_spool_leaves_a_file_that_is_being_written(make_spool: Make, exhaustion: Exhaustion) -> None:
    life = make_spool()
    with (life.out / "name").open("wb", buffering=0) as writer:
        writer.write(b"first")
        life.put("other", b"other")
        life.expect(b"other")
        writer.write(b" second")
    life.expect(b"other", b"first second")


def test_polled_directory_that_is_replaced_is_noticed(make_spool: Make, exhaustion: Exhaustion) -> None:
    life = make_spool()
    life.out.rmdir()
    life.out.mkdir()
    life.put("1", b"one")
    life.expect(b"one")


def test_file_is_read_when_its_time_has_changed(tmp_path: Path, exhaustion: Exhaustion) -> None:
    """Each content once, not once for each look."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    host = SourceHost(tmp_path / "journal", [])
    source = FileSource(host, host.tree, FileEndpoint(out=str(path)), host.journal)
    host.source = source
    source.start()
    for count, body in enumerate((b"one", b"two", b"two"), 1):
        path.write_bytes(body)
        os.utime(path, ns=(count, count))
        host.run_until(lambda count=count: len(host.received) >= count, "it arrives")  # type: ignore[misc]
    looks = host.loop.now() + 0.2
    host.run_until(lambda: host.loop.now() >= looks, "some more looks")
    assert host.bodies() == [b"one", b"two", b"two"]
    host.lose(source._directory.watch)


@pytest.mark.parametrize("kind", ["spool", "file"])
def test_sinks_serve_without_inotify(tmp_path: Path, exhaustion: Exhaustion, kind: str) -> None:
    """Also into a directory that is replaced meanwhile."""
    box = tmp_path / "box"
    box.mkdir()
    host = OfferedSinkHost(tmp_path / "a.in")
    sink = (
        SpoolSink(host, host.tree, SpoolEndpoint(in_=str(box)), host.journal)
        if kind == "spool"
        else FileSink(host, host.tree, FileEndpoint(in_=str(box / "file")))
    )
    sink.start()
    assert host.notices["in"].startswith(USED_UP)
    assert sink.put(Run(OfferedSinkHost.EPOCH, 1, 0, (b"one",))) == 1
    assert [path.read_bytes() for path in box.iterdir()] == [b"one"]
    box.rename(tmp_path / "old")
    box.mkdir()
    first = sink._directory.watch
    host.beat()
    host.run_until(lambda: sink._directory.watch is not first, "it is opened anew")
    assert sink.put(Run(OfferedSinkHost.EPOCH, 2, 0, (b"two",))) == 1
    assert [path.read_bytes() for path in box.iterdir()] == [b"two"]
    host.lose(sink._directory.watch)
