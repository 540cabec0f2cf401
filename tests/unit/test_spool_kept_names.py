"""Messages whose files keep their names from one spool to another (`name = "original"`), and suffixes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.spool.config import Naming, SpoolEndpoint
from tests.kills import killed_at
from tests.spool_box import Box, hidden_name_of, name_of
from tests.spool_life import Life, Make

ORIGINAL = {"name_": Naming.ORIGINAL}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, **ORIGINAL)
    yield made
    made.kill()


def names(box: Box) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(box.path)))


# -- the sink


@pytest.mark.parametrize("name", [b"a.xml", b"-rf", b"a\nb\xff", b"~", b"x" * 255, b"con:", b"a b"])
def test_file_has_the_name_that_it_had(box: Box, name: bytes) -> None:
    assert box.offer(1, b"one", name=name) == 1
    assert names(box) == [name]


def test_message_without_a_name_gets_its_number(box: Box) -> None:
    assert [box.offer(1, b"one"), box.offer(2, b"two", name=b"")] == [1, 1]
    assert names(box) == [name_of(1).encode(), name_of(2).encode()]


@pytest.mark.parametrize(
    ("name", "kept"),
    [(b"a", b"a.hl7"), (b"a.hl7", b"a.hl7"), (b"a.HL7", b"a.HL7.hl7"), (b"x" * 251, b"x" * 251 + b".hl7")],
)
def test_suffix_is_added_unless_it_is_there(tmp_path: Path, name: bytes, kept: bytes) -> None:
    box = Box(tmp_path, suffix=".hl7", **ORIGINAL)
    assert [box.offer(1, b"one", name=name), box.offer(2, b"two")] == [1, 1]
    assert names(box) == sorted([kept, name_of(2).encode() + b".hl7"])
    box.kill()


def test_numbers_with_a_suffix_sort_after_those_of_a_later_epoch(tmp_path: Path) -> None:
    box = Box(tmp_path, suffix=".hl7")
    assert box.offer(1, b"old") == 1
    box.kill()
    (tmp_path / "a.in").unlink()
    box.start()
    box.host.journal.adopt(7, 0)
    assert box.offer(1, b"new", 7) == 1
    assert box.bodies() == [b"old", b"new"]
    box.kill()


def test_name_too_long_with_its_suffix_is_a_dead_letter(tmp_path: Path) -> None:
    """It was taken before the suffix was configured: a source refuses such a file."""
    box = Box(tmp_path, suffix=".hl7", **ORIGINAL)
    assert [box.offer(1, b"one", name=b"x" * 252), box.offer(2, b"two", name=b"b")] == [1, 1]
    assert names(box) == [b"b.hl7"]
    assert [letter.bodies for letter in box.host.dead_letters] == [(b"one",)]
    assert any("longer than 255 bytes with the suffix .hl7" in text for text in box.host.said)
    box.kill()


PLANTS: dict[str, Callable[[Path], object]] = {
    "another file": lambda path: path.write_bytes(b"other"),
    "a file with the message's content": lambda path: path.write_bytes(b"one"),
    "a directory": Path.mkdir,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("plant", PLANTS)
def test_taken_name_is_waited_for_in_order(box: Box, plant: str) -> None:
    """Nothing is overwritten or followed, and a file with the same content is not the message."""
    taken = box.path / "a"
    PLANTS[plant](taken)
    before = os.lstat(taken)
    for _ in range(2):
        assert box.offer(1, b"one", name=b"a") == 0
        assert box.host.journal.handed == 0
        assert f"{taken} already exists" in box.host.reason
        assert os.lstat(taken) == before
        assert names(box) == [b"a"], "a hidden file was left"
        box.kill()
        box.start()
    taken.rename(box.path.parent / "taken away")
    assert [box.offer(1, b"one", name=b"a"), box.offer(2, b"two", name=b"b")] == [1, 1]
    assert box.bodies() == [b"one", b"two"]


@pytest.mark.parametrize("act", [os.unlink, lambda path: os.rename(path, f"{path}-done")])
def test_freed_name_is_noticed_at_once(box: Box, act: Callable[[Path], None]) -> None:
    (box.path / "a").touch()
    assert box.offer(1, b"one", name=b"a") == 0
    (box.path / "b").touch()
    (box.path / "b").unlink()
    assert box.host.ready == 0
    act(box.path / "a")
    box.host.loop.run_once(1)  # not the timer's turn, which is retried with backoff
    assert box.host.ready == 1


def test_name_that_is_taken_just_before_the_rename_is_waited_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box.sink, "_is_taken", lambda _name: False)
    (box.path / "a").write_bytes(b"one")
    assert box.offer(1, b"one", name=b"a") == 0
    assert names(box) == [b"a"]
    box.kill()
    box.start()
    assert box.host.journal.handed == 0


def test_name_of_a_message_to_come_deceives_nothing(box: Box) -> None:
    """A file is named as a later message without a name will be."""
    assert box.offer(1, b"same", name=name_of(2).encode()) == 1
    assert box.offer(2, b"same") == 0
    (box.path / name_of(2)).unlink()
    assert box.offer(2, b"same") == 1


# -- kills

STARTED_IN = ("endpoints/spool/sink.py", "endpoints/directory.py")
KILLED_IN = (*STARTED_IN, "agents/journal/sinkjournal.py")
MESSAGES = [(b"a", b"same"), (b"a", b"same"), (b"b", b"same")]


def deliver(box: Box, collected: list[tuple[bytes, bytes]]) -> None:
    """Offer what is left; the reader takes files only when a message waits for one."""
    while (seq := box.host.journal.handed + 1) <= len(MESSAGES):
        name, body = MESSAGES[seq - 1]
        if not box.offer(seq, body, name=name):
            collect(box, collected)


def collect(box: Box, collected: list[tuple[bytes, bytes]]) -> None:
    for name in names(box):
        if not name.startswith(b"."):
            path = Path(os.fsdecode(os.fsencode(box.path) + b"/" + name))
            collected.append((name, path.read_bytes()))
            path.unlink()


def life_killed_at(directory: Path, first: int, taken: bool) -> int:
    """Kill the sink before that line, and its successor before some line of its start; return how many lines ran."""
    directory.mkdir()
    box = Box(directory, **ORIGINAL)
    if taken:
        (box.path / hidden_name_of(2) / "full").mkdir(parents=True)
    collected: list[tuple[bytes, bytes]] = []
    with killed_at(first, *KILLED_IN) as ran:
        deliver(box, collected)
    box.kill()
    with killed_at(1 + first * 7 % 40, *STARTED_IN):
        box.start()
    box.kill()
    box.start()
    deliver(box, collected)
    collect(box, collected)
    assert collected == MESSAGES, f"killed before line {first}"
    left = [name for name in names(box) if name != hidden_name_of(2).encode()]
    assert left == [], f"killed before line {first}"
    box.kill()
    return ran[0]


@pytest.mark.parametrize("taken", [False, True])
def test_kills_at_every_line_while_names_repeat(taken: bool) -> None:
    """Each message comes once, under its name, in order, although two have the same name and content.

    `taken`: the second one's usual hidden name is taken by a directory; every other line each.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for line in count(1 + taken, 2):
            if life_killed_at(Path(directory) / str(line), line, taken) < line:
                return


