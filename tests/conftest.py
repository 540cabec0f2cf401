"""Setup of every test: in CI Hypothesis draws no random input, and test files run in several processes (pytest-xdist).

Each worker process runs whole files, and has its own daemons, engines and directories. A test marked `alone`
measures time, or uses something of which the machine has one: meanwhile no other worker runs a test. Such tests
come last.
"""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import nsbridge.agents.endpoints.kinds
import nsbridge.supervisor.containers.engines  # noqa: F401  (it registers the kinds that configurations may name)

for name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[name]  # PYTHONUNBUFFERED in a shell, for one, hides what goes wrong when output is flushed at exit

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background shell's; what tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

WORKERS = 3  # two keep two cores half busy, since most tests wait for processes that they started
_TURNS = "turns"  # the directory of the two lock files, as a worker is given it
_DIRECTORY = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other worker runs a test meanwhile")
    config.addinivalue_line("markers", "senders: daemons of this test have no counter")
    config.addinivalue_line("markers", "counter: daemons of this test have the counter, with `make senders` too")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 0 if only files are named: their output, --pdb and -s are then as without workers."""
    named = [Path(argument.split("::")[0]) for argument in config.args]
    return 0 if all(path.is_file() for path in named) else WORKERS


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each worker the directory of the lock files, which ends with the session."""
    config: pytest.Config = node.config
    if _DIRECTORY not in config.stash:
        config.stash[_DIRECTORY] = tempfile.TemporaryDirectory(prefix="nsb-turns-")
        config.add_cleanup(config.stash[_DIRECTORY].cleanup)
    node.workerinput[_TURNS] = config.stash[_DIRECTORY].name


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests marked `alone` last, so that a worker which waits for its turn has nothing else to do."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Wait for this test's turn, outside of its time limit."""
    directory = getattr(item.config, "workerinput", {}).get(_TURNS)
    if directory is None:
        return (yield)
    with open(f"{directory}/queue", "w") as line, open(f"{directory}/tests", "w") as tests:
        fcntl.flock(line, fcntl.LOCK_EX)  # while a test waits here to be alone, no other one begins
        fcntl.flock(tests, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(line, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(tests, fcntl.LOCK_UN)  # closing is not enough: a child of a module's fixture has it open, too
