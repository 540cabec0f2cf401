"""The benchmarks with few messages: they still run, and what they count as carried has arrived, whole and in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import flows, outcome
from benchmarks.lab import Lab
from benchmarks.subjects import (
    C_TWO,
    CORE,
    DATAGRAMS,
    FROM_JS,
    GOALS,
    JS_RAW,
    JS_WINDOW,
    MQUEUE,
    SHARED_ECHO,
    SHARED_SPOOL,
    STATUS,
    SUBJECTS,
    SUPERVISORCTL,
    TICK_100,
    TO_JS,
    Subject,
    chosen,
)

pytestmark = pytest.mark.alone  # it measures

RECORDED = Path(__file__).parents[2] / "benchmarks" / "recorded.json"
FEW = 0.005  # of the full number of messages
QUICK = [
    subject
    for subject in SUBJECTS
    if subject.name
    in {
        *CORE,
        TO_JS,
        FROM_JS,
        JS_WINDOW,
        JS_RAW,
        C_TWO,
        MQUEUE,
        "mqueue→mqueue",
        DATAGRAMS,
        "socket→log",
        "log→socket",
        "echo, senders",
        "log→queue, counter",
        SHARED_ECHO,
        SHARED_SPOOL,
        STATUS,
        SUPERVISORCTL,
    }
    - {TICK_100}
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.mark.parametrize("subject", QUICK, ids=lambda subject: subject.name)
def test_a_benchmark_runs_and_everything_arrives(lab: Lab, subject: Subject) -> None:
    """The loads themselves fail at a message that is missing, repeated, damaged or out of order."""
    figures = subject.run(lab, FEW)
    wanted = {goal.metric for goal in GOALS if subject.name in (goal.subject, goal.against)}
    assert wanted <= figures.keys()
    assert all(value > 0 for value in figures.values()), figures


def test_several_routes_tick_and_every_message_is_delivered(lab: Lab) -> None:
    assert flows.tick(lab, 3, 1)["cpu"] > 0


def test_a_load_that_gets_something_else_fails_and_says_what(lab: Lab) -> None:
    with lab.containers() as (a, _b):
        drain = lab.load(a, "drain", "log", "/srv/log", 2, 16)
        (a.rootfs / "srv/log").write_bytes(b"00000000aaaaaaaa\n00000002aaaaaaaa\n")
        with pytest.raises(RuntimeError, match="message 1: got 16 bytes: 00000002"):
            drain.span()


def test_every_goal_compares_what_is_measured() -> None:
    names = {subject.name for subject in SUBJECTS}
    assert {goal.subject for goal in GOALS} | {goal.against for goal in GOALS if goal.against} <= names
    assert len(names) == len(SUBJECTS)


def test_recorded_figures_and_goals_correspond() -> None:
    assert set(outcome.read_recorded(RECORDED)) == {goal.title for goal in GOALS if goal.limit is not None}


def test_what_something_is_compared_with_is_measured_too() -> None:
    assert [subject.name for subject in chosen(["log→queue"])] == ["kernel 256 B", "log→queue"]
    with pytest.raises(SystemExit, match="no such thing to measure: nonsense"):
        chosen(["nonsense"])


def test_a_ratio_that_has_become_worse_is_named() -> None:
    recorded = {"echo: p90": 2.0, "log→queue 256 B, exactly-once": 0.2}
    found = {
        "echo": {"p90": 270.0},
        "echo, C bridge": {"p90": 100.0},
        "log→queue": {"rate": 190.0},
        "kernel 256 B": {"rate": 1000.0},
    }
    assert outcome.regressions(found, recorded, 0.3) == ["echo: p90: 2.7, recorded 2, limit 2.6"]
    found["log→queue"]["rate"] = 150.0
    assert len(outcome.regressions(found, recorded, 0.3)) == 2


def test_the_tables_have_the_medians_and_say_which_goal_is_met() -> None:
    rounds = {
        "kernel 256 B": [{"rate": 1000.0}] * 3,
        "log→queue": [{"rate": rate, "cpu": 9.0} for rate in (1.0, 210.0, 300.0)],
    }
    lines = outcome.tables(rounds).splitlines()
    assert "| log→queue 256 B, exactly-once | kernel 256 B | 0.21 × | ≥ 0.2 × | met |" in lines
    assert "| log→queue | 210 | 9 |" in lines
    (goal,) = (goal for goal in outcome.document(rounds, 0.5)["goals"] if "limit" in goal)
    assert (goal["value"], goal["met"]) == (0.21, True)
