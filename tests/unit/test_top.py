"""nsbridgectl top without a terminal and a daemon: rates out of two answers, tables of any width, keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.supervisor.cli.commands.nsbridgectl import TOP_KEYS
from nsbridge.supervisor.cli.top import TopAnswer, look, ordered
from nsbridge.supervisor.cli.topview import View, amount, size, summary, table
from tests.control_fake import agent, flow, process, top_answer

MB = 1 << 20


def answer(clock: float, delivered: int = 0, **facts: float) -> TopAnswer:
    """Return an answer in which orders:web has sent `delivered` messages of 100 bytes to orders:legacy."""
    return top_answer(
        clock,
        (agent("orders:web"), agent("orders:legacy", container="runc:legacy", endpoint="queue")),
        (
            flow("orders:web", "orders:legacy", delivered=delivered, bytes=100 * delivered, pending=3),
            flow("orders:legacy", "orders:web", delivered=delivered // 10, bytes=delivered),
        ),
        {
            "orders:web": process(clock, cpu_s=facts.get("cpu", 0.0), own=2 * MB),
            "orders:legacy": process(clock, own=None),
        },
    )


def test_rates_are_the_changes_between_two_looks() -> None:
    web, legacy = look(answer(10.0, 1000), answer(12.0, 3000, cpu=0.5)).rows
    assert (web.name, web.out, web.in_, web.bytes, web.pending) == ("orders:web", 1000.0, 100.0, 101000.0, 0)
    assert (legacy.out, legacy.in_, legacy.bytes, legacy.pending) == (100.0, 1000.0, 101000.0, 3)
    assert (web.cpu, web.memory, legacy.cpu, legacy.memory) == (25.0, 2 * MB, 0.0, None)


def test_totals_count_each_flow_once() -> None:
    now = look(answer(10.0, 1000), answer(12.0, 3000))
    assert (now.seconds, now.messages, now.bytes, now.pending) == (2.0, 1100.0, 101000.0, 3)


def test_the_first_look_has_no_rates_and_says_so() -> None:
    now = look(None, answer(10.0, 1000))
    assert [(row.out, row.in_, row.bytes, row.cpu) for row in now.rows] == [(None, None, None, None)] * 2
    assert "messages: -/s, - bytes/s, 3 pending" in summary(now)
    _, lines = table(now.rows, 80)
    assert lines[0].split()[:5] == ["orders:web", "RUNNING", "-", "-", "-"]


def test_a_journal_that_was_begun_anew_is_no_negative_rate() -> None:
    assert look(answer(10.0, 1000), answer(11.0, 10)).messages == 0


def test_two_answers_of_one_moment_are_no_division_by_zero() -> None:
    now = look(answer(10.0), answer(10.0))
    assert (now.messages, now.rows[0].cpu) == (None, None)


def test_the_cpu_of_a_process_that_was_replaced_is_not_known_yet() -> None:
    before, after = answer(10.0, cpu=9.0), answer(11.0, cpu=0.1)
    after["processes"]["orders:web"]["pids"] = [4712]
    assert look(before, after).rows[0].cpu is None


def test_an_agent_that_has_come_since_starts_with_nothing_known() -> None:
    before = top_answer(10.0, (), (), {})
    now = look(before, answer(11.0, 1000))
    assert (now.messages, now.rows[0].cpu) == (0, None)


def test_an_agent_without_a_process_is_shown_with_why() -> None:
    waiting = agent("a:b", state="WAITING", detail="container not running since 12:03:10", pid=None)
    (row,) = look(None, top_answer(1.0, (waiting,), (), {})).rows
    assert (row.state, row.cpu, row.memory) == ("WAITING", None, None)
    assert table([row], 120)[1][0].endswith("container not running since 12:03:10")


def test_state_of_a_blocked_agent_is_as_in_status() -> None:
    blocked = agent("a:b", phase="blocked", detail="blocked: queue full")
    (row,) = look(None, top_answer(1.0, (blocked,), (), {})).rows
    assert (row.state, row.phase, row.detail) == ("RUNNING", "blocked", "blocked: queue full")
    assert row.is_in_trouble


# -- order


def _named(key: str, *, turned: bool = False) -> list[str]:
    rows = look(
        None,
        top_answer(
            1.0,
            (agent("c:c"), agent("a:a", state="WAITING"), agent("b:b")),
            (flow("a:a", "b:b", pending=5), flow("c:c", "a:a", pending=1)),
            {"a:a": process(1.0, own=1), "b:b": process(1.0, own=3), "c:c": process(1.0, own=2)},
        ),
    ).rows
    return [row.name[0] for row in ordered(rows, key, turned=turned)]


def test_the_most_comes_first_and_names_begin_with_a() -> None:
    assert _named("name") == ["a", "b", "c"]
    assert _named("name", turned=True) == ["c", "b", "a"]
    assert _named("memory") == ["b", "c", "a"]
    assert _named("memory", turned=True) == ["a", "c", "b"]
    assert _named("pending") == ["b", "a", "c"]
    assert _named("state") == ["a", "b", "c"]


def test_what_is_not_known_and_what_is_equal_goes_by_name() -> None:
    for key in ("rate", "bytes", "cpu"):
        assert _named(key) == ["a", "b", "c"]


# -- text


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (0.04, "0.0"),
        (1.5, "1.5"),
        (9.94, "9.9"),
        (9.96, "10"),
        (999, "999"),
        (999.6, "1.0k"),
        (1234, "1.2k"),
        (99_950, "100k"),
        (1_234_567, "1.2M"),
        (1e15, "1000T"),
    ],
)
def test_an_amount_has_three_digits_that_count(number: float | None, shown: str) -> None:
    assert amount(number) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1.0K"), (1536, "1.5K"), (10 * MB, "10M"), (1 << 40, "1.0T")],
)
def test_a_size_goes_by_1024(number: float | None, shown: str) -> None:
    assert size(number) == shown


@given(st.floats(0, 1e14))
def test_no_number_is_wider_than_its_column(number: float) -> None:
    assert len(amount(number)) <= 5
    assert len(size(number)) <= 5


@given(st.integers(12, 300), st.text(min_size=1, max_size=60), st.text(max_size=100))
def test_a_table_fits_whatever_the_width_and_the_names(width: int, name: str, detail: str) -> None:
    rows = look(None, top_answer(1.0, (agent(name, detail=detail),), (), {})).rows
    heading, lines = table(rows, width)
    assert len(heading) <= width
    assert all(len(line) <= width and line.isprintable() for line in lines)


def test_in_80_columns_there_is_everything_but_the_notes() -> None:
    heading, lines = table(look(answer(1.0), answer(2.0, 1000)).rows, 79)
    assert heading.split() == ["NAME", "STATE", "OUT/S", "IN/S", "BYTES/S", "PENDING", "CPU%", "MEM"]
    assert lines[0].split()[:8] == ["orders:web", "RUNNING", "1.0k", "100", "99K", "0", "0", "2.0M"]


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (60, ["NAME", "STATE", "OUT/S", "IN/S", "PENDING", "CPU%", "MEM"]),
        (40, ["NAME", "STATE", "OUT/S", "IN/S"]),
        (20, ["NAME"]),
    ],
)
def test_a_narrow_terminal_costs_the_columns_that_matter_least(width: int, titles: list[str]) -> None:
    assert table(look(answer(1.0), answer(2.0)).rows, width)[0].split() == titles


def test_a_wide_terminal_says_where_an_agent_is() -> None:
    assert table(look(None, answer(1.0)).rows, 120)[1][1].endswith("  runc:legacy queue")


# -- reasons

LONG = "blocked: no queue 0x4d2 and 0x4d3 in docker:legacy: is the key right, has the program started? (create = true)"


def _frame(*agents: dict[str, Any], height: int = 24) -> list[str]:
    view = View("name")
    view.look = look(None, top_answer(1.0, agents, (), {}))
    return view.frame(79, height)[0]


def test_full_reasons_stand_below_the_table_in_80_columns() -> None:
    lines = _frame(
        agent("orders:legacy", phase="blocked", detail=LONG),
        agent("orders:web", detail="runs without landlock"),
        agent("z:z", state="WAITING", detail="container not running"),
    )
    assert len(lines) == 24
    assert lines[4].startswith("orders:legacy RUNNING")
    assert lines[7] == ""
    assert " ".join(line.strip() for line in lines[8:12]) == (
        f"orders:legacy: {LONG} z:z: container not running orders:web: runs without landlock"
    )


def test_reasons_get_a_third_of_a_full_table() -> None:
    lines = _frame(*(agent(f"r{number:02}:a", phase="blocked", detail="blocked: queue full") for number in range(50)))
    assert lines[-8:-2] == ["", *(f"r0{number}:a: blocked: queue full" for number in range(4)), (
        "and 46 more with a reason: nsbridgectl status"
    )]  # fmt: skip
    assert lines[-9].startswith("r11:a")


def test_legend_says_what_the_keys_do() -> None:
    assert _frame(agent("a:b"))[-2:] == [
        "sort: [N]AME [r]ate [b]ytes [p]ending [c]pu [m]emory [s]tate, again to reverse",
        "[q]uit, [space] refreshes at once, arrows scroll",
    ]


# -- keys


def _view(agents: int = 30, height: int = 24) -> View:
    view = View("name")
    names = tuple(agent(f"r{number:02}:a") for number in range(agents))
    view.look = look(None, top_answer(1.0, names, (), {}))
    view.frame(79, height)
    return view


def _first(view: View, height: int = 24) -> str:
    lines, heading = view.frame(79, height)
    return lines[heading + 1].split()[0]


def test_every_sort_key_is_unique_and_its_repetition_reverses() -> None:
    assert len({word[0] for word in TOP_KEYS}) == len(TOP_KEYS)
    view = _view()
    for word in TOP_KEYS:
        view.press(word[0])
        assert f"[{word[0]}]{word[1:]}".upper() in view.frame(79, 24)[0][-2]
    view.press("n")
    assert (view.sort, _first(view)) == ("name", "r00:a")
    view.press("n")
    assert _first(view) == "r29:a"
    view.press("n")
    assert _first(view) == "r00:a"


def test_scrolling_ends_where_the_agents_end() -> None:
    view = _view()
    view.press("down")
    assert _first(view) == "r01:a"
    view.press("page down")
    view.press("page down")
    assert _first(view) == "r12:a"  # 18 rows of 30 agents: the last is at the bottom
    view.press("page up")
    view.press("page up")
    assert _first(view) == "r00:a"
    for _ in range(50):
        view.press("down")
    assert _first(view) == "r12:a"
    view.press("home")
    assert _first(view) == "r00:a"


def test_a_key_that_means_nothing_does_nothing() -> None:
    view = _view()
    before = view.frame(79, 24)
    view.press("x")
    assert view.frame(79, 24) == before


@pytest.mark.parametrize("height", [1, 2, 5, 9, 24, 100])
@pytest.mark.parametrize("width", [1, 10, 79, 300])
def test_a_frame_fits_any_terminal(width: int, height: int) -> None:
    view = _view()
    lines, heading = view.frame(width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert lines[heading].startswith("NAME"[: width - 1])


def test_before_the_first_answer_a_frame_says_so() -> None:
    assert View("rate").frame(79, 24) == (["asking the daemon"], -1)


def test_the_summary_counts_states_with_those_that_run_first() -> None:
    agents = (agent("a:a", state="WAITING"), agent("b:b"), agent("c:c"), agent("d:d", phase="blocked"))
    lines = summary(look(None, top_answer(1.0, agents, (), {})))
    assert lines[0] == "nsbridged 0.2.0, pid 1, up 0:00:01, memory 10M"
    assert lines[1] == "agents: 3 RUNNING, 1 WAITING (1 blocked); CPU - %, memory 0"
