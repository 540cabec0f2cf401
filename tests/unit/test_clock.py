"""A clock that is stepped disturbs nothing: wall time is for people, and for numbers that only have to be new."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nsbridge.agents

ROOT = Path(nsbridge.agents.__file__).parent.parent
WALL = {
    "time",
    "time_ns",
    "localtime",
    "gmtime",
    "ctime",
    "asctime",
    "strftime",
    "now",
    "utcnow",
    "today",
    "clock_gettime_ns",
}
ALLOWED = {
    "agents/journal/journalfile.py new_epoch": "a number that no journal had before; a later journal has a later one",
    "agents/journal/journalfile.py move_aside": "a file's name, which a person reads",
    "agents/endpoints/log/siblings.py now": "compared with the births of files, which are wall time too",
    "agents/dead/letters.py add": "shown to a person",
    "agents/dead/letters.py _recount": "the age of an earlier life's letter, for max_age; one from the future is young",
    "agents/journal/pending.py note": "the age of a message that outlives the daemon, shown to a person",
    "agents/journal/pending.py noted_since": "the same",
    "agents/tap.py put": "when a message was handed over, shown to a person",
    "supervisor/lifecycle/agent.py container_ended": "shown to a person",
    "supervisor/lifecycle/agent.py _welcome": "since when an agent runs, shown to a person and in metrics",
    "supervisor/control/lettercounts.py __init__": "compared with a file's mtime; after a step it counts again",
    "supervisor/log/events.py __init__": "when something happened, shown to a person",
    "supervisor/cli/dead.py _each": "compared with the times of letters, which are wall time too",
    "supervisor/cli/commands/share.py _day": "the date of a man page, which a person reads",
    "agents/journalreader.py _time": "an epoch, shown to a person",
}


def _uses(path: Path) -> Iterator[str]:
    """Yield each function of the file that asks for wall time."""
    for function in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(function, ast.FunctionDef) and any(map(_is_wall_clock, ast.walk(function))):
            yield f"{path.relative_to(ROOT)} {function.name}"


def _is_wall_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute):
        return False
    named = ast.unparse(node)
    return (named.startswith(("time.", "datetime.")) and node.attr in WALL) or node.attr == "CLOCK_REALTIME"


def test_only_what_people_read_depends_on_the_wall_clock() -> None:
    """Deadlines, delays, heartbeats and the order of anything use the monotonic clock."""
    sources = [path for part in ("agents", "config", "supervisor") for path in (ROOT / part).rglob("*.py")]
    used = {use for path in sources if "demo" not in path.parts for use in _uses(path)}
    assert used == set(ALLOWED)
