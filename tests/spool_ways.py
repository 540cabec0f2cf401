"""Ways in which programs write a message into a spool: the rows of the table in docs/delivery.md."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

FIRST, SECOND = b"first\n", b"second\n"
Write = Callable[[Path, Path], None]  # gets the spool, and a directory beside it


def write(path: Path, *parts: bytes) -> None:
    """Create a file with these writes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for part in parts:
        os.write(fd, part)
    os.close(fd)


def write_and_close(out: Path, _beside: Path) -> None:
    write(out / "name", FIRST)


def write_slowly(out: Path, _beside: Path) -> None:
    write(out / "name", FIRST[:3], FIRST[3:])


def rename_from_a_hidden_name(out: Path, _beside: Path) -> None:
    write(out / ".name", FIRST)
    (out / ".name").rename(out / "name")


def rename_from_a_suffix(out: Path, _beside: Path) -> None:
    write(out / "name.tmp", FIRST)
    (out / "name.tmp").rename(out / "name")


def rename_from_another_directory(out: Path, beside: Path) -> None:
    write(beside / "name", FIRST)
    (beside / "name").rename(out / "name")


def link_from_another_directory(out: Path, beside: Path) -> None:
    write(beside / "name", FIRST)
    (out / "name").hardlink_to(beside / "name")


def link_and_remove(out: Path, beside: Path) -> None:
    write(beside / "name", FIRST)
    (out / "name").hardlink_to(beside / "name")
    (beside / "name").unlink()


def link_from_a_hidden_name(out: Path, _beside: Path) -> None:
    write(out / ".name", FIRST)
    (out / "name").hardlink_to(out / ".name")
    (out / ".name").unlink()


def link_tmpfile(fd: int, path: Path) -> None:
    """Link by linkat(2) with AT_SYMLINK_FOLLOW, as open(2) shows it for O_TMPFILE."""
    own_fds = os.open("/proc/self/fd", os.O_RDONLY)
    os.link(str(fd), path, src_dir_fd=own_fds, follow_symlinks=True)
    os.close(own_fds)


def tmpfile(out: Path, _beside: Path) -> None:
    fd = os.open(out, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, FIRST)
    link_tmpfile(fd, out / "name")
    os.close(fd)


def write_through_a_mapping(out: Path, _beside: Path) -> None:
    fd = os.open(out / "name", os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(fd, len(FIRST))
    mapping = mmap.mmap(fd, len(FIRST))
    os.close(fd)
    mapping[:3] = FIRST[:3]
    mapping[3:] = FIRST[3:]
    mapping.close()


def two_writers(out: Path, _beside: Path) -> None:
    one, other = (os.open(out / "name", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for _ in range(2))
    os.write(one, FIRST[:3])
    os.close(one)
    os.write(other, FIRST[3:])
    os.close(other)


WRITES = [
    write_and_close,
    write_slowly,
    rename_from_a_hidden_name,
    rename_from_a_suffix,
    rename_from_another_directory,
    link_from_another_directory,
    link_and_remove,
    link_from_a_hidden_name,
    tmpfile,
    write_through_a_mapping,
    two_writers,
]
