"""Every reason for which a side of a file endpoint waits passes by itself when its cause is gone (issue 13, F4's kind).

Each case makes a cause, sees the reason, takes the cause away, and touches nothing else: the message must arrive, the
reason must be gone, and no descriptor may be left behind by the attempts. To the kind belong: what is at the path
(missing, of another kind, not to be opened), inotify, descriptors, space in the container's file system and in
`state_dir`, dead letters that cannot be written (test_dead_quota.py), letters that are taken again (test_dead.py),
and a queue's reasons (test_queue_*.py). What needs a mount or another user is in tests/system/test_faults*.py.
"""

from __future__ import annotations

import ast
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.file import FileEndpoint, FileSink, FileSource
from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.log.sink import LogSink
from nsbridge.agents.endpoints.log.source import LogSource
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.sink import SpoolSink
from nsbridge.agents.endpoints.spool.source import SpoolSource
from nsbridge.agents.endpoints.watch import DirectoryWatch
from nsbridge.agents.wire import Message, Run
from nsbridge.config.schema import InDoubt
from tests.fake_host import SinkHost, SourceHost

FULL = "No space left on device"


def watch_of(side: object) -> DirectoryWatch | None:
    """Return what a side watches its directory with."""
    directory = getattr(side, "_ear", None) or getattr(side, "_directory", None)
    watched: DirectoryWatch | None = directory.watch if directory is not None else None
    return watched


class Taking(SourceHost):
    """With a journal that may have no room."""

    skips_waits = True
    full = False

    def take(self, message: Message, note: bytes = b"") -> int:
        """Fail like an agent whose state_dir is full."""
        if self.full:
            raise Blocked(FULL)
        return super().take(message, note)

    def take_run(self, bodies: Sequence[bytes], note: bytes) -> int:
        """Take as many messages as the endpoint has."""
        if self.full:
            raise Blocked(FULL)
        return super().take_run(bodies, note)


class Giving(SinkHost):
    """With deadlines that come at once."""

    skips_waits = True


class Source:
    """One of the three that take from files, with `place` in `home`."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.kind = kind
        self.home = tmp_path / "home"
        self.place = self.home / "place"
        self.home.mkdir()
        self.host = Taking(tmp_path / "journal", [])
        journal, path = self.host.journal, str(self.place)
        host, tree = self.host, self.host.tree
        if kind == "spool":
            source: Any = SpoolSource(host, tree, SpoolEndpoint(out=path), journal)
        elif kind == "log":
            source = LogSource(host, tree, LogEndpoint(out=path), journal)
        else:
            source = FileSource(host, tree, FileEndpoint(out=path), journal)
        self.side = host.source = source

    def start(self) -> None:
        self.side.start()

    def leave(self) -> None:
        """Leave one message, as a program does."""
        if self.kind == "spool":
            (self.home / "part").write_bytes(b"body")
            (self.home / "part").rename(self.place / "one")
        else:
            with self.place.open("ab") as file:
                file.write(b"body\n" if self.kind == "log" else b"body")

    def has_arrived(self) -> bool:
        return self.host.bodies()[-1:] == [b"body"]  # what a file has when it appears is a message, too

    def make(self) -> None:
        if self.kind == "spool":
            self.place.mkdir()
        else:
            self.place.touch()


class Sink:
    """One of the three that put into files."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.kind = kind
        self.home = tmp_path / "home"
        self.place = self.home / "place"
        self.home.mkdir()
        self.host = Giving(tmp_path / "journal", [])
        host, tree, path = self.host, self.host.tree, str(self.place)
        if kind == "spool":
            sink: Any = SpoolSink(host, tree, SpoolEndpoint(in_=path), host.journal)
        elif kind == "log":
            sink = LogSink(host, tree, LogEndpoint(in_=path, framing=Framing.LINE), host.journal, InDoubt.RESEND)
        else:
            sink = FileSink(host, tree, FileEndpoint(in_=path))
        self.side = host.sink = sink

    def start(self) -> None:
        self.side.start()

    def leave(self) -> None:
        """Leave one message that comes from the other agent."""
        self.host.waiting.append(Run(SinkHost.EPOCH, self.host.journal.handed + 1, 0, (b"body" * 2000,)))
        self.host.offer()

    def has_arrived(self) -> bool:
        if self.host.waiting or self.host.journal.handed != 1:
            return False
        file = next(self.place.iterdir()) if self.kind == "spool" else self.place
        assert file.read_bytes().rstrip(b"\n") == b"body" * 2000
        return True

    def make(self) -> None:
        """Leave the endpoint to be made by the sink."""


