"""nsbridgectl's tables, without a daemon, and what starting it loads."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.config.text import duration, escape
from nsbridge.supervisor.cli import render
from tests.control_fake import agent, flow, status_document


def test_status_lines_are_as_the_interface_shows_them() -> None:
    document = status_document(
        agent("orders:web"),
        agent(
            "orders:legacy",
            state="WAITING",
            detail="container not running since 12:03:10",
            container="runc:legacy",
            endpoint="queue",
        ),
        flows=(
            flow("orders:web", "orders:legacy", delivered=12031, dead=5, dead_letters=2),
            flow("orders:legacy", "orders:web", delivered=12029),
        ),
    )
    assert render.status(document, colour=False) == [
        "orders:web     RUNNING  pid 4711, uptime 2:03:11              docker:web   spool  out 12031  in 12029",
        "orders:legacy  WAITING  container not running since 12:03:10  runc:legacy  queue  out 12029  in 12031  2 dead",
    ]


@pytest.mark.parametrize(
    ("age", "shown"), [(None, "3 pending"), (4.9, "3 pending"), (62.0, "3 pending (oldest 0:01:02)")]
)
def test_the_age_of_the_oldest_message_is_shown_once_it_matters(age: float | None, shown: str) -> None:
    flows = (flow("orders:web", "a:b", pending=3, oldest_pending_s=age),)
    (line,) = render.status(status_document(agent("a:b"), flows=flows), colour=False)
    assert line.endswith(f"in 0  {shown}")


def test_a_running_agent_that_is_blocked_says_so() -> None:
    (line,) = render.status(status_document(agent("a:b", detail="blocked: queue full")), colour=False)
    assert "pid 4711, uptime 2:03:11  docker:web" in line
    assert line.endswith("  blocked: queue full")


@pytest.mark.parametrize(
    ("ever", "now", "text"), [(3, 0, "3 refused"), (3, 2, "3 refused (2 still there)"), (0, 0, "")]
)
def test_refused_files_are_shown(ever: int, now: int, text: str) -> None:
    facts = flow("a:b", "a:c", refused=ever, refused_now=now)
    (line,) = render.status(status_document(agent("a:b"), flows=(facts,)), colour=False)
    assert line.rstrip().endswith(f"out 0  {text}".rstrip())


@pytest.mark.parametrize(("count", "text"), [(300_000, "about 300,000 files wait"), (999, "")])
def test_large_backlog_of_files_is_shown(count: int, text: str) -> None:
    (line,) = render.status(
        status_document(agent("a:b"), flows=(flow("a:b", "a:c", waiting_files=count),)), colour=False
    )
    assert line.rstrip().endswith(f"out 0  {text}".rstrip())


def test_an_agent_in_backoff_says_when_it_starts_again() -> None:
    document = status_document(agent("a:b", state="BACKOFF", retry_in_s=2.34, pid=None, uptime_s=None))
    assert "next start in 2.3 s" in render.status(document, colour=False)[0]


def test_colour_is_put_on_the_state_and_on_nothing_else() -> None:
    document = status_document(agent("RUNNING:RUNNING"), agent("a:b", state="FATAL", detail="FATAL: no"))
    first, second = render.status(document, colour=True)
    assert first.startswith("RUNNING:RUNNING  \x1b[32mRUNNING\x1b[0m  pid")
    assert second.startswith("a:b              \x1b[31mFATAL\x1b[0m    FATAL: no")


def test_an_empty_status_is_reported() -> None:
    assert render.status({"routes": []}, colour=False) == ["no routes"]


def test_a_tree_shows_whatever_json_there_is() -> None:
    value: dict[str, object] = {
        "pid": 1,
        "ok": True,
        "none": None,
        "empty": [],
        "caps": ["a", "b"],
        "in": {"mnt": {"inode": 5}},
    }
    value |= {"files": [{"fd": 0, "target": "x\ny"}], "deep": [{"a": {"b": 1}}]}
    assert render.tree(value) == [
        "pid    1",
        "ok     yes",
        "none   -",
        "empty  -",
        "caps   a, b",
        "in",
        "  mnt",
        "    inode  5",
        "files",
        "  0  x\\ny",
        "deep",
        "  a",
        "    b  1",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00:00"), (59.9, "0:00:59"), (7391, "2:03:11"), (266_591, "3d 2:03:11"), (-1, "0:00:00")],
)
def test_a_duration_is_readable(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_escaped_can_move_a_cursor_or_break_a_line(text: str) -> None:
    escaped = escape(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in escaped)
    assert escape(escaped) == escaped


def test_escapes_are_spelled_as_python_spells_them() -> None:
    assert escape("a\x1b[2J\n\udc80\u202eü\x9b") == r"a\x1b[2J\n\udc80\u202eü\x9b"


def test_starting_loads_nothing_that_status_does_not_need() -> None:
    program = (
        "import sys; before = set(sys.modules); import nsbridge.supervisor.cli.nsbridgectl; "
        "print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {_search()!r}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    slow = {"typing", "dataclasses", "argparse", "logging", "pathlib", "inspect", "subprocess", "tomllib", "cattrs"}
    assert not slow & set(loaded)
    assert not [name for name in loaded if name.startswith("nsbridge.agents")]


def _search() -> list[str]:
    from pathlib import Path  # noqa: PLC0415

    return [str(Path(__file__).parents[2] / ".typecheck")]
