"""Traffic of containers' programs, for tests that compare byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from tests.system import queue_program
from tests.system.room import wait_until

_PROGRAM = str(Path(queue_program.__file__ or "").resolve())


class HasPid(Protocol):
    """A container, by its init."""

    @property
    def pid(self) -> int:
        """Return its pid in the host's namespace."""
        ...


class Sent(NamedTuple):
    """A message as a queue has it."""

    type: int
    body: bytes


def random_messages(size: int, *, longest: int = 8192, seed: int = 2) -> list[bytes]:
    """Return random bytes, `size` in all, in messages of 1 to `longest` bytes."""
    chance = random.Random(seed)
    messages: list[bytes] = []
    left = size
    while left > 0:
        messages.append(chance.randbytes(min(chance.randint(1, longest), left)))
        left -= len(messages[-1])
    return messages


@contextmanager
def in_ipc_of(
    container: HasPid, *words: str, stdout: int | BinaryIO = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run queue_program.py in the container's ipc namespace; kill it at the end."""
    command = ["nsenter", f"--target={container.pid}", "--ipc", "--", sys.executable, _PROGRAM, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, bufsize=1 << 20) as program:
        try:
            yield program
        finally:
            program.kill()


class Receiver:
    """Receives `count` messages of `mtype` from the container's queue, from now on; nobody has to read meanwhile."""

    def __init__(self, container: HasPid, key: int, count: int, mtype: int = 0, answer_type: int = 0) -> None:
        self._count = count
        words = ("get", str(key), str(mtype), str(count), *([str(answer_type)] if answer_type else []))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self._program = in_ipc_of(container, *words, stdout=self._file)

    def __enter__(self) -> Receiver:
        self._running = self._program.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._program.__exit__(*exc)
        self._file.close()

    def messages(self, limit: float = 60.0) -> list[Sent]:
        """Return all messages, once the last has come."""
        try:
            assert self._running.wait(limit) == 0
        finally:
            self._file.seek(0)
            received = list(_frames(self._file.read()))
            print(f"received {len(received)} of {self._count}")
        return received


def _frames(data: bytes) -> Iterator[Sent]:
    at = 0
    while at + queue_program.FRAME.size <= len(data):
        mtype, length = queue_program.FRAME.unpack_from(data, at)
        at += queue_program.FRAME.size + length
        yield Sent(mtype, data[at - length : at])


def send_all(container: HasPid, key: int, messages: Sequence[Sent]) -> None:
    """Put them into the queue; returns when the last is in."""
    with in_ipc_of(container, "put", str(key)) as program:
        assert program.stdin is not None
        for message in messages:
            program.stdin.write(queue_program.FRAME.pack(message.type, len(message.body)) + message.body)
        program.stdin.close()
        assert program.wait() == 0


def put_into_spool(directory: Path, messages: Sequence[bytes]) -> None:
    """Put one file each, by rename, as programs do; the names have spaces and non-ASCII letters, and sort in order."""
    for number, body in enumerate(messages):
        hidden = directory / f".part {number}"
        hidden.write_bytes(body)
        hidden.rename(directory / f"{number:08d} Grüße №.bin")


def wait_for_files(directory: Path, count: int) -> list[Path]:
    """Wait until the spool has that many files; return their paths by name."""
    wait_until(lambda: len(visible(directory)) >= count, f"{count} files in {directory}", 60)
    return [directory / name for name in sorted(visible(directory))]


def visible(directory: Path) -> list[str]:
    """Return the names that do not begin with a dot."""
    return [name for name in os.listdir(directory) if not name.startswith(".")]
