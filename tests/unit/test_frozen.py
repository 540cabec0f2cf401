"""Nothing that an agent does after the join imports a module or opens a source file, on error paths least of all.

An `import` in a function is one that comes late. None is in agents/ (below); what the libraries under them do late is
seen by the guard of conftest.py, in every unit test of an agent's module, so on every error path that has a test.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nsbridge.agents
from tests.child import in_child
from tests.unit.late_imports import LateImports

AGENTS = Path(nsbridge.agents.__file__).parent
# Each reads files, loads libraries or asks the network, at a time of its own choosing.
NEVER = {
    "pwd",
    "grp",
    "locale",
    "gettext",
    "ssl",
    "getpass",
    "linecache",
    "traceback",
    "logging",
    "subprocess",
    "tempfile",
}
BEFORE_THE_ENTRY = {"kind.py"}  # of NATS: its agents alone load asyncio and nats-py, before they enter


def test_no_function_of_an_agent_imports() -> None:
    late = [
        f"{path.name}:{node.lineno}"
        for path in AGENTS.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(function, ast.FunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [where for where in late if where.partition(":")[0] not in BEFORE_THE_ENTRY] == []


def test_no_module_of_an_agent_reads_files_on_its_own() -> None:
    used = {
        f"{path.name}: {name}"
        for path in AGENTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        for name in _imported(node)
        if name in NEVER
    }
    assert used == {"connection.py: ssl", "prepare.py: ssl"}  # of NATS, loaded and used before the entry


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_the_guard_sees_a_late_import() -> None:
    """Made in a function of agents/, of a module that no agent has loaded; a module's own imports are not late."""

    def child() -> list[str]:  # the test's own guard sees nothing of it
        namespace: dict[str, Any] = {}
        with LateImports() as guard:
            for text in ("import wave", "def late():\n import wave"):
                exec(compile(text, str(AGENTS / "pretended.py"), "exec"), namespace)
            namespace["late"]()
        return guard.seen

    assert in_child(child) == ["wave in pretended.py late"]


SAYINGS = {
    "warning": "warnings.warn('provoked', RuntimeWarning)",
    "unraisable": "Bad().__del__()\nb = Bad(); del b",
    "thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
    "uncaught": "1 / 0",
}


@pytest.mark.parametrize("what", SAYINGS)
def test_what_python_says_opens_no_source_file(tmp_path: Path, what: str) -> None:
    """A FIFO stands where the source file would be read: a traceback or a warning that opened it would hang."""
    os.mkfifo(tmp_path / "agent.py")
    program = """
import os, signal, sys, threading, warnings
from nsbridge.agents.confinement import entry
class Bad:
    def __del__(self):
        try:
            raise ValueError("provoked")
        finally:
            pass
signal.alarm(10)
code = compile(sys.argv[2], "/agent.py", "exec")
entry.freeze_imports()
os.chroot(sys.argv[1])
os.chdir("/")
exec(code)
"""
    body = SAYINGS[what].replace("Bad().__del__()\n", "")
    done = subprocess.run([sys.executable, "-c", program, tmp_path, body], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("nsbridged: agent: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == (75 if what == "uncaught" else 0)
