"""Reports an agent's own failure, by its control channel and nothing else."""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import NoReturn

from nsbridge.agents import control
from nsbridge.agents.fork import EXIT_AGAIN


def crash(channel: socket.socket, error: BaseException | None) -> NoReturn:
    """Report the reason to the supervisor, and end the process at once."""
    control.send(channel, report="error", text=f"internal error: {described(error)}"[:1000])
    os._exit(EXIT_AGAIN)


def described(error: BaseException | None) -> str:
    """Return what went wrong and where. Opens no file: a traceback would read its lines from the container."""
    where = []
    trace: TracebackType | None = error.__traceback__ if error else None
    while trace is not None:
        where.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} at {' > '.join(where)}"


def report(channel: socket.socket, text: str) -> None:
    """Have the supervisor log an error."""
    control.send(channel, report="log", level="error", text=text)


def ignored(channel: socket.socket, error: BaseException | None) -> None:
    """Have the supervisor log an exception that could not be caught."""
    report(channel, f"ignored: {described(error)}"[:1000])
