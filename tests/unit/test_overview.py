"""The rows of `overview`: an agent that is well keeps its row, and any change of it is seen."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.agents import scoreboard
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.supervisor.control.overview import AGENT_KEYS, Overview
from nsbridge.supervisor.lifecycle.table import State


def process(pid: int = 7) -> Any:
    return SimpleNamespace(
        child=SimpleNamespace(pid=pid),
        wedged="",
        stuck=False,
        usage=None,
        ready_at=1.0,
        confinement={},
        ready_since=1.0,
    )


def running() -> Any:
    board = Scoreboard()
    board.begin()
    return SimpleNamespace(
        config=SimpleNamespace(name="r:a", container="docker:web", endpoint=SimpleNamespace(name="spool", in_=None)),
        process=process(),
        scoreboard=board,
        state=State.RUNNING,
        wanted=True,
        restarts=0,
        retry_in=None,
        detail="",
        is_blind=False,
        confinement={},
        beat_every=1.0,
        blocked_long=False,
        attachment=SimpleNamespace(name_watch=None, serves="", ns_path=""),
    )


@pytest.fixture
def agent() -> Any:
    return running()


class Rows:
    def __init__(self, agent: Any) -> None:
        self._overview = Overview(SimpleNamespace(quick=lambda _name, _dead: 0))  # type: ignore[arg-type]
        self._routes: Any = [SimpleNamespace(agents=(agent,), directions=[])]

    def row(self) -> dict[str, Any]:
        answer: Any = self._overview.rows(self._routes)
        return dict(zip(AGENT_KEYS, answer["agents"][0], strict=True))


def test_every_change_of_an_agent_is_in_its_row(agent: Any) -> None:
    rows = Rows(agent)
    assert [rows.row()[key] for key in ("state", "phase", "pid", "wanted")] == ["RUNNING", "idle", 7, True]
    agent.scoreboard.cells[scoreboard.PENDING] = 3
    assert rows.row()["phase"] == "relaying"
    agent.scoreboard.set_reason("in", "queue full")
    assert (rows.row()["phase"], rows.row()["detail"]) == ("blocked", "blocked: queue full")
    agent.scoreboard.set_reason("in", "")
    agent.scoreboard.set_notice("out", "polls")
    assert rows.row()["detail"] == "polls"
    agent.scoreboard.set_notice("out", "")
    assert rows.row()["detail"] == ""
    agent.process.usage = SimpleNamespace(memory=5, descriptors=6)
    assert (rows.row()["memory"], rows.row()["descriptors"]) == (5, 6)
    agent.process, agent.restarts = process(8), 1
    assert (rows.row()["pid"], rows.row()["restarts"]) == (8, 1)
    agent.scoreboard.cells[scoreboard.SENDERS] = 9
    assert rows.row()["senders"] == [9]
    agent.scoreboard.cells[scoreboard.SENDERS] = 0
    agent.wanted = False
    assert rows.row()["wanted"] is False


def test_agent_that_becomes_wedged_is_seen(agent: Any) -> None:
    rows = Rows(agent)
    assert rows.row()["phase"] == "idle"
    agent.beat_every = 0.001
    agent.scoreboard.cells[scoreboard.BEAT] = time.monotonic_ns() - 10**9  # the machine may be up for seconds only
    assert rows.row()["phase"] == "wedged"


def test_agent_without_a_process_has_a_row(agent: Any) -> None:
    rows = Rows(agent)
    rows.row()
    agent.process, agent.state, agent.detail, agent.retry_in = None, State.WAITING, "no such container", 2.0
    row = rows.row()
    assert (row["state"], row["detail"], row["pid"], row["retry_in_s"]) == ("WAITING", "no such container", None, 2.0)
