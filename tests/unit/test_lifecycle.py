"""The table of an agent's life: every pair of state and event, what the driver may feed it, and its picture in docs.

`python tests/unit/test_lifecycle.py > docs/lifecycle.md` draws the picture anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nsbridge.supervisor.lifecycle.table import TABLE, Action, Event, State, UnexpectedEventError, step

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"
A, E, S = Action, Event, State
KILLED = {S.WAITING, S.FATAL}  # in which the process is killed, and perhaps not reaped yet
WITH_A_PROCESS = {S.STARTING, S.RUNNING, S.STOPPING} | KILLED


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_a_pair_is_in_the_table_or_raises(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        following, actions = step(state, event)
        assert following in State
        assert set(actions) <= set(Action)
    else:
        with pytest.raises(UnexpectedEventError, match=f"{event} in state {state}"):
            step(state, event)


def pairs(event: Event) -> Iterator[tuple[State, State, tuple[Action, ...]]]:
    return ((state, *TABLE[state, event]) for state in State if (state, event) in TABLE)


def states_with(event: Event) -> set[State]:
    return {state for state, _, _ in pairs(event)}


def test_what_a_person_asks_is_never_unexpected() -> None:
    assert states_with(E.START) == states_with(E.STOP) == set(State)


def test_stop_leads_to_a_stop_from_everywhere() -> None:
    assert {following for _, following, _ in pairs(E.STOP)} == {S.STOPPING, S.STOPPED}
    assert all(A.DRAIN in actions for state, _, actions in pairs(E.STOP) if state in WITH_A_PROCESS - {S.STOPPING})


def test_start_looks_for_the_container_when_idle() -> None:
    at_rest = {S.STOPPED, S.BACKOFF, S.FATAL}
    assert {state for state, following, _ in pairs(E.START) if following is S.STARTING} == at_rest | {S.STARTING}
    assert {state for state, _, actions in pairs(E.START) if A.LOCATE in actions} == at_rest | {S.WAITING}


def test_a_process_is_made_only_when_the_container_was_found() -> None:
    assert all(following is S.STARTING and actions == (A.SPAWN,) for _, following, actions in pairs(E.FOUND))
    assert all(event is E.FOUND for (_, event), (_, actions) in TABLE.items() if A.SPAWN in actions)


def test_an_agent_runs_only_after_it_reports_ready() -> None:
    entered = [(state, event) for (state, event), (following, _) in TABLE.items() if following is S.RUNNING != state]
    assert entered == [(S.STARTING, E.READY)]


def test_a_death_is_expected_wherever_a_process_may_live() -> None:
    assert states_with(E.DIED) == WITH_A_PROCESS
    assert states_with(E.DIED) <= states_with(E.REFUSED)  # it may also exit with EXIT_NEVER


def test_a_container_s_end_is_expected_wherever_it_may_be_held() -> None:
    """The supervisor holds it from the first look on, whatever becomes of the agent."""
    assert states_with(E.GONE) == set(State) - {S.STOPPED}


def test_a_container_s_end_kills_the_process_that_may_be_inside() -> None:
    killing = {state for state, _, actions in pairs(E.GONE) if A.KILL in actions}
    assert killing == {S.STARTING, S.RUNNING, S.STOPPING}


def test_every_wait_has_a_deadline() -> None:
    for (state, event), (following, actions) in TABLE.items():
        if following is S.BACKOFF:
            assert A.RETRY in actions, (state, event)
        if following is S.WAITING != state:
            assert A.LOOK in actions, (state, event)
    assert states_with(E.DUE) == {S.STARTING, S.BACKOFF, S.WAITING, S.STOPPING}


def test_what_only_a_person_can_fix_waits_for_a_person() -> None:
    leaving = {event for (state, event), (following, _) in TABLE.items() if state is S.FATAL != following}
    assert leaving == {E.START, E.STOP}


@pytest.mark.parametrize("goal", [S.RUNNING, S.STOPPED])
@pytest.mark.parametrize("start", list(State))
def test_there_is_a_way_from_everywhere(start: State, goal: State) -> None:
    reached = {start}
    while True:
        more = {following for (state, _), (following, _) in TABLE.items() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert goal in reached


class Driver(RuleBasedStateMachine):
    """Does what agent.py and attachment.py do, without processes and time: only what can happen does happen."""

    def __init__(self) -> None:
        super().__init__()
        self.state = S.STOPPED
        self.process = ""  # "", "entering", "ready" or "killed"
        self.told_to_exit = False
        self.asked = False  # an answer about the container will come
        self.held = False  # the container's pidfd
        self.timer = ""  # "", "due" or "exit"
        self.wanted = False

    def feed(self, event: Event) -> None:
        before = self.state
        self.state, actions = step(self.state, event)
        if self.state is not before:
            self.timer = ""
        for action in actions:
            getattr(self, f"do_{action}")()
        if self.state is S.STOPPED and before is not S.STOPPED:
            self.asked = False
            if self.wanted:
                self.feed(E.START)

    def do_locate(self) -> None:
        self.timer = ""
        if self.process:
            self.timer = "due"
        else:
            self.asked = True

    def do_spawn(self) -> None:
        assert not self.process, "two processes of one agent"
        self.process, self.told_to_exit = "entering", False

    def do_drain(self) -> None:
        if not self.process:
            self.feed(E.DIED)
        elif self.process == "entering":
            self.exit()
        else:
            self.timer = "exit"

    def exit(self) -> None:
        if self.process and not self.told_to_exit:
            self.told_to_exit = True
            self.timer = "due"

    def do_kill(self) -> None:
        if self.process:
            self.process = "killed"

    def do_retry(self) -> None:
        self.timer = "due"

    def do_look(self) -> None:
        self.timer = "due"

    @rule()
    def somebody_starts_it(self) -> None:
        self.wanted = True
        self.feed(E.START)

    @rule()
    def somebody_stops_it(self) -> None:
        self.wanted = False
        self.feed(E.STOP)

    @rule()
    def somebody_restarts_it(self) -> None:
        self.feed(E.STOP)
        self.wanted = True
        if self.state is S.STOPPED:
            self.feed(E.START)

    @precondition(lambda self: self.asked)
    @rule(answer=st.sampled_from([E.FOUND, E.ABSENT, E.REFUSED]), held=st.booleans())
    def the_look_ends(self, answer: Event, held: bool) -> None:
        """End the look: an ABSENT or REFUSED container may be held nevertheless, until its pidfd is served."""
        self.asked, self.held = False, held or (self.held and answer is not E.FOUND)
        self.feed(answer)

    @precondition(lambda self: self.process == "entering")
    @rule()
    def the_agent_is_ready(self) -> None:
        self.process = "ready"
        if self.state in (S.STARTING, S.STOPPING):
            self.feed(E.READY)

    @precondition(lambda self: self.process)
    @rule(event=st.sampled_from([E.DIED, E.REFUSED]))
    def the_agent_ends(self, event: Event) -> None:
        self.process = ""
        self.feed(event)

    @precondition(lambda self: self.state is S.RUNNING)
    @rule()
    def the_agent_is_wedged(self) -> None:
        self.process = "killed"

    @precondition(lambda self: self.process and self.state in (S.STARTING, S.RUNNING))
    @rule()
    def the_agent_is_refused(self) -> None:
        """Refuse the agent for its messages or its files; the kernel may take long to end it."""
        self.process = "killed"
        self.feed(E.REFUSED)

    @precondition(lambda self: self.held)
    @rule()
    def the_container_ends(self) -> None:
        self.held = False
        if self.state is not S.STOPPED:
            self.feed(E.GONE)

    @precondition(lambda self: self.timer)
    @rule()
    def the_deadline_comes(self) -> None:
        timer, self.timer = self.timer, ""
        if timer == "exit":
            self.exit()
        else:
            self.feed(E.DUE)

    @invariant()
    def a_process_lives_only_where_its_death_is_expected(self) -> None:
        assert not self.process or self.state in WITH_A_PROCESS
        assert self.process or self.state is not S.RUNNING

    @invariant()
    def something_will_happen_unless_it_runs_or_a_person_is_asked(self) -> None:
        if self.state is S.STARTING:
            assert self.asked or self.process
        elif self.state is S.STOPPING:
            assert self.timer or self.process == "killed", "an agent that is wedged while it stops is never killed"
        elif self.state in (S.BACKOFF, S.WAITING):
            assert self.timer or self.asked


TestDriver = Driver.TestCase
TestDriver.settings = settings(max_examples=300, stateful_step_count=30)


# -- the picture


def drawn() -> str:
    """Return docs/lifecycle.md, drawn from TABLE."""
    lines = ["stateDiagram-v2", "    [*] --> STOPPED"]
    for (state, event), (following, actions) in TABLE.items():
        if following is not state or actions:
            does = f" / {', '.join(actions)}" if actions else ""
            lines.append(f"    {state} --> {following}: {event}{does}")
    rows = ["| | " + " | ".join(f"**{event}**" for event in Event) + " |", "|---" * (len(Event) + 1) + "|"]
    for state in State:
        cells = [_cell(state, event) for event in Event]
        rows.append(f"| **{state}** | {' | '.join(cells)} |")
    return "\n".join([_HEAD, "```mermaid", *lines, "```", "", _TABLE_HEAD, *rows, ""])


def _cell(state: State, event: Event) -> str:
    if (state, event) not in TABLE:
        return "-"
    following, actions = TABLE[state, event]
    where = "same" if following is state else following
    return f"{where}: {', '.join(actions)}" if actions else str(where)


_HEAD = """# The life of an agent

Drawn from `TABLE` in supervisor/lifecycle/table.py by `python tests/unit/test_lifecycle.py > docs/lifecycle.md`; a test
compares. An arrow says *event / actions*; what an event or an action means stands beside its name in that file. Events
that change nothing are in the table below only.
"""
_TABLE_HEAD = """Each pair of state and event: what follows and what is done. A pair marked - cannot happen; if it does
nevertheless, that is a bug in lifecycle/agent.py and raises.
"""


def test_the_picture_in_docs_is_the_table() -> None:
    assert DOCUMENT.read_text() == drawn()


if __name__ == "__main__":
    print(drawn(), end="")
