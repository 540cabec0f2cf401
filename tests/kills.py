"""SIGKILL for an endpoint that runs in the test's own process: it may come before any line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import nsbridge.agents


class Killed(BaseException):
    """In the place of SIGKILL: nothing may catch it."""


_AGENTS = Path(nsbridge.agents.__file__).parent
_FILES = [str(path) for path in _AGENTS.rglob("*.py")]


@contextmanager
def killed_at(line: int, *parts: str) -> Iterator[list[int]]:
    """Raise Killed before that line (they count from 1) of those that run in files whose path has one of `parts`.

    Gives a list with the number of lines that ran. Killed is caught here.
    """
    for part in parts:
        assert any(part in path for path in _FILES), f"no path has {part} in it"
    ran = [0]

    def count(_frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            ran[0] += 1
            if ran[0] == line:
                sys.settrace(None)
                raise Killed
        return count

    def enter(frame: FrameType, event: str, _argument: object) -> Any:
        return count if event == "call" and any(part in frame.f_code.co_filename for part in parts) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield ran
    except Killed:
        pass
    finally:
        sys.settrace(before)
