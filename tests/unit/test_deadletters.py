"""Dead letters as files that an agent's user wrote: read within bounds, given back, removed. All content is hostile."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import DeadConfig
from nsbridge.supervisor.control import deadletters
from nsbridge.supervisor.control.deadletters import Letter

SINK, SOURCE = "orders:legacy", "orders:web"
EPOCH = 0xAA
ROOMY = DeadConfig()
LONGEST = 1 << 20


class Box:
    """The directory of one sink's letters."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = str(state_dir)
        self.path = state_dir / "dead/orders/legacy"
        self.path.mkdir(parents=True)
        self.retried = state_dir / "dead/orders/.retry/web"

    def stem(self, seq: int) -> str:
        return f"{EPOCH:016x}-{seq:020d}"

    def put(self, number: int, body: bytes = b"x", **fields: object) -> str:
        """Write a letter as its agent does; `fields` replace those of its note."""
        note: dict[str, Any] = {
            "epoch": EPOCH,
            "seq": number,
            "type": 3,
            "time": 1_700_000_000.0,
            "where": "queue 0x4d2",
        }
        self.note(number).write_text(json.dumps(note | {"why": "too long"} | fields), encoding="utf-8")
        self.body(number).write_bytes(body)
        return self.stem(number)

    def note(self, seq: int) -> Path:
        return self.path / f"{self.stem(seq)}.json"

    def body(self, seq: int) -> Path:
        return self.path / f"{self.stem(seq)}.body"

    def letter(self, seq: int) -> Letter:
        found = deadletters.letter_of(self.state_dir, SINK, self.stem(seq))
        assert found is not None
        return found

    def give_back(self, seq: int, longest: int = LONGEST, limits: DeadConfig = ROOMY) -> None:
        deadletters.give_back(self.state_dir, self.letter(seq), SOURCE, longest, limits)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


# -- reading


def test_letter_is_read_with_its_note(box: Box) -> None:
    box.put(7, b"hello")
    letter = box.letter(7)
    assert letter == Letter(SINK, EPOCH, 7, 5, 3, 1_700_000_000.0, "queue 0x4d2", "too long")
    assert (letter.id, letter.stem) == ("orders:legacy/00000000000000aa-7", box.stem(7))
    assert deadletters.body_of(box.state_dir, letter, 3) == b"hel"
    assert deadletters.path_of(box.state_dir, letter) == str(box.body(7))


def test_letters_come_in_order_of_their_numbers(box: Box) -> None:
    for seq in (10, 9, 100):
        box.put(seq)
    assert [letter.seq for letter in deadletters.letters_of(box.state_dir, SINK).letters] == [9, 10, 100]
    assert deadletters.count(box.state_dir, SINK) == 3


def test_agent_without_a_directory_has_none(tmp_path: Path) -> None:
    assert deadletters.stems_of(str(tmp_path), SINK) == ([], False)
    assert deadletters.letter_of(str(tmp_path), SINK, "x") is None
    assert deadletters.count(str(tmp_path), SINK) == 0
    assert deadletters.given_back(str(tmp_path), SOURCE) == 0


def test_directory_that_is_a_link_is_an_error(tmp_path: Path) -> None:
    """The agent's user may replace what it owns."""
    (tmp_path / "dead/orders").mkdir(parents=True)
    (tmp_path / "dead/orders/legacy").symlink_to("/etc")
    with pytest.raises(NsbridgeError, match=r"dead letters of orders:legacy: Not a directory"):
        deadletters.stems_of(str(tmp_path), SINK)
    with pytest.raises(NsbridgeError, match=r"dead letters of orders:legacy: Not a directory"):
        deadletters.letter_of(str(tmp_path), SINK, "x")
    assert deadletters.count(str(tmp_path), SINK) is None, "it cannot be seen"


def test_other_names_are_no_letters(box: Box) -> None:
    for name in ("readme.json", "00aa-7.json", f"{box.stem(7)}.json.tmp", f"{box.stem(7).upper()}.json"):
        (box.path / name).write_text("{}")
    assert deadletters.stems_of(box.state_dir, SINK) == ([], False)
    assert deadletters.letter_of(box.state_dir, SINK, "../../etc/passwd") is None


