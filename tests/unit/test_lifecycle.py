"""The table of an agent's life: the whole product of states, events and facts, and its picture in docs.

`python tests/unit/test_lifecycle.py > docs/lifecycle.md` draws the picture anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from nsbridge.supervisor.lifecycle.table import (
    GUARDS,
    ROWS,
    TABLE,
    Action,
    Event,
    Facts,
    Guard,
    Row,
    Stage,
    State,
    UnexpectedEventError,
    detail,
    step,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"
A, E, S = Action, Event, State
FACTS = [Facts(*facts) for facts in product((False, True), Stage, (False, True))]
KILLED = {S.WAITING, S.FATAL}  # in which the process is killed, and perhaps not reaped yet
WITH_A_PROCESS = {S.STARTING, S.RUNNING, S.STOPPING} | KILLED


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_each_pair_has_a_step_for_all_facts_or_raises(state: State, event: Event) -> None:
    for facts in FACTS:
        if (state, event) in TABLE:
            following, actions = step(state, event, facts)
            assert following in State
            assert set(actions) <= set(Action)
        else:
            with pytest.raises(UnexpectedEventError, match=f"{event} in state {state}"):
                step(state, event, facts)


def test_each_row_counts_for_some_facts() -> None:
    """A row behind one that always holds would be dead; the last row of a pair holds always."""
    for rows in TABLE.values():
        guards = [guard for _, _, guard, _, _ in rows]
        assert guards.count(Guard.ALWAYS) == 1
        assert guards[-1] is Guard.ALWAYS
        assert len(set(guards)) == len(guards)


def test_rows_of_a_state_stand_together_in_order_of_events() -> None:
    order = [(list(State).index(state), list(Event).index(event)) for state, event, *_ in ROWS]
    assert order == sorted(order)


def test_each_guard_holds_and_fails_for_some_facts() -> None:
    for guard, holds in GUARDS.items():
        assert {holds(facts) for facts in FACTS} == ({True} if guard is Guard.ALWAYS else {False, True})
    assert set(GUARDS) == set(Guard)


def rows_with(event: Event) -> Iterator[Row]:
    return (row for row in ROWS if row[1] is event)


def states_with(event: Event) -> set[State]:
    return {state for state, *_ in rows_with(event)}


def test_what_a_person_asks_is_never_unexpected() -> None:
    assert states_with(E.START) == states_with(E.STOP) == set(State)


def test_stop_leads_to_a_stop_from_everywhere() -> None:
    assert {following for *_, following, _ in rows_with(E.STOP)} == {S.STOPPING, S.STOPPED}


def test_each_way_into_stopped_asks_whether_to_start_again() -> None:
    for state, event, _, following, actions in ROWS:
        if following is S.STOPPED is not state:
            assert actions[-2:] == (A.FINISH, A.RESUME), (state, event)


def test_agent_is_forked_only_when_its_container_is_found() -> None:
    assert all(following is S.STARTING and actions == (A.SPAWN,) for *_, following, actions in rows_with(E.FOUND))
    assert {event for _, event, _, _, actions in ROWS if A.SPAWN in actions} == {E.FOUND}


def test_agent_runs_only_after_it_has_reported_ready() -> None:
    entered = [(state, event) for state, event, _, following, _ in ROWS if following is S.RUNNING != state]
    assert entered == [(S.STARTING, E.READY)]


@pytest.mark.parametrize("event", [E.LEFT, E.DIED, E.READY, E.DRAINED])
def test_process_may_say_or_do_all_wherever_it_may_live(event: Event) -> None:
    assert states_with(event) == WITH_A_PROCESS


def test_container_end_is_expected_in_each_state() -> None:
    """The supervisor holds the container from the first look on, whatever becomes of the agent."""
    assert states_with(E.GONE) == set(State)


def test_container_end_kills_the_process_that_may_be_inside() -> None:
    assert {row[0] for row in rows_with(E.GONE) if A.KILL in row[4]} == {S.STARTING, S.RUNNING, S.STOPPING}


def test_each_wait_has_a_deadline() -> None:
    for state, event, _, following, actions in ROWS:
        if following is S.BACKOFF:
            assert A.BACK_OFF in actions, (state, event)
        if following is S.WAITING != state:
            assert A.LOOK in actions, (state, event)
    assert states_with(E.DUE) == {S.BACKOFF, S.WAITING, S.STOPPING}


def test_fatal_is_left_only_by_a_person() -> None:
    assert {event for state, event, _, following, _ in ROWS if state is S.FATAL != following} == {E.START, E.STOP}


def test_each_way_into_fatal_is_reported() -> None:
    assert all(A.REPORT in actions for state, _, _, following, actions in ROWS if following is S.FATAL != state)


@pytest.mark.parametrize("goal", [S.RUNNING, S.STOPPED])
@pytest.mark.parametrize("start", list(State))
def test_there_is_a_way_from_everywhere(start: State, goal: State) -> None:
    reached = {start}
    while more := {following for state, _, _, following, _ in ROWS if state in reached} - reached:
        reached |= more
    assert goal in reached


@pytest.mark.parametrize(
    ("before", "event", "after", "expected"),
    [
        (S.STARTING, E.READY, S.RUNNING, ""),
        (S.STOPPING, E.DIED, S.STOPPED, ""),
        (S.RUNNING, E.DIED, S.BACKOFF, "new"),
        (S.BACKOFF, E.DUE, S.STARTING, "old"),
        (S.RUNNING, E.STOP, S.STOPPING, "old"),
        (S.WAITING, E.ABSENT, S.WAITING, "new"),
        (S.WAITING, E.DIED, S.WAITING, "old"),
        (S.FATAL, E.GONE, S.FATAL, "old"),
        (S.WAITING, E.REFUSED, S.FATAL, "new"),
    ],
)
def test_detail_is_the_reason_of_the_state(before: State, event: Event, after: State, expected: str) -> None:
    assert detail(before, event, after, "old", "new") == expected


# -- the picture


def drawn() -> str:
    """Return docs/lifecycle.md, drawn from ROWS."""
    lines = ["stateDiagram-v2", "    [*] --> STOPPED"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, event, guard, following, _ in ROWS:
        if following is not state:
            label = f"{event} [{guard}]" if guard else str(event)
            labels = arrows.setdefault((state, following), [])
            labels[:] = [*(other for other in labels if guard or not other.startswith(f"{event} [")), label]
    lines += [f"    {state} --> {following}: {', '.join(labels)}" for (state, following), labels in arrows.items()]
    return "\n".join([_HEAD, "```mermaid", *lines, "```", "", _TABLE_HEAD, *(_section(state) for state in State)])


def _section(state: State) -> str:
    lines = [f"## {state}", "", "| event | if | then | actions |", "|---|---|---|---|"]
    changes = {row[1] for row in ROWS if row[0] is state and (row[3] is not state or row[4])}
    for row_state, event, guard, following, actions in ROWS:
        if row_state is state and event in changes:
            cells = (event, guard, "" if following is state else following, ", ".join(actions))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    ignored = [event for event in Event if (state, event) in TABLE and event not in changes]
    never = [event for event in Event if (state, event) not in TABLE]
    if ignored:
        lines += ["", f"Ignored: {', '.join(ignored)}."]
    if never:
        lines += ["", f"Cannot happen: {', '.join(never)}."]
    return "\n".join([*lines, ""])


_HEAD = """# The life of an agent

Drawn from `ROWS` in supervisor/lifecycle/table.py by `python tests/unit/test_lifecycle.py > docs/lifecycle.md`; a test
compares. An arrow says which events lead from one state to the next, and in brackets on which condition. The comments
in that file explain each event, condition and action.
"""
_TABLE_HEAD = """The tables list, for each state, what follows an event and what is done. The first row whose
condition holds counts. An empty cell under *then* means that the state remains. An event that cannot happen raises an
error if it does nevertheless.

Events are queued and served one at a time. An event that follows from an action goes before events that others ask for.
"""


def test_the_picture_in_docs_is_the_table() -> None:
    assert DOCUMENT.read_text() == drawn()


if __name__ == "__main__":
    print(drawn(), end="")
