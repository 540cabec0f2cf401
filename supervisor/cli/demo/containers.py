"""Parts that both kinds of demo container share: a program inside, and two pipes to it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.demo.waiting import Lines, Waits

START_LIMIT = 20.0  # seconds until a container's program says that it is ready; a slow disk may need several
LAST_WORDS_LIMIT = 2.0  # seconds that a program which failed has for saying why


class Role(StrEnum):
    """The two containers, by the name that their agents have too."""

    CLIENT = "client"
    SERVER = "server"


class ContainerError(NsbridgeError):
    """A container cannot be made here; `str()` is the reason, without saying which container."""


@dataclass(frozen=True, slots=True)
class Site:
    """Place where a container is made: `work` is a directory of the demo's own, `stack` undoes what has been done."""

    work: Path
    stack: ExitStack
    waits: Waits


@dataclass(frozen=True, slots=True)
class DemoContainer:
    """A running container."""

    role: Role
    reference: str  # as the configuration names it: pid:N, runc:NAME
    pid: int  # of its init, as the host sees it
    exchange: str  # its private directory, as it is called inside
    stdin: int
    lines: Lines

    def namespace(self, kind: str) -> int:
        """Return the inode number of its namespace `kind` (a name under /proc/PID/ns)."""
        return namespace(self.pid, kind)

    def write_line(self, line: bytes) -> None:
        """Hand `line` to the program's standard input; a program that has ended shows in what it prints next."""
        data = memoryview(line + b"\n")
        with suppress(BrokenPipeError):
            while data:
                data = data[os.write(self.stdin, data) :]


@dataclass(frozen=True, slots=True)
class Pipes:
    """Two pipes to a program; its own ends are to be closed when it has been started."""

    stdin: int
    stdout: int
    program_stdin: int
    program_stdout: int

    def close_program_ends(self) -> None:
        """Leave the program alone with its ends, so that each side sees when the other is gone."""
        os.close(self.program_stdin)
        os.close(self.program_stdout)


def pipes(stack: ExitStack) -> Pipes:
    """Return new pipes; `stack` closes our ends."""
    program_stdin, stdin = os.pipe()
    stdout, program_stdout = os.pipe()
    stack.callback(os.close, stdin)
    stack.callback(os.close, stdout)
    return Pipes(stdin, stdout, program_stdin, program_stdout)


def command(role: Role, exchange: str) -> list[str]:
    """Return the program that a container runs."""
    program = str(Path(__file__).parent.resolve() / f"echo_{role}.py")
    files = [f"{exchange}/to_server", f"{exchange}/to_client"] if role is Role.CLIENT else []
    return [sys.executable, "-I", program, *files]


def await_ready(lines: Lines) -> None:
    """Return when the program serves; ContainerError with its last words if it does not come to that."""
    try:
        line = lines.next(START_LIMIT)
    except TimeoutError:
        raise ContainerError(f"its program did not get ready within {START_LIMIT:g} s") from None
    if line == b"Ready":
        return
    words = line
    with suppress(TimeoutError):
        while line is not None:
            words = line or words
            line = lines.next(LAST_WORDS_LIMIT)
    raise ContainerError((words or b"its program ended at once").decode("utf-8", "replace").strip())


def namespace(pid: int | str, kind: str) -> int:
    """Return the inode number of the namespace `kind` of the process `pid`."""
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
