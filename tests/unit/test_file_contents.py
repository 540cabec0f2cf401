"""Reading and writing files of a hostile container: whole, and never more than the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents.endpoints import files

MIB = 1 << 20


@pytest.mark.parametrize("limit", [0, 1, 100, 65_535, 65_536, 65_537, MIB, 3 * MIB])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_file_is_read_whole_up_to_the_limit_and_not_beyond(tmp_path: Path, limit: int, more: int) -> None:
    content = os.urandom(max(0, limit + more))
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb", buffering=0) as file:
        assert files.read_up_to(file.fileno(), limit) == (content if len(content) <= limit else None)


@pytest.mark.parametrize("limit", [0, 1000, 65_536, 8 * MIB])
def test_of_a_file_that_is_too_large_nothing_is_read(tmp_path: Path, limit: int) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    with (tmp_path / "x").open("rb", buffering=0) as file:
        assert files.read_up_to(file.fileno(), limit) is None
        assert file.tell() == 0


@pytest.mark.parametrize("limit", [0, 1000, 65_535, 65_536, 8 * MIB])
def test_reading_of_an_endlessly_growing_file_ends(limit: int) -> None:
    """/dev/zero never ends; a file that its writer is faster with than we are is the same."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    assert files.read_up_to(fd, limit) is None
    os.close(fd)


def test_every_byte_is_written(tmp_path: Path) -> None:
    """More than a pipe takes at once."""
    body = os.urandom(MIB)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            files.write_all(writer, body)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == body
    os.waitpid(pid, 0)