# -- the source

KEPT = SpoolEndpoint(in_="/in", suffix=".hl7", **ORIGINAL).kept_name  # type: ignore[arg-type]


def sent_names(life: Life) -> list[bytes]:
    run = life.host.store.run(life.host.store.confirmed + 1)
    assert run is not None
    return list(run.names)


def test_names_are_sent_if_the_other_side_keeps_them(make_spool: Make) -> None:
    """They are those that the files had when they were taken, for every later agent, too."""
    life = make_spool(kept_name=KEPT, window=2)
    life.host.confirms = False
    life.put("a", b"1")
    life.put("b\n", b"2")
    life.put("c", b"3")
    life.expect(b"1", b"2")
    assert sent_names(life) == [b"a", b"b\n"]
    (life.out / "a").rename(life.out / "renamed")
    life.kill()
    life.start()
    assert sent_names(life) == [b"a", b"b\n"]


def test_names_stay_here_if_the_other_side_keeps_none(make_spool: Make) -> None:
    life = make_spool()
    life.host.confirms = False
    life.put("a", b"1")
    life.expect(b"1")
    assert sent_names(life) == []


def test_dead_letter_that_comes_back_has_no_name(make_spool: Make) -> None:
    life = make_spool(kept_name=KEPT)
    life.host.confirms = False
    life.put("a", b"1")
    life.expect(b"1")
    assert life.host.give_back(b"2")
    assert sent_names(life) == [b"a", b""]


def test_name_that_is_too_long_across_is_refused(make_spool: Make) -> None:
    life = make_spool(kept_name=KEPT)
    life.put("x" * 252, b"1")
    life.put("x" * 251, b"2")
    life.expect(b"2")
    assert life.host.refused_files == 1
    assert life.said("has a name that would be too long with the suffix") == 1
