"""The source of a single file: which content is a message when the name leads to another file meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.file import FileEndpoint, FileSource
from tests.fake_host import SourceHost


class Life:
    """An agent that takes from `place`."""

    def __init__(self, tmp_path: Path) -> None:
        self.place = tmp_path / "home" / "place"
        self.place.parent.mkdir()
        self.host = SourceHost(tmp_path / "journal", [])
        self.source = self.host.source = FileSource(
            self.host, self.host.tree, FileEndpoint(out=str(self.place)), self.host.journal
        )
        self.source.start()

    def bodies(self) -> list[bytes]:
        self.host.settle()
        return self.host.bodies()

    def replace(self, body: bytes) -> None:
        """Rename another file over it, as a program does that never shows half of a content."""
        other = self.place.with_name("other")
        other.write_bytes(body)
        other.rename(self.place)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path)
    yield made
    made.host.lose(made.source._directory.watch)


def test_each_close_is_a_message(life: Life) -> None:
    for number in range(5):
        life.place.write_bytes(b"%d" % number * number)
        assert len(life.bodies()) == number + 1
    assert life.bodies() == [b"", b"1", b"22", b"333", b"4444"]


def test_a_file_renamed_over_another_is_a_message(life: Life) -> None:
    life.place.write_bytes(b"first")
    assert life.bodies() == [b"first"]
    life.replace(b"second")
    assert life.bodies() == [b"first", b"second"]
    life.place.write_bytes(b"third")
    assert life.bodies() == [b"first", b"second", b"third"]


def test_a_file_renamed_over_while_it_is_read(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event of the rename is taken out of inotify with those of the content before it."""
    lease = files.lease
    replacements = [b"second"]

    def replaced(fd: int) -> bool | None:
        if replacements:
            life.replace(replacements.pop())
        return lease(fd)

    life.place.write_bytes(b"zeroth")
    assert life.bodies() == [b"zeroth"]
    monkeypatch.setattr(files, "lease", replaced)
    life.place.write_bytes(b"first")
    assert life.bodies()[-1] == b"second"


def test_a_file_removed_while_it_is_read(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = files.lease

    def removed(fd: int) -> bool | None:
        life.place.unlink(missing_ok=True)
        return lease(fd)

    life.place.write_bytes(b"first")
    monkeypatch.setattr(files, "lease", removed)
    life.bodies()
    monkeypatch.setattr(files, "lease", lease)
    life.place.write_bytes(b"second")
    assert life.bodies()[-1] == b"second"


@pytest.mark.parametrize("how", ["renamed over", "removed"])
def test_close_of_a_replaced_file_is_no_message(life: Life, how: str) -> None:
    """A program still had it open for writing when another file took its name."""
    with life.place.open("wb", buffering=0) as former:
        former.write(b"never whole")
        if how == "removed":
            life.place.unlink()
            life.place.write_bytes(b"new")
        else:
            life.replace(b"new")
        assert life.bodies() == [b"new"]
    assert life.bodies() == [b"new"]


def test_a_renamed_file_that_is_closed_later(life: Life) -> None:
    """It was renamed to the name while its program still had it open: its close completes it."""
    other = life.place.with_name("other")
    with other.open("wb", buffering=0) as file:
        file.write(b"half")
        other.rename(life.place)
        life.bodies()
        file.write(b" and whole")
    life.host.run_until(lambda: bool(life.bodies()), "it is taken")
    assert life.bodies() == [b"half and whole"]


def test_a_file_linked_to_another_name_is_not_mixed_up(life: Life) -> None:
    """Its inode still has a link after its removal, so only the name says which file is meant."""
    life.place.write_bytes(b"first")
    assert life.bodies() == [b"first"]
    os.link(life.place, life.place.with_name("kept"))
    life.place.unlink()
    life.place.write_bytes(b"second")
    assert life.bodies() == [b"first", b"second"]