Side = Source | Sink


@pytest.fixture(params=["spool", "log", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    monkeypatch.chdir("/")
    made = Source(request.param, tmp_path)
    yield made
    made.host.lose(watch_of(made.side))


@pytest.fixture(params=["spool", "log", "file"])
def sink(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    monkeypatch.chdir("/")
    made = Sink(request.param, tmp_path)
    yield made
    made.host.lose(watch_of(made.side))


@pytest.fixture(params=[(cls, kind) for cls in (Source, Sink) for kind in ("spool", "log", "file")])
def side(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.chdir("/")
    cls, kind = request.param
    made: Side = cls(kind, tmp_path)
    yield made
    made.host.lose(watch_of(made.side))


def waits(side: Side, *reasons: str) -> None:
    """Assert that it waits and gives the reason, and that more attempts leave no more descriptors open."""
    side.host.run_until(lambda: any(reason in side.host.reason for reason in reasons), f"it waits for {reasons}")
    before = len(os.listdir("/proc/self/fd"))
    end = side.host.loop.now() + 0.4
    side.host.run_until(lambda: side.host.loop.now() > end, "time passes")
    assert any(reason in side.host.reason for reason in reasons), side.host.reason
    assert len(os.listdir("/proc/self/fd")) <= before


def passes(side: Side) -> None:
    """Check that the side continues by itself."""
    side.host.run_until(side.has_arrived, "the message arrives")
    side.host.run_until(lambda: not side.host.reason, "the reason is gone")


def test_directory_above_that_is_missing(side: Side) -> None:
    side.home.rename(side.home.with_name("away"))
    side.start()
    waits(side, str(side.home))
    side.home.with_name("away").rename(side.home)
    side.make()
    if isinstance(side, Source):
        side.host.run_until(lambda: not side.host.reason, "it has found it")
    side.leave()
    passes(side)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_something_else_at_the_path(side: Side, make: Callable[[Path], None]) -> None:
    if side.kind == "spool" and make is os.mkdir:
        side.place.touch()
    else:
        make(side.place)
    side.start()
    if isinstance(side, Sink):
        side.leave()
    waits(side, str(side.place))
    if side.place.is_dir() and not side.place.is_symlink():
        side.place.rmdir()
    else:
        side.place.unlink()
    if isinstance(side, Source):
        side.make()
        side.host.run_until(lambda: not side.host.reason, "it has found it")
        side.leave()
    passes(side)


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Allow so many descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("more", range(8))
def test_no_descriptors(side: Side, more: int) -> None:
    """Wherever they run out: it waits, or raises OSError, for which the agent ends and is started again."""
    with descriptors(more):
        try:
            side.start()
            if isinstance(side, Sink):
                side.leave()
            side.host.settle()
        except OSError:
            return
    if isinstance(side, Source):
        side.host.run_until(lambda: not side.host.reason, "it has opened it")
        side.leave()
    passes(side)


def test_source_whose_journal_has_no_room(source: Source) -> None:
    """`state_dir` is full, and nothing is pending whose confirmation would have it look again."""
    source.start()
    source.host.full = True
    source.leave()
    waits(source, FULL)
    source.host.full = False
    passes(source)


def test_sink_whose_file_system_is_full(sink: Sink) -> None:
    """A limit on the size of files: part of the message is written, and what is missing follows."""
    sink.start()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        sink.leave()
        waits(sink, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    passes(sink)


def test_spool_file_that_cannot_be_removed_after_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `done` directory is gone, with the one above it."""
    monkeypatch.chdir("/")
    host = Taking(tmp_path / "journal", [])
    out, done = tmp_path / "out", tmp_path / "kept/done"
    out.mkdir()
    done.parent.mkdir()
    side = SpoolSource(host, host.tree, SpoolEndpoint(out=str(out), done=str(done)), host.journal)
    host.source = side
    side.start()
    done.rmdir()
    done.parent.rmdir()
    (tmp_path / "part").write_bytes(b"body")
    (tmp_path / "part").rename(out / "one")
    host.run_until(lambda: "delivered, but cannot be" in host.reason, "it says so")
    done.parent.mkdir()
    host.run_until(lambda: (done / "one").exists() and not host.reason, "it is moved")
    host.lose(watch_of(side))


def test_log_whose_renamed_file_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one is read after the old one's end."""
    monkeypatch.chdir("/")
    host = Taking(tmp_path / "journal", [])
    log = tmp_path / "app.log"
    side = LogSource(host, host.tree, LogEndpoint(out=str(log)), host.journal)
    host.source = side
    side.start()
    with log.open("ab", buffering=0) as writer:
        writer.write(b"one\n")
        log.rename(tmp_path / "app.log.1")
        log.write_bytes(b"three\n")
        host.run_until(lambda: "still open for writing" in host.reason, "it says so")
        writer.write(b"two\n")
    host.run_until(lambda: host.bodies() == [b"one", b"two", b"three"] and not host.reason, "all of it comes")
    host.lose(watch_of(side))


# Where the end of each reason is tested, by the beginning of the path of the module that gives it
ENDS = {
    "endpoints/base": "the Waiter that all of these use: every case of this file",
    "endpoints/directory": "this file (the sinks of spool and file)",
    "endpoints/file": "this file; tests/system/test_faults_room.py",
    "endpoints/watch": "this file (no descriptors); tests/system/test_faults_room.py (inotify)",
    "endpoints/spool/": "this file; test_spool_source.py",
    "endpoints/log/": "this file; test_log_source.py, test_log_sink.py",
    "endpoints/queue/": "tests/system: test_faults.py, test_hostile_queue.py, test_faults_room.py, test_dead_quota.py",
    "endpoints/mqueue/": "test_mqueue_sink.py; tests/system/test_mqueue.py",
    "endpoints/nats/": "tests/system: test_nats.py, test_nats_secure.py, test_nats_storm.py",
    "endpoints/receiving": "as for the sources of mqueue and socket, whose Waiter takes the reason",
    "endpoints/socket/": "test_socket_sink.py, test_socket_source.py; tests/system/test_socket.py",
    "dead/retries": "test_dead.py: test_retry_without_room_is_tried_again_by_itself",
    "dead/keeper": "test_dead_quota.py: test_full_disk_blocks_and_resumes_by_itself, test_full_box_blocks_…",
    "runtime": "it passes on what the others give",
}
GIVES = {"Blocked", "blocked_by", "wait", "blocked", "_wait", "show_blocked"}


def _gives_reasons(path: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))
    return any((call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")) in GIVES for call in calls)


def test_every_module_that_gives_reasons_is_listed() -> None:
    """A new one shows here: what ends its reasons, and which test sees that?"""
    agents = Path(files.__file__).parents[1]
    giving = sorted(path.relative_to(agents).as_posix() for path in agents.rglob("*.py") if _gives_reasons(path))
    assert [name for name in giving if not name.startswith(tuple(ENDS))] == []
    assert [name for name in ENDS if not any(found.startswith(name) for found in giving)] == []