def test_note_without_body_is_no_letter(box: Box) -> None:
    """Its agent writes the note last, and removes it first."""
    box.put(7)
    box.body(7).unlink()
    assert deadletters.letters_of(box.state_dir, SINK).letters == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"epoch": EPOCH + 1}, id="another epoch"),
        pytest.param({"seq": 8}, id="another number"),
        pytest.param({"seq": "7"}, id="a text"),
        pytest.param({"type": -1}, id="a negative type"),
        pytest.param({"type": 1 << 63}, id="a type too large"),
        pytest.param({"type": True}, id="a truth value as type"),
        pytest.param({"type": None}, id="no type"),
    ],
)
def test_note_that_does_not_fit_is_damaged(box: Box, fields: dict[str, Any]) -> None:
    box.put(7, **fields)
    letter = box.letter(7)
    assert (letter.type, letter.time, letter.where, letter.why) == (None, None, "", "its note is damaged")


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 4000, '"\\ud800"', "{}" + " " * 5000 + "x", "\xff"])
def test_note_that_is_no_object_is_damaged(box: Box, text: str) -> None:
    box.put(7)
    box.note(7).write_text(text, encoding="latin-1")
    assert box.letter(7).why == "its note is damaged"


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_note_that_is_no_file_is_damaged_and_not_waited_for(box: Box, kind: str) -> None:
    box.put(7)
    content = box.note(7).read_bytes()
    box.note(7).unlink()
    if kind == "fifo":
        os.mkfifo(box.note(7))
    elif kind == "link":
        (box.path / "elsewhere").write_bytes(content)
        box.note(7).symlink_to("elsewhere")
    else:
        box.note(7).mkdir()
    assert box.letter(7).why == "its note is damaged"


@pytest.mark.parametrize("time", [-1, 1 << 37, "yesterday", None, [1]])
def test_time_that_cannot_be_is_left_out(box: Box, time: object) -> None:
    box.put(7, time=time)
    assert (box.letter(7).type, box.letter(7).time) == (3, None)


def test_long_texts_are_cut(box: Box) -> None:
    box.put(7, why="y" * 2000, where=["w"] * 300)
    assert (len(box.letter(7).why), len(box.letter(7).where)) == (1000, 1000)


def test_more_names_than_are_looked_at_are_reported(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MAX_SEEN", 4)
    monkeypatch.setattr(deadletters, "MAX_COUNTED", 2)
    for seq in range(2):
        box.put(seq)
    assert deadletters.stems_of(box.state_dir, SINK) == ([box.stem(0), box.stem(1)], False)
    for seq in range(2, 5):
        box.put(seq)
    stems, more = deadletters.stems_of(box.state_dir, SINK)
    assert more
    assert len(stems) <= 5
    assert deadletters.count(box.state_dir, SINK) == 2, "counted up to that"


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "gone"])
def test_body_that_is_no_file_is_not_read(box: Box, kind: str) -> None:
    box.put(7)
    letter = box.letter(7)
    box.body(7).unlink()
    if kind == "fifo":
        os.mkfifo(box.body(7))
    elif kind == "link":
        box.body(7).symlink_to("/etc/shadow")
    elif kind == "directory":
        box.body(7).mkdir()
    says = {"link": "Too many levels of symbolic links", "gone": "it has just gone"}.get(kind, "no regular file")
    with pytest.raises(NsbridgeError, match=says) as error:
        deadletters.body_of(box.state_dir, letter, 10)
    assert str(error.value).startswith(letter.id)


# -- removing


def test_dropped_letter_is_gone_with_its_body(box: Box) -> None:
    box.put(7)
    box.put(8)
    deadletters.drop(box.state_dir, box.letter(7))
    assert box.names() == [f"{box.stem(8)}.body", f"{box.stem(8)}.json"]


def test_letter_that_vanished_cannot_be_dropped(box: Box) -> None:
    box.put(7)
    letter = box.letter(7)
    box.note(7).unlink()
    with pytest.raises(NsbridgeError, match=r"orders:legacy/00000000000000aa-7: it has just gone"):
        deadletters.drop(box.state_dir, letter)
    assert box.names() == [f"{box.stem(7)}.body"], "its agent removes that"


