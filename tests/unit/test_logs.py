"""The daemon's log: real files, a really full disk, what containers would like to write into it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import LogConfig
from nsbridge.supervisor.log.log import KEPT, Entry, Log, open_log
from nsbridge.supervisor.log.repeats import BURST, REMEMBERED, WINDOW, LogText, Repeats

HOSTILE = "a\x1b[2J\r\nfake line\x00\u202e\udc80\x9b"
ESCAPED = r"a\x1b[2J\r\nfake line\x00\u202e\udc80\x9b"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nsbridge.log"


@pytest.fixture
def daemon_log(path: Path) -> Iterator[Log]:
    daemon_log = open_log(LogConfig(file=str(path)))
    yield daemon_log
    daemon_log.close()


def test_a_text_line_has_time_level_name_and_message(daemon_log: Log, path: Path) -> None:
    daemon_log.info("orders:web", "up")
    daemon_log.warning("", "the daemon itself")
    first, second = path.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO orders:web up", first)
    assert second.endswith("Z WARNING nsbridged the daemon itself")


def test_a_json_line_is_an_object_with_the_same(path: Path) -> None:
    daemon_log = open_log(LogConfig(file=str(path), format="json"))
    daemon_log.error("orders:web", "ü" + HOSTILE)
    daemon_log.close()
    (line,) = path.read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {"level": "ERROR", "name": "orders:web", "message": "ü" + ESCAPED}


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_container_cannot_write_escapes_or_lines_of_its_own(path: Path, format_: str) -> None:
    daemon_log = open_log(LogConfig(file=str(path), format=format_))
    daemon_log.info(HOSTILE, HOSTILE)
    daemon_log.close()
    (line,) = path.read_text().splitlines()
    assert line.isprintable()
    assert line.replace("\\\\", "\\").count(ESCAPED) == 2


def test_percent_signs_in_a_message_are_only_that(daemon_log: Log, path: Path) -> None:
    daemon_log.info("", "100 % of %s and %d")
    assert path.read_text().endswith("100 % of %s and %d\n")


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_decides_what_is_written_and_remembered(path: Path, level: str, written: int) -> None:
    daemon_log = open_log(LogConfig(file=str(path), level=level))
    for write in (daemon_log.debug, daemon_log.info, daemon_log.warning, daemon_log.error):
        write("", "x")
    assert len(path.read_text().splitlines()) == len(daemon_log.ring.recent()) == written
    daemon_log.close()


def test_the_file_is_nobody_else_s_to_read_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        open_log(LogConfig(file=str(path))).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_restarted_daemon_continues_in_the_same_file(path: Path) -> None:
    for message in ("first", "second"):
        daemon_log = open_log(LogConfig(file=str(path)))
        daemon_log.info("", message)
        daemon_log.close()
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["first", "second"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(NsbridgeError, match=r"daemon\.log\.file: cannot open .*/no/log: No such file or directory"):
        open_log(LogConfig(file=str(tmp_path / "no" / "log")))


def test_stderr_is_where_it_goes_without_a_file() -> None:
    program = """
from nsbridge.config.schema import LogConfig
from nsbridge.supervisor.log.log import open_log
log = open_log(LogConfig()); log.info("a:b", "on stderr"); log.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.endswith(" INFO a:b on stderr\n")


