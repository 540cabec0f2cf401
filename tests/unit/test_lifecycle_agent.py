"""One managed agent: what its neighbour hears, in which order events are served, what its process gets to hear."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.fork import EXIT_AGAIN, EXIT_NEVER
from nsbridge.supervisor.lifecycle.agent import DRAIN_LIMIT, EXIT_LIMIT
from nsbridge.supervisor.lifecycle.table import Action, State
from tests.agent_life import Life

S = State


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path)
    yield made
    made.close()


def test_every_action_is_carried_out(life: Life) -> None:
    assert set(life.agent._do) == set(Action)


def test_neighbour_hears_each_state_once_in_order(life: Life) -> None:
    """A kill is answered in the same call, and still every state is heard."""
    process = life.run()
    life.agent.leaves(process, -signal.SIGKILL)
    assert life.witness.heard == [(S.RUNNING, S.BACKOFF), (S.BACKOFF, S.STARTING)]
    assert life.witness.details[-2:] == ["killed by SIGKILL"] * 2
    life.agent.report_received({"report": "ready"})
    assert life.witness.heard[2:] == [(S.STARTING, S.RUNNING)]
    assert life.witness.details[-1] == ""


def test_restart_is_heard_state_by_state(life: Life) -> None:
    process = life.run()
    life.agent.restart()
    life.agent.dies(process, 0)
    expected = [(S.RUNNING, S.STOPPING), (S.STOPPING, S.STOPPED), (S.STOPPED, S.STARTING)]
    assert life.witness.heard == expected
    assert len(life.agent.living) == 1


def test_first_start_is_heard_state_by_state(life: Life) -> None:
    life.container.answer = life.container.absent
    life.agent.wanted = True
    life.agent.release()
    assert life.witness.heard == [(S.STOPPED, S.STARTING), (S.STARTING, S.WAITING)]
    assert life.witness.details == ["", "exited"]


def test_killed_agent_is_forked_anew_in_the_same_call(life: Life) -> None:
    first = life.run()
    life.agent.leaves(first, -signal.SIGKILL)
    assert len(life.agent.made) == 2
    assert life.agent.process is life.agent.made[1]
    assert life.deadlines() == 0


def test_neighbour_may_stop_the_agent_from_any_state(life: Life) -> None:
    """The order waits until what is under way is done, and finds the agent as it is then."""
    process = life.run()
    life.witness.on_change = lambda agent: agent.stop() if agent.state is S.BACKOFF else None
    life.agent.leaves(process, -signal.SIGKILL)
    assert life.witness.states == [S.BACKOFF, S.STARTING, S.STOPPING]
    assert life.agent.said(life.agent.made[1]) == ["exit"]
    life.agent.dies(life.agent.made[1], 0)
    assert life.witness.states[3:] == [S.STOPPED]


def test_stop_drains_then_exits_then_kills(life: Life) -> None:
    process = life.run()
    life.agent.stop()
    assert life.agent.said(process) == ["drain"]
    started = life.loop.time
    life.loop.fire()
    assert life.loop.time == started + DRAIN_LIMIT
    assert life.agent.said(process) == ["drain", "exit"]
    life.loop.fire()
    assert life.loop.time == started + DRAIN_LIMIT + EXIT_LIMIT
    assert life.agent.kills() == [True]
    assert life.deadlines() == 0


def test_drained_agent_gets_one_order_to_exit(life: Life) -> None:
    process = life.run()
    life.agent.stop()
    for _ in range(2):
        life.agent.report_received({"report": "drained"})
    assert life.agent.said(process) == ["drain", "exit"]


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.STOPPING, S.WAITING, S.FATAL])
def test_agent_may_say_anything_at_any_time(life: Life, state: State) -> None:
    """It may be compromised: what it says at the wrong time is ignored."""
    process = life.run()
    if state is S.STARTING:
        life.agent.leaves(process, -signal.SIGKILL)
        life.agent.report_received({"report": "drained"})
        life.agent.report_received({"report": "ready"})
    elif state is S.STOPPING:
        life.agent.stop()
    elif state is S.WAITING:
        life.container.answer = None
        life.container.ended()
    elif state is S.FATAL:
        life.agent.refuse("because")
    before = life.agent.state
    for said in ("ready", "drained", "ready", "nonsense"):
        life.agent.report_received({"report": said})
    assert life.agent.state is before


def test_container_end_kills_the_agent_at_once(life: Life) -> None:
    process = life.run()
    life.container.answer = life.container.absent
    life.container.ended()
    assert life.agent.kills() == [True]
    assert life.agent.state is S.WAITING
    life.container.answer = life.container.found
    life.agent.container_may_have_come()
    assert life.agent.made == [process], "two processes of one agent"
    life.agent.dies(process, -signal.SIGKILL)
    assert len(life.agent.made) == 2


def test_refused_agent_keeps_its_reason_when_its_container_ends(life: Life) -> None:
    process = life.run()
    life.agent.refuse("its dead letters are odd")
    assert life.agent.kills() == [True]
    life.container.ended()
    life.agent.dies(process, -signal.SIGKILL)
    assert (life.agent.state, life.agent.detail) == (S.FATAL, "its dead letters are odd")


def test_start_after_a_refusal_waits_for_the_old_process(life: Life) -> None:
    process = life.run()
    life.agent.refuse("because")
    life.agent.start()
    life.agent.leaves(process, -signal.SIGKILL)
    assert (life.agent.state, len(life.agent.made)) == (S.STARTING, 1)
    life.agent.dies(process, -signal.SIGKILL)
    assert (life.agent.state, len(life.agent.made)) == (S.STARTING, 2)


@pytest.mark.parametrize(
    ("code", "state", "detail"),
    [(EXIT_NEVER, S.FATAL, "no such user"), (EXIT_AGAIN, S.STARTING, f"exit code {EXIT_AGAIN}: no such user")],
)
def test_exit_code_means_again_or_never(life: Life, code: int, state: State, detail: str) -> None:
    process = life.run()
    life.agent.report_received({"report": "error", "text": "no such user"})
    life.agent.leaves(process, code)
    assert (life.agent.state, life.agent.detail) == (state, detail)


def test_agent_that_cannot_be_forked_backs_off(life: Life) -> None:
    life.container.answer = life.container.found
    life.agent.cannot_fork = True
    life.agent.wanted = True
    life.agent.release()
    assert life.agent.state is S.BACKOFF
    assert "cannot be forked" in life.agent.detail
    assert life.deadlines() == 1
    assert life.agent.restarts == 0


def test_forbidden_agent_is_never_forked(life: Life) -> None:
    life.container.answer = life.container.found
    life.witness.forbidden = "it would take its own messages"
    life.agent.wanted = True
    life.agent.release()
    assert (life.agent.state, life.agent.detail) == (S.FATAL, "it would take its own messages")
    assert life.agent.made == []


def test_held_agent_starts_when_it_is_released(life: Life) -> None:
    life.container.answer = life.container.found
    life.agent.start()
    life.agent.restart()
    assert life.witness.states == []
    assert life.agent.has_stopped
    life.agent.release()
    assert life.witness.states == [S.STARTING]


def test_stop_where_there_is_no_process_is_done_at_once(life: Life) -> None:
    life.agent.wanted = True
    life.agent.release()
    life.agent.stop()
    assert life.witness.states == [S.STARTING, S.STOPPED]
    assert not life.container.is_asked
