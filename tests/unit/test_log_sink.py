"""Appending to a log: kills at every line, parts, rotations, a full disk; on real files with a real journal."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.log.cells import LOG_APPEND
from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.log.sink import LogSink
from nsbridge.agents.journal import sinkjournal
from nsbridge.config.schema import InDoubt
from tests.fake_host import SinkHost
from tests.kills import Killed, killed_at

PARTS = ("endpoints/log/", "endpoints/directory.py", "agents/journal/sourcejournal.py")


class Life:
    """A sink over its lives; `log` is the file."""

    def __init__(
        self,
        directory: Path,
        messages: list[bytes],
        framing: Framing = Framing.LINE,
        in_doubt: InDoubt = InDoubt.RESEND,
        log: Path | None = None,
    ) -> None:
        self.directory = log.parent if log else directory / "logs"
        self.directory.mkdir(exist_ok=True)
        self.log = log or self.directory / "app.log"
        self.messages = messages
        self._config = LogEndpoint(in_=str(self.log), framing=framing, mode=0o640)
        self._in_doubt = in_doubt
        self._journal = directory / "journal"
        self.said: list[str] = []
        self._host: SinkHost | None = None
        self._sink: LogSink | None = None

    @property
    def host(self) -> SinkHost:
        assert self._host is not None
        return self._host

    @property
    def in_doubt(self) -> int:
        """Return the count, over all lives."""
        return self.host.journal.cells[sinkjournal.IN_DOUBT]

    def create(self) -> LogSink:
        """Make a new process; it is not started yet."""
        self._host = SinkHost(self._journal, self.messages)
        self._sink = LogSink(self._host, self._host.tree, self._config, self._host.journal, self._in_doubt)
        self._host.sink = self._sink
        return self._sink

    def start(self) -> None:
        """Run a new process."""
        self.create().start()

    def offer(self, upto: int | None = None) -> None:
        """Let messages come (up to that seq, for now), and be written."""
        kept = [self.host.waiting.pop() for _ in range(len(self.messages) - upto)] if upto is not None else []
        self.host.offer()
        self.host.settle()
        self.host.waiting.extend(reversed(kept))

    def kill(self) -> None:
        """Let the process be gone."""
        if self._host is not None:
            self.said += self._host.said
            assert self._sink is not None
            self._host.lose(self._sink._directory.watch)
            self._host = None

    def finish(self) -> None:
        """Hand over all that is left."""
        self.host.offer()
        self.host.run_until(lambda: self.host.done == len(self.messages), "all is handed over")


Make = Callable[..., Life]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.chdir("/")
    before = len(os.listdir("/proc/self/fd"))
    lives: list[Life] = []

    def make(*messages: bytes, **options: object) -> Life:
        lives.append(Life(tmp_path, [*messages], **options))  # type: ignore[arg-type]
        return lives[-1]

    yield make
    for life in lives:
        life.kill()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


def lines(*bodies: bytes) -> bytes:
    return b"".join(body + b"\n" for body in bodies)


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def test_a_missing_file_is_made_with_its_mode_at_once(make: Make) -> None:
    life = make()
    life.start()
    assert life.log.stat().st_mode & 0o777 == 0o640
    assert life.log.read_bytes() == b""


def test_messages_are_lines_appended_to_what_is_there(make: Make) -> None:
    life = make(b"one", b"", b"three\r")
    life.log.write_bytes(b"before\n")
    life.start()
    life.finish()
    assert life.log.read_bytes() == b"before\n" + lines(b"one", b"", b"three\r")


def test_messages_have_their_length_before_them(make: Make) -> None:
    life = make(b"o\ne", b"", b"x" * 70_000, framing=Framing.LENGTH)
    life.start()
    life.finish()
    assert life.log.read_bytes() == framed(*life.messages)


def test_what_comes_together_is_written_by_one_call(make: Make, tmp_path: Path) -> None:
    life = make(*[b"x"] * 1000)
    life.start()
    written = life.log.stat()
    life.offer()
    assert life.host.done == 1000
    assert life.log.stat().st_size == written.st_size + 2000
    first = life.host.journal.cells[LOG_APPEND]
    assert first == 1, "one intent for all"


def test_more_than_fits_into_one_write_is_written_by_several(make: Make) -> None:
    life = make(*[b"x" * 100_000] * 20)
    life.start()
    life.finish()
    assert life.log.stat().st_size == 20 * 100_001


def test_a_newline_in_a_line_is_a_dead_letter_in_its_turn(make: Make) -> None:
    life = make(b"one", b"t\nwo", b"three")
    life.start()
    life.finish()
    assert life.log.read_bytes() == lines(b"one", b"three")
    assert [arrived.first for arrived in life.host.dead_letters] == [2]
    assert any("newline" in text and str(life.log) in text for text in life.host.said)


def test_a_fifo_in_place_of_the_log_is_not_opened(make: Make) -> None:
    life = make(b"one")
    os.mkfifo(life.log)
    life.start()
    assert str(life.log) in life.host.reason
    life.log.unlink()
    life.finish()
    assert life.log.read_bytes() == lines(b"one")
    assert life.host.reason == ""


def test_a_link_in_the_place_of_the_log_is_not_followed(make: Make, tmp_path: Path) -> None:
    life = make(b"one")
    (tmp_path / "victim").touch()
    life.log.symlink_to(tmp_path / "victim")
    life.start()
    life.offer()
    assert str(life.log) in life.host.reason
    assert (tmp_path / "victim").read_bytes() == b""


# -- kills


def test_a_kill_at_any_line_appends_each_message_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two batches; one kill, at each line that runs in the endpoint and the journal, one by one."""
    messages = [b"one", b"two", b"", b"four", b"five"]
    line, done = 0, False
    while not done:
        line += 1
        life = Life(tmp_path_factory.mktemp("life"), messages)
        sink = life.create()
        with killed_at(line, *PARTS):
            sink.start()
            life.offer(3)
            life.offer()
            done = True
        life.kill()
        life.start()
        life.finish()
        assert (life.log.read_bytes(), life.in_doubt) == (lines(*messages), 0), f"killed at line {line}"
        life.kill()
    assert line > 150