def test_a_broken_stderr_is_survived_and_counted() -> None:
    program = """
import os, sys
from nsbridge.config.schema import LogConfig
from nsbridge.supervisor.log.log import open_log
reader, writer = os.pipe(); os.dup2(writer, 2); os.close(reader)
log = open_log(LogConfig()); log.info("", "one"); log.info("", "two"); print(log.lost)
os.dup2(os.open("/dev/null", os.O_WRONLY), 2); log.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


# -- repeats


def test_repeated_texts_are_counted_and_reported_later(path: Path) -> None:
    """This holds for the file and for `tail`; a different text, name or level is not held back."""
    now = [0.0]
    daemon_log = open_log(LogConfig(file=str(path)), lambda: now[0])
    for _ in range(1000 + BURST):
        daemon_log.warning("a:b", "flood")
    daemon_log.warning("a:b", "something else")
    daemon_log.error("a:b", "flood")
    now[0] = WINDOW
    daemon_log.log_repeats()
    daemon_log.warning("a:b", "flood")
    daemon_log.close()
    texts = [line.split(" ", 3)[3] for line in path.read_text().splitlines()]
    assert texts == [*["flood"] * BURST, "something else", "flood", "1,000 times more within 10 s: flood", "flood"]
    assert [entry.message for entry in daemon_log.ring.recent()] == texts


def test_what_was_held_back_is_logged_before_the_close(daemon_log: Log, path: Path) -> None:
    for _ in range(BURST + 1):
        daemon_log.info("", "again")
    daemon_log.close()
    assert path.read_text().splitlines()[-1].endswith(" 1 times more within 10 s: again")


def test_memory_for_different_texts_is_limited() -> None:
    repeats = Repeats()
    for number in range(REMEMBERED + 100):
        assert repeats.admit(LogText(20, "", str(number)), 0.0)
    assert not list(repeats.over(WINDOW))
    assert all(repeats.admit(LogText(20, "", "x"), WINDOW) for _ in range(BURST))
    assert not repeats.admit(LogText(20, "", "x"), WINDOW)


# -- rotation


def test_the_file_is_rotated_by_size_and_only_so_many_are_kept(tmp_path: Path, path: Path) -> None:
    daemon_log = open_log(LogConfig(file=str(path), max_bytes=1000, backups=2))
    for number in range(100):
        daemon_log.info("", f"message {number}")
    daemon_log.close()
    assert sorted(os.listdir(tmp_path)) == ["nsbridge.log", "nsbridge.log.1", "nsbridge.log.2"]
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}
    assert path.read_text().splitlines()[-1].endswith("message 99")


def test_reopen_follows_a_file_that_was_renamed(daemon_log: Log, path: Path) -> None:
    daemon_log.info("", "before")
    path.rename(path.with_suffix(".old"))
    daemon_log.info("", "still there")
    daemon_log.reopen()
    daemon_log.info("", "after")
    assert path.with_suffix(".old").read_text().count("\n") == 2
    assert path.read_text().endswith("after\n")


def test_a_reopen_that_fails_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    directory, moved = tmp_path / "logs", tmp_path / "moved"
    directory.mkdir()
    daemon_log = open_log(LogConfig(file=str(directory / "log")))
    directory.rename(moved)
    daemon_log.reopen()
    daemon_log.info("", "still writing")
    daemon_log.close()
    text = (moved / "log").read_text()
    assert "the log stays in its old file: daemon.log.file: cannot open" in text
    assert text.endswith("still writing\n")


def test_reopening_leaves_no_descriptor_behind(daemon_log: Log) -> None:
    daemon_log.reopen()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        daemon_log.reopen()
    assert len(os.listdir("/proc/self/fd")) == before


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_records_and_is_reported_later(small_disk: Path) -> None:
    daemon_log = open_log(LogConfig(file=str(small_disk / "log")))
    filler = small_disk / "filler"
    try:
        filler.write_bytes(b"x" * (1 << 20))
    except OSError:
        pass  # that is the aim
    for number in range(200):
        daemon_log.info("", f"{number} " + "x" * 1000)
    assert daemon_log.lost > 0
    assert len(daemon_log.ring.recent()) == 200
    filler.unlink()
    daemon_log.info("", "room again")
    assert daemon_log.lost == 0
    daemon_log.close()
    lines = (small_disk / "log").read_text().splitlines()
    assert re.search(r"WARNING nsbridged up to \d+ records before this could not be written: No space left", lines[-1])
    assert lines[-2].endswith("room again")


@pytest.mark.filterwarnings("error")
def test_closing_on_a_full_disk_does_not_raise() -> None:
    daemon_log = open_log(LogConfig(file="/dev/full"))
    daemon_log.info("", "lost")
    assert daemon_log.lost == 1
    daemon_log.close()


def test_a_rotation_that_fails_does_not_raise(tmp_path: Path, path: Path) -> None:
    path.with_name("nsbridge.log.1").mkdir()
    (path.with_name("nsbridge.log.1") / "in the way").write_text("")
    daemon_log = open_log(LogConfig(file=str(path), max_bytes=100, backups=1))
    for _ in range(10):
        daemon_log.info("", "x" * 90)
    assert daemon_log.lost > 0
    daemon_log.close()


# -- what is remembered


def test_the_last_records_are_remembered_and_no_more(daemon_log: Log) -> None:
    for number in range(KEPT + 5):
        daemon_log.info("", str(number))
    assert [entry.message for entry in daemon_log.ring.recent()] == [str(number) for number in range(5, KEPT + 5)]
    assert [entry.message for entry in daemon_log.ring.recent(2)] == [str(KEPT + 3), str(KEPT + 4)]
    assert daemon_log.ring.recent(0) == []


def test_a_name_selects_an_agent_or_the_whole_route(daemon_log: Log) -> None:
    for name in ("", "orders", "orders:web", "orders:legacy", "orders2:web"):
        daemon_log.info(name, "x")
    assert [entry.name for entry in daemon_log.ring.recent(name="orders:web")] == ["orders:web"]
    assert [entry.name for entry in daemon_log.ring.recent(name="orders")] == ["orders", "orders:web", "orders:legacy"]
    assert len(daemon_log.ring.recent()) == 5


def test_a_subscriber_hears_every_new_record_until_it_ends_that(daemon_log: Log) -> None:
    heard: list[Entry] = []
    daemon_log.info("a:b", "before")
    end = daemon_log.ring.subscribe(heard.append, "a")
    daemon_log.info("a:b", "one\n")
    daemon_log.info("c:d", "of another route")
    end()
    end()
    daemon_log.info("a:b", "after")
    assert [entry.message for entry in heard] == [r"one\n"]
    assert heard[0].item().keys() == {"time", "level", "name", "message"}


def test_a_subscriber_may_unsubscribe_while_it_is_called(daemon_log: Log) -> None:
    heard: list[str] = []

    def once(entry: Entry) -> None:
        heard.append(entry.message)
        end()

    end = daemon_log.ring.subscribe(once)
    other: list[Entry] = []
    daemon_log.ring.subscribe(other.append)
    daemon_log.info("", "one")
    daemon_log.info("", "two")
    assert heard == ["one"]
    assert len(other) == 2


def test_a_subscriber_may_log(daemon_log: Log) -> None:
    heard: list[str] = []

    def complain(entry: Entry) -> None:
        heard.append(entry.message)
        if entry.message == "one":
            daemon_log.info("", "about one")

    daemon_log.ring.subscribe(complain)
    daemon_log.info("", "one")
    assert heard == ["one", "about one"]
