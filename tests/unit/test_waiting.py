"""A reason to wait reaches the supervisor within a second, once, and not while it comes and goes with each message."""

from __future__ import annotations

import pytest

from nsbridge.agents.scoreboard import Scoreboard, joined
from nsbridge.agents.waiting import AFTER, WaitReport
from tests.agent_life import FakeLoop


class Scene:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.page = Scoreboard()
        self.reports: list[float] = []
        self.waits = WaitReport(self.loop, self.page.set_reason, lambda: self.reports.append(self.loop.time))  # type: ignore[arg-type]

    def serve_until(self, time: float) -> None:
        while self.loop.pending() and self.loop.pending()[0].due <= time:
            self.loop.fire()
        self.loop.time = time


def test_reason_that_lasts_is_reported_once() -> None:
    scene = Scene()
    scene.waits.set("in", "queue full")
    scene.waits.set("in", "queue full")
    scene.serve_until(1010.0)
    assert scene.reports == [1000.0 + AFTER]
    assert scene.page.reasons() == ["queue full"]
    assert not scene.loop.pending()


def test_reason_that_comes_and_goes_is_not_reported() -> None:
    """A queue that is full after each message, for ten seconds; one timer at most."""
    scene = Scene()
    for step in range(1000):
        scene.waits.set("in", "queue full" if step % 2 == 0 else "")
        scene.serve_until(1000.0 + step / 100)
        assert len(scene.loop.pending()) <= 1
    assert scene.reports == []


def test_reason_that_changes_is_reported_again() -> None:
    scene = Scene()
    scene.waits.set("in", "no queue")
    scene.serve_until(1005.0)
    scene.waits.set("in", "not permitted")
    scene.waits.set("out", "not permitted")
    scene.serve_until(1010.0)
    assert scene.reports == [1000.0 + AFTER, 1005.0 + AFTER]


def test_reason_after_the_end_of_one_has_to_last_too() -> None:
    scene = Scene()
    scene.waits.set("out", "no queue")
    scene.serve_until(1000.3)
    scene.waits.set("out", "")
    scene.waits.set("out", "no queue")
    scene.serve_until(1010.0)
    assert scene.reports == [pytest.approx(1000.3 + AFTER)]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("no queue 0x1 in docker:a: why?", "no queue 0x2 in docker:a: why?", "no queue 0x1 and 0x2 in docker:a: why?"),
        ("/srv/out: Permission denied (set user)", "/srv/in: Permission denied (set user)",
         "/srv/out and /srv/in: Permission denied (set user)"),
        ("queue full", "queue empty", None),
        ("no room in state_dir", "no queue 0x1 at all", None),
        ("a b c d", "a b c", None),
    ],
)  # fmt: skip
def test_reasons_that_differ_in_one_word_are_joined(one: str, other: str, both: str | None) -> None:
    assert joined(one, other) == both
    page = Scoreboard()
    page.set_reason("out", one)
    page.set_reason("in", other)
    assert page.reasons() == ([one, other] if both is None else [both])


def test_reason_of_both_sides_appears_once() -> None:
    page = Scoreboard()
    page.set_reason("out", "create /srv in docker:a")
    page.set_reason("in", "create /srv in docker:a")
    assert page.reasons() == ["create /srv in docker:a"]