@pytest.mark.parametrize("framing", Framing)
def test_two_kills_during_settlement_append_each_message_once(
    tmp_path_factory: pytest.TempPathFactory, framing: Framing
) -> None:
    """After the write and before its note, for each part of the batch that a kill may have left; again at each line."""
    messages = [b"one", b"", b"three"]
    whole = (lines if framing is Framing.LINE else framed)(*messages)
    for part in range(len(whole) + 1):
        line, done = 0, False
        while not done:
            line += 13
            life = Life(tmp_path_factory.mktemp("life"), messages, framing)
            write_and_lose_the_note(life, part)
            sink = life.create()
            with killed_at(line, *PARTS):
                sink.start()
                life.offer()
                done = True
            life.kill()
            life.start()
            life.finish()
            assert (life.log.read_bytes(), life.in_doubt) == (whole, 0), f"part {part}, killed at line {line}"
            life.kill()


def write_and_lose_the_note(life: Life, part: int, *, after: Callable[[], object] = lambda: None) -> None:
    """Kill in the middle of the write of a batch that has all messages, when `part` bytes are in the file."""

    def die(seq: int) -> None:
        raise Killed

    life.start()
    before = life.log.stat().st_size
    life.host.journal.hand = die  # type: ignore[method-assign]  # it is what comes after the write
    with suppress(Killed):
        life.offer()
    assert life.log.stat().st_size > before
    os.truncate(life.log, before + part)
    after()
    life.kill()


def test_a_part_is_completed_in_the_renamed_file(make: Make) -> None:
    life = make(b"one", b"two")
    write_and_lose_the_note(life, 6, after=lambda: life.log.rename(life.directory / "app.log.1"))
    life.messages.append(b"three")
    life.start()
    life.finish()
    assert (life.directory / "app.log.1").read_bytes() == lines(b"one", b"two")
    assert life.log.read_bytes() == lines(b"three")
    assert life.in_doubt == 0


