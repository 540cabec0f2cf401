"""Many routes, and how soon a killed agent works again: the short forms of `make scale` and `make restart`.

docs/scale.md and docs/restart.md have the long forms. The limits here are wider than what was measured there, because
the machine of a test is shared: with a load average of 23, 40 routes have taken 6.6 s to start.
"""

from __future__ import annotations

import statistics

import pytest

from benchmarks import backlog, restart, scale

pytestmark = pytest.mark.alone  # it measures, and its many agents are all the load a machine needs

ROUTES = 40
IDLE = 4.0  # seconds
KILLS = 4


@pytest.mark.parametrize(
    ("delivery", "processes"),
    [
        ("at-least-once", 2),
        pytest.param("exactly-once", 2, marks=pytest.mark.counter),
        pytest.param("exactly-once", 4, marks=pytest.mark.senders),
    ],
)
def test_forty_routes_start_answer_rest_and_stop(delivery: str, processes: int) -> None:
    """A fifth of the routes that are promised; status and memory as promised there.

    In so short a time the first heartbeats, which copy the pages that they write, are most of what an idle tree costs.
    """
    outcome = scale.measure(ROUTES, delivery, IDLE)
    print(scale.report([outcome]))
    assert outcome.processes == 1 + processes * ROUTES
    assert outcome.start < 20.0
    assert outcome.status < 1.0
    assert outcome.idle < 0.06
    assert outcome.stop < 10.0
    assert all(memory.median < 8 << 20 for kind, memory in outcome.memory.items() if kind != "supervisor")


def test_a_killed_agent_relays_again_long_before_supervisord_s() -> None:
    """Every kind of endpoint."""
    times = restart.measure(KILLS)
    print(restart.report(times, 0.0))
    medians = {who: statistics.median(taken) for who, until, taken in times}
    ours = {who: median for who, median in medians.items() if who.startswith("nsbridge")}
    assert len(ours) == 4
    assert max(ours.values()) < 0.3
    assert max(ours.values()) < medians["supervisord"] / 3


def test_agent_with_a_large_backlog_relays_soon_after_a_kill() -> None:
    """A kill every 250 ms does not stop the flow, and a fifth of the files of `make restart` wait."""
    outcome = backlog.measure(KILLS, waiting=20_000)
    print(outcome)
    assert statistics.median(outcome.flowing) < 0.3
    assert statistics.median(outcome.resting) < 0.3
    assert min(outcome.storm) > 0
