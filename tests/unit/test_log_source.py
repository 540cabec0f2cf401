"""Taking from a log: lines, lengths, restarts, rotations and truncations, on real files with a real journal."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.log_source import LogSource
from nsbridge.agents.wire import Message
from nsbridge.config.schema import Framing, LogEndpoint
from tests.fake_host import SourceHost, killed_at

PARTS = ("endpoints/log_", "agents/journal.py", "agents/store.py")


class Life:
    """A source over its lives; `log` is the file."""

    def __init__(self, directory: Path, framing: Framing = Framing.LINE, limit: int = 1000, window: int = 64) -> None:
        self.directory = directory / "logs"
        self.directory.mkdir()
        self.log = self.directory / "app.log"
        self._config = LogEndpoint(out=str(self.log), framing=framing, max_message=limit)
        self._journal = directory / "journal"
        self._window = window
        self.received: list[Message] = []
        self.said: list[str] = []
        self._host: SourceHost | None = None
        self._source: LogSource | None = None

    @property
    def host(self) -> SourceHost:
        assert self._host is not None
        return self._host

    def create(self, *, confirms: bool = True) -> None:
        """A new process; not started yet."""
        self._host = SourceHost(self._journal, self.received, self._window)
        self._host.confirms = confirms
        self._source = LogSource(self._host, self._host.tree, self._config, self._host.store)
        self._host.source = self._source

    def start(self, *, confirms: bool = True) -> None:
        """A new process that runs, and whose greeting has made it repeat."""
        self.create(confirms=confirms)
        assert self._source is not None
        self._source.start()
        self.host.flush()

    def kill(self) -> None:
        """The process is gone."""
        if self._host is not None:
            self.said += self._host.said
            assert self._source is not None
            self._host.lose(self._source._watch)
            self._host = None

    def append(self, data: bytes, *, to: Path | None = None) -> None:
        """As a program does that opens the file for each line."""
        with (to or self.log).open("ab", buffering=0) as file:
            file.write(data)

    def rotate(self, to: str = "app.log.1", *, create: bool = True) -> Path:
        """By rename."""
        target = self.directory / to
        self.log.rename(target)
        if create:
            self.log.touch()
        return target

    def expect(self, *bodies: bytes) -> None:
        """All of these came by now, and no others."""
        self.host.run_until(lambda: len(self.host.bodies()) >= len(bodies), f"{len(bodies)} messages arrive")
        self.host.settle()
        assert self.host.bodies() == [*bodies]

    def warned(self, part: str) -> int:
        """How many warnings say this, over all lives."""
        return sum(part in text for text in self.said + (self._host.said if self._host else []))


Make = Callable[..., Life]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.chdir("/")
    before = len(os.listdir("/proc/self/fd"))
    lives: list[Life] = []

    def make(**options: object) -> Life:
        lives.append(Life(tmp_path, **options))  # type: ignore[arg-type]
        return lives[-1]

    yield make
    for life in lives:
        life.kill()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


@pytest.fixture
def life(make: Make) -> Life:
    return make()


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def test_a_missing_file_is_made_and_lines_are_taken_as_they_come(life: Life) -> None:
    life.start()
    assert life.log.read_bytes() == b""
    life.append(b"one\ntwo\r\n\n")
    life.expect(b"one", b"two\r", b"")
    life.append(b"three\n")
    life.expect(b"one", b"two\r", b"", b"three")


def test_the_first_start_takes_what_is_there_already(life: Life) -> None:
    life.append(b"old\n")
    life.start()
    life.expect(b"old")


def test_a_partial_line_waits_for_its_newline_also_across_a_restart(life: Life) -> None:
    life.start()
    life.append(b"one\ntw")
    life.expect(b"one")
    life.kill()
    life.start()
    life.expect(b"one")
    life.append(b"o\n")
    life.expect(b"one", b"two")


def test_a_partial_frame_waits_for_the_rest_also_across_a_restart(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    data = framed(b"a\nb", b"", b"\0" * 300)
    for at in range(0, len(data), 7):
        life.append(data[at : at + 7])
        life.host.settle()
        if at % 3 == 0:
            life.kill()
            life.start()
    life.expect(b"a\nb", b"", b"\0" * 300)


def test_nothing_is_repeated_or_lost_when_a_restart_finds_everything_confirmed(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start()
    life.expect(b"one", b"two")
    life.kill()
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two", b"three")
    assert not life.said + life.host.said


def test_unconfirmed_messages_are_read_again_under_their_numbers(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start(confirms=False)
    life.kill()
    life.received.clear()  # they were under way
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two", b"three")


def test_a_restart_with_a_full_window_goes_on_when_it_opens(make: Make) -> None:
    life = make(window=4)
    life.append(b"".join(b"%d\n" % number for number in range(20)))
    life.start(confirms=False)
    assert len(life.host.bodies()) == 3  # and one number for the beginning of the file
    life.kill()
    life.start()
    life.host.confirm()
    life.expect(*(b"%d" % number for number in range(20)))


def test_a_line_that_is_too_long_is_passed_over_and_reported_with_its_place(life: Life) -> None:
    life.append(b"one\n" + b"x" * 1001 + b"\ntwo\n" + b"y" * 1000 + b"\n")
    life.start()
    life.expect(b"one", b"two", b"y" * 1000)
    assert life.warned("1002 bytes at byte 4 are passed over") == 1


def test_a_line_that_is_too_long_and_comes_in_pieces_is_passed_over_once(make: Make) -> None:
    life = make()
    life.start()
    life.append(b"one\n")
    for _ in range(8):
        life.append(b"x" * 300)
        life.host.settle()
        life.kill()
        life.start()
    life.append(b"\ntwo\n")
    life.expect(b"one", b"two")
    assert life.warned("passed over") == 1


def test_a_frame_that_is_too_long_is_passed_over(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    data = framed(b"one", b"x" * 5000, b"two")
    for at in range(0, len(data), 100):
        life.append(data[at : at + 100])
        life.host.settle()
    life.expect(b"one", b"two")
    assert life.warned("5004 bytes at byte 7 are passed over") == 1


def test_long_messages_and_many_short_ones_come_whole(make: Make) -> None:
    life = make(limit=3_000_000, window=2000)
    bodies = [b"x" * 3_000_000, *(b"%d" % number for number in range(100_000)), b"y" * 600_000]
    life.append(b"\n".join(bodies) + b"\n")
    life.start()
    life.expect(*bodies)


# -- rotation


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    old = life.rotate()
    life.append(b"two\n", to=old)
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")


def test_the_new_file_waits_while_the_renamed_one_is_open_for_writing(life: Life) -> None:
    """A program that is told to reopen its log writes into the old one for a while; status says what is waited for."""
    life.start()
    with life.log.open("ab", buffering=0) as writer:
        writer.write(b"one\n")
        life.rotate()
        life.append(b"three\n")
        life.host.run_until(lambda: "still open for writing" in life.host.reason, "status says why")
        writer.write(b"two\nlast without newline")
        life.host.run_until(lambda: len(life.host.bodies()) == 2, "the old file is read on")
        assert life.host.bodies() == [b"one", b"two"]
    life.expect(b"one", b"two", b"last without newline", b"three")
    assert life.host.reason == ""


def test_the_last_line_of_a_renamed_file_is_a_message_only_when_there_is_a_new_file(life: Life) -> None:
    life.start()
    life.append(b"one\ntw")
    old = life.rotate(create=False)
    life.expect(b"one")
    life.append(b"o", to=old)
    life.expect(b"one")
    life.log.touch()
    life.expect(b"one", b"two")


def test_an_incomplete_frame_at_the_end_of_a_renamed_file_is_reported(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    life.append(framed(b"one") + b"\0\0\0\5ab")
    life.expect(b"one")
    life.rotate()
    life.append(framed(b"two"))
    life.expect(b"one", b"two")
    assert life.warned("6 bytes at byte 7 are passed over") == 1


def test_a_deleted_file_is_read_to_its_end_while_it_is_open(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    with life.log.open("ab", buffering=0) as writer:
        life.log.unlink()
        writer.write(b"two\n")
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")


@pytest.mark.parametrize("confirms", [True, False])
def test_a_rotation_while_no_agent_runs_loses_and_repeats_nothing(life: Life, confirms: bool) -> None:
    life.start(confirms=confirms)
    life.append(b"one\ntwo\n")
    life.expect(b"one", b"two")
    life.kill()
    if not confirms:
        life.received.clear()
    life.append(b"three\n")
    life.rotate("app.log-20260101")
    life.append(b"four\n")
    life.start()
    life.expect(b"one", b"two", b"three", b"four")
    assert not life.said + life.host.said


def test_several_rotations_while_no_agent_runs_are_read_in_their_order(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.kill()
    for number, body in enumerate((b"two", b"three", b"four", b"five"), 1):
        life.append(body + b"\n")
        os.utime(life.log, (number, number))
        for older in range(number - 1, 0, -1):
            (life.directory / f"app.log.{older}").rename(life.directory / f"app.log.{older + 1}")
        life.rotate()
    (life.directory / "app.log.9.gz").write_bytes(b"no log\n")
    (life.directory / "app.log.err").write_bytes(b"another log\n")
    life.append(b"six\n")
    life.start()
    life.expect(b"one", b"two", b"three", b"four", b"five", b"six")
    assert not life.said + life.host.said


def test_a_copy_of_the_log_beside_it_is_not_read(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.kill()
    life.append(b"two\n")
    life.rotate()
    os.utime(life.directory / "app.log.1", (5, 5))
    shutil.copy(life.directory / "app.log.1", life.directory / "app.log.2026-01-01")
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two", b"three")
    assert life.warned("taken for a copy") == 1


@pytest.mark.parametrize("how", ["deleted", "moved away"])
def test_a_file_that_went_while_no_agent_ran_is_reported_and_the_new_one_read(life: Life, how: str) -> None:
    life.append(b"one\n")
    life.start()
    life.expect(b"one")
    life.kill()
    keeper = life.log.open("rb")  # or the new file might get the same inode, which is another test
    life.append(b"lost\n")
    old = life.rotate()
    if how == "deleted":
        old.unlink()
    else:
        old.rename(life.directory.parent / "elsewhere")
    life.append(b"two\n")
    life.start()
    life.expect(b"one", b"two")
    keeper.close()
    assert life.warned("no longer in its directory") == 1
    life.kill()
    life.start()
    life.expect(b"one", b"two")
    assert life.warned("no longer in its directory") == 1, "it is reported once"


def test_unconfirmed_messages_of_a_deleted_file_are_reported_and_hold_nothing_up(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start(confirms=False)
    life.kill()
    del life.received[2:]  # the beginning of the file, one; two was under way
    keeper = life.log.open("rb")
    life.log.unlink()
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"three")
    keeper.close()
    assert life.warned("the message at byte 4 was taken, and is gone before it was delivered") == 1


def test_a_directory_that_is_replaced_is_opened_anew(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.directory.rename(life.directory.parent / "old")
    life.directory.mkdir()
    life.append(b"two\n")
    life.expect(b"one", b"two")
    assert life.warned("no longer in its directory") == 1


# -- truncation


def test_a_truncation_is_reported_and_the_file_is_read_from_its_start(life: Life) -> None:
    life.start()
    life.append(b"one\ntwo\npart")
    life.expect(b"one", b"two")
    os.truncate(life.log, 0)
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")
    assert life.warned("was truncated or written anew (1 times so far)") == 1


def test_a_truncation_after_which_the_file_has_grown_beyond_the_place_is_seen(life: Life) -> None:
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


def test_a_truncation_while_messages_are_unconfirmed_loses_only_what_was_not_delivered(life: Life) -> None:
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
def test_what_is_no_regular_file_is_never_read_and_said_in_status(life: Life, kind: str) -> None:
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


def test_a_huge_hole_without_a_newline_takes_no_memory_and_lets_the_loop_live(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    os.truncate(life.log, 1 << 30)
    life.host.run_until(lambda: b"one" in life.host.bodies(), "what is before it arrives")
    os.truncate(life.log, 4)
    life.append(b"two\n")
    life.host.run_until(lambda: b"two" in life.host.bodies(), "what comes after it arrives")


# -- kills


def run_and_kill(life: Life, line: int) -> tuple[int, bool]:
    """A process is killed before that line of the endpoint, journal and store. How many lines ran, and if all did."""
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


STRIDE = 3  # every third line: closing an inotify instance takes the kernel 10 ms, all lines 45 s (1 passed too)


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
