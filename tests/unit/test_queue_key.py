"""The key of a queue that is made of a file in a container, and who could make it another queue's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.queue.config import FtokKey
from nsbridge.agents.endpoints.queue.queue import key_and_makers


def made_of(root: Path, path: str) -> tuple[int, list[int]]:
    number, steps = key_and_makers(FtokKey(path=path, proj=0x12), str(root))
    return number, [step.uid for step in steps]


def test_key_is_what_ftok_makes(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    about = (tmp_path / "key").stat()
    number, _ = made_of(tmp_path, "/key")
    assert number == 0x12 << 24 | (about.st_dev & 0xFF) << 16 | about.st_ino & 0xFFFF


def test_number_is_nobody_s_choice() -> None:
    assert key_and_makers(0x51, "/nowhere") == (0x51, ())


def test_owners_of_directories_links_and_the_file_are_given(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/key").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/key").symlink_to("/etc/key")
    for path, uid in (("", 1), ("etc", 2), ("etc/key", 3), ("home", 4), ("home/key", 5)):
        os.lchown(tmp_path / path, uid, uid)
    number, uids = made_of(tmp_path, "/home/key")
    assert number == made_of(tmp_path, "/etc/key")[0]
    assert uids == [1, 4, 5, 1, 2, 3]


@pytest.mark.parametrize("path", ["/../key", "/../../etc/../key", "/out/key"])
def test_key_stays_in_the_container(tmp_path: Path, path: str) -> None:
    """`..` of its root is the root, though this process has another one."""
    root = tmp_path / "root"
    for directory in (tmp_path, root, root / "etc"):
        directory.mkdir(exist_ok=True)
        (directory / "key").touch()
    (root / "out").symlink_to("../..")
    assert made_of(root, path)[0] == made_of(root, "/key")[0]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        made_of(tmp_path, "/etc/key")
    assert caught.value.filename == b"/etc/key"
