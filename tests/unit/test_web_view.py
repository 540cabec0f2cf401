"""The rows of the page: what they say, which are chosen, what is sent when they change; and the plots."""

from __future__ import annotations

from typing import Any

import pytest

from nsbridge.supervisor.cli.web import view
from nsbridge.supervisor.cli.web.history import POINTS, STEP, STEPS, WIDTH, Ends, History
from nsbridge.supervisor.cli.web.snapshot import Snapshot, failing, parse
from tests.control_fake import agent, flow, overview_of, status_document


def snapshot(*agents: dict[str, Any], **facts: object) -> Snapshot:
    flows = (flow("orders:web", "orders:legacy", **facts),) if facts else ()
    return parse(overview_of(status_document(*agents, flows=flows)))


def row(name: str, **facts: object) -> view.Row:
    return view.rows(snapshot(agent(name, **facts)), History())[name]


@pytest.mark.parametrize(
    ("facts", "state", "tone", "why"),
    [
        ({}, "RUNNING", "ok", ""),
        ({"phase": "blocked", "detail": "blocked: queue full"}, "blocked", "warn", "queue full"),
        ({"phase": "wedged", "detail": "wedged: no heartbeat for 3 s"}, "wedged", "bad", "no heartbeat for 3 s"),
        ({"phase": "blocked", "detail": "blocked: full", "blocked_s": 700.2}, "blocked", "warn", "full; for 11 min"),
        ({"state": "WAITING", "detail": "no such container"}, "WAITING", "warn", "no such container"),
        ({"state": "BACKOFF", "detail": "killed", "retry_in_s": 12.4}, "BACKOFF", "bad", "killed; again in 12 s"),
        ({"state": "FATAL", "detail": "no queue"}, "FATAL", "bad", "no queue"),
        ({"state": "STOPPED", "wanted": False}, "STOPPED", "off", ""),
        ({"detail": "\x1b[2J\u202e"}, "RUNNING", "ok", "\\x1b[2J\\u202e"),
    ],
)
def test_row_says_the_state_and_why(facts: dict[str, object], state: str, tone: str, why: str) -> None:
    found = row("orders:web", **facts)
    assert (found.cells["state"], found.tone, found.cells["why"]) == (state, tone, why)


def test_numbers_stand_in_the_row_of_the_agent_they_are_to_enter() -> None:
    found = view.rows(
        snapshot(agent("orders:web"), agent("orders:legacy"), pending=1200, dead_letters=1000, oldest_pending_s=4000.0),
        History(),
    )
    assert found["orders:web"].cells["pending"] == ""
    assert found["orders:legacy"].cells["pending"] == "1,200"
    assert found["orders:legacy"].cells["dead"] == "1,000+"
    assert found["orders:legacy"].cells["age"] == "1 h 6 min"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.24, "4.2 s"),
        (59.9, "59 s"),
        (419.9, "6 min 59 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_duration_has_the_units_that_matter(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text


def test_route_is_chosen_with_all_of_its_rows() -> None:
    rows = view.rows(
        parse(
            overview_of(
                status_document(
                    agent("a:x", container="docker:web"), agent("a:y"), agent("b:x", state="FATAL"), agent("b:y")
                )
            )
        ),
        History(),
    )
    assert [route.name for route in view.chosen(rows.values(), view.Choice())] == ["a", "b"]
    (only,) = view.chosen(rows.values(), view.Choice(trouble=True))
    assert [found.name for found in only.rows] == ["b:x", "b:y"]
    (only,) = view.chosen(rows.values(), view.Choice(text="fatal B:"))
    assert only.name == "b"
    assert [route.name for route in view.chosen(rows.values(), view.Choice(sort="trouble"))] == ["b", "a"]


def test_change_has_only_the_cells_that_changed() -> None:
    before = view.rows(snapshot(agent("a:x"), agent("a:y")), History())
    after = view.rows(snapshot(agent("a:x"), agent("a:z", restarts=2)), History())
    assert view.changes(before, before) == {"rows": [], "gone": []}
    changed = view.changes(before, after)
    assert changed["gone"] == ["a:y"]
    blocked = view.rows(snapshot(agent("a:x", phase="blocked", detail="blocked: full"), agent("a:y")), History())
    (change,) = view.changes(before, blocked)["rows"]
    assert change["cells"] == {"state": "blocked", "why": "full"}
    assert change["tone"] == "warn"


def test_failing_is_what_should_run_and_does_not() -> None:
    found = snapshot(
        agent("a:x", state="WAITING", detail="gone"),
        agent("a:y", state="STOPPED", wanted=False),
        agent("b:x"),
        agent("b:y", phase="blocked", detail="blocked: full", blocked_s=1.0, blocked_long=False),
        agent("b:z", phase="blocked", detail="blocked: full", blocked_s=1000.0, blocked_long=True),
    )
    assert failing(found) == ["a:x is WAITING: gone", "b:z is RUNNING: blocked: full"]


# -- history


ENDS = Ends("orders:web", "orders:legacy")


def see(history: History, now: float, **facts: object) -> None:
    history.see(now, snapshot(agent("orders:web"), **facts))


def test_rate_is_taken_over_the_last_seconds() -> None:
    history = History()
    for second in range(10):
        see(history, float(second), delivered=100 * second, bytes=0)
    assert history.tracks[ENDS].rate == pytest.approx(100.0)
    for second in range(10, 17):
        see(history, float(second), delivered=900, bytes=0)
    assert history.tracks[ENDS].rate == 0.0


def test_journal_that_was_made_anew_gives_no_negative_rate() -> None:
    history = History()
    see(history, 0.0, delivered=1000)
    see(history, 1.0, delivered=3)
    see(history, 2.0, delivered=5)
    assert history.tracks[ENDS].rate == pytest.approx(2.0)


def test_plot_shows_the_last_15_minutes_newest_at_the_right() -> None:
    history = History()
    assert STEP * STEPS == 15 * 60
    for step in range(3 * STEPS):
        see(history, step * STEP, pending=1000 if step == 3 * STEPS - 1 else 10)
    points = [tuple(map(float, point.split(","))) for point in history.tracks[ENDS].points("pending").split()]
    assert len(points) == POINTS
    assert points[-1][0] == WIDTH
    assert points[-1][1] < points[0][1], "SVG counts from the top"
    assert history.tracks[ENDS].points("age") == "", "all of it is 0"


def test_flow_that_is_gone_is_forgotten() -> None:
    history = History()
    see(history, 0.0, pending=1)
    history.see(1.0, snapshot(agent("orders:web")))
    assert history.tracks == {}