@pytest.mark.parametrize(("in_doubt", "found"), [(InDoubt.RESEND, b"one\ntwo\nthree\n"), (InDoubt.SKIP, b"three\n")])
def test_a_file_that_is_gone_after_a_kill_leaves_it_to_in_doubt(make: Make, in_doubt: InDoubt, found: bytes) -> None:
    life = make(b"one", b"two", in_doubt=in_doubt)
    # moved out of the directory; a deleted file's inode could be given to the next one
    write_and_lose_the_note(life, 8, after=lambda: life.log.rename(life.directory.parent / "elsewhere"))
    life.messages.append(b"three")
    life.start()
    life.finish()
    assert (life.log.read_bytes(), life.in_doubt) == (found, 2)
    assert any("unknown whether messages 1 to 2 were appended" in text for text in life.host.said)
    assert life.host.journal.delivered == (3 if in_doubt is InDoubt.RESEND else 1)


def test_a_truncation_after_a_kill_is_left_to_in_doubt(make: Make) -> None:
    life = make(b"one", b"two")
    life.log.write_bytes(b"before\n")
    write_and_lose_the_note(life, 8, after=lambda: os.truncate(life.log, 0))
    life.start()
    life.finish()
    assert (life.log.read_bytes(), life.in_doubt) == (lines(b"one", b"two"), 2)


def test_another_writer_after_a_kill_is_left_to_in_doubt(make: Make) -> None:
    life = make(b"one", b"two")
    write_and_lose_the_note(life, 0, after=lambda: life.log.write_bytes(b"foreign\n"))
    life.start()
    life.finish()
    assert life.log.read_bytes() == lines(b"foreign", b"one", b"two")
    assert life.in_doubt == 2


# -- rotation and a full disk


def test_a_renamed_file_gets_nothing_more_and_a_new_one_is_made(make: Make) -> None:
    life = make(b"one", b"two", b"three")
    life.start()
    life.offer(1)
    life.log.rename(life.directory / "app.log.1")
    life.host.settle()
    assert not life.log.exists(), "the rotating program may make it"
    life.offer(2)
    life.log.unlink()
    life.log.touch()
    life.host.settle()
    life.finish()
    assert (life.directory / "app.log.1").read_bytes() == lines(b"one")
    assert life.log.read_bytes() == lines(b"three")


def test_a_truncated_file_is_appended_to_from_its_new_end(make: Make) -> None:
    life = make(b"one", b"two")
    life.start()
    life.offer(1)
    os.truncate(life.log, 0)
    life.finish()
    assert life.log.read_bytes() == lines(b"two")


def test_a_directory_that_is_replaced_is_opened_anew(make: Make) -> None:
    life = make(b"one", b"two")
    life.start()
    life.offer(1)
    life.directory.rename(life.directory.parent / "old")
    life.directory.mkdir()
    life.host.settle()
    life.finish()
    assert life.log.read_bytes() == lines(b"two")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the directory of a file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("framing", Framing)
def test_a_part_written_before_a_full_disk_is_completed_later(
    make: Make, small_disk: Path, framing: Framing, killed: bool
) -> None:
    """Nothing is lost or repeated, and readers never see a torn message that is not completed in its place."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 32_768)
    messages = [b"%04d" % number * 250 for number in range(60)]
    life = make(*messages, framing=framing, log=small_disk / "app.log")
    life.start()
    life.offer()
    assert "No space left on device" in life.host.reason
    assert life.host.done == 0
    assert life.log.stat().st_size == 32_768, "a part was written"
    if killed:
        life.kill()
        life.start()
        life.offer()
        assert "No space left on device" in life.host.reason
    ballast.unlink()
    life.finish()
    assert life.log.read_bytes() == (lines if framing is Framing.LINE else framed)(*messages)
    assert (life.host.reason, life.in_doubt) == ("", 0)