def test_drop_does_without_a_body(box: Box) -> None:
    box.put(7)
    letter = box.letter(7)
    box.body(7).unlink()
    deadletters.drop(box.state_dir, letter)
    assert box.names() == []


def test_drop_removes_a_directory_in_the_place_of_a_body(box: Box) -> None:
    box.put(7)
    box.body(7).unlink()
    box.body(7).mkdir()
    deadletters.drop(box.state_dir, box.letter(7))
    assert box.names() == []


def test_directory_that_is_not_empty_is_one_line(box: Box) -> None:
    box.put(7)
    box.body(7).unlink()
    (box.body(7) / "full").mkdir(parents=True)
    with pytest.raises(NsbridgeError, match=r"orders:legacy/00000000000000aa-7: Directory not empty"):
        deadletters.drop(box.state_dir, box.letter(7))


# -- giving back


def test_given_back_letter_waits_for_its_source(box: Box) -> None:
    box.put(7, b"hello")
    os.chown(box.body(7), 51000, 51001)
    box.body(7).chmod(0o600)
    box.give_back(7)
    assert box.names() == []
    assert os.listdir(box.retried) == [f"{box.stem(7)}.3"], "its name has its type"
    found = (box.retried / f"{box.stem(7)}.3").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), os.getegid(), 0o644)
    assert stat.S_IMODE(box.retried.stat().st_mode) == 0o700
    assert deadletters.given_back(box.state_dir, SOURCE) == 1


def refuses(box: Box, says: str, seq: int = 7, **how: Any) -> None:
    """Giving it back fails with that error, and the letter is where it was."""
    before = box.names()
    with pytest.raises(NsbridgeError, match=says):
        box.give_back(seq, **how)
    assert box.names() == before
    assert deadletters.given_back(box.state_dir, SOURCE) == 0


def test_damaged_letter_can_only_be_dropped(box: Box) -> None:
    box.put(7, type=None)
    refuses(box, r"aa-7: its note is damaged; it can only be dropped")


def test_letter_longer_than_the_journal_stays(box: Box) -> None:
    box.put(7, b"12345")
    refuses(box, r"5 bytes are more than the journal of orders:web holds \(4\)", longest=4)
    box.give_back(7, longest=5)


def test_body_with_a_second_name_stays(box: Box) -> None:
    """Making it readable would open somebody else's file."""
    box.put(7)
    os.link(box.body(7), box.path / "other")
    box.body(7).chmod(0o600)
    refuses(box, r"its file has 2 names; it can only be dropped")
    assert stat.S_IMODE(box.body(7).stat().st_mode) == 0o600


def test_body_that_is_a_fifo_stays(box: Box) -> None:
    box.put(7)
    box.body(7).unlink()
    os.mkfifo(box.body(7))
    refuses(box, r"its body is no regular file; it can only be dropped")


@pytest.mark.parametrize(
    ("limits", "full"),
    [(DeadConfig(max_letters=2), "2 letters"), (DeadConfig(max_bytes=10), "10 B")],
    ids=["letters", "bytes"],
)
def test_source_with_enough_to_take_again_gets_no_more(box: Box, limits: DeadConfig, full: str) -> None:
    for seq in range(3):
        box.put(seq, b"12345")
    box.give_back(0, limits=limits)
    box.give_back(1, limits=limits)
    with pytest.raises(NsbridgeError, match=rf"orders:web has too many letters to take again \({full}\); retry"):
        box.give_back(2, limits=limits)
    assert deadletters.given_back(box.state_dir, SOURCE) == 2
    assert box.names() == [f"{box.stem(2)}.body", f"{box.stem(2)}.json"]


def test_letter_without_body_has_just_gone(box: Box) -> None:
    box.put(7)
    letter = box.letter(7)
    box.body(7).unlink()
    with pytest.raises(NsbridgeError, match=r"it has just gone"):
        deadletters.give_back(box.state_dir, letter, SOURCE, LONGEST, ROOMY)
