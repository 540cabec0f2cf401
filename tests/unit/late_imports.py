"""Sees which modules are imported while a function of agents/ runs, by it or by what it calls."""

from __future__ import annotations

import builtins
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import nsbridge.agents

_AGENTS = str(Path(nsbridge.agents.__file__).parent)


@cache
def loaded_by_an_agent() -> frozenset[str]:
    """Return the modules that the supervisor has loaded when it forks an agent."""
    program = "import sys, nsbridge.supervisor.cli.nsbridged; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


class LateImports:
    """A context manager; `seen` has what an agent would have had to read from its container."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._import = builtins.__import__

    def __enter__(self) -> LateImports:
        builtins.__import__ = self._watched
        return self

    def __exit__(self, *_exc: object) -> None:
        builtins.__import__ = self._import

    def _watched(self, name: str, *rest: Any, **keywords: Any) -> Any:
        where = _function_of_agents(sys._getframe(1))
        if where and name not in loaded_by_an_agent():
            self.seen.append(f"{name} in {where}")
        return self._import(name, *rest, **keywords)


def _function_of_agents(frame: FrameType | None) -> str:
    """Return the innermost function of agents/ that is running; empty if there is none, or a module is being loaded."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>":
            return ""
        if code.co_filename.startswith(_AGENTS):
            return f"{Path(code.co_filename).name} {code.co_name}"
        frame = frame.f_back
    return ""
