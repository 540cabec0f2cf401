"""When a dead agent is started again, over any history of deaths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.supervisor.lifecycle.restart import BUDGET, FIRST, JITTER, LAST, REFILL, STABLE, RestartPolicy

NOW = 1000.0


def crash(policy: RestartPolicy, now: float = NOW, chance: float = 0.0) -> float:
    """Exit before the agent was ready."""
    return policy.died(now, None, by_signal=False, chance=chance)


def test_restart_is_immediate_then_delays_double_to_the_limit() -> None:
    policy = RestartPolicy()
    delays = [crash(policy) for _ in range(12)]
    assert delays == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])
    assert (FIRST, LAST) == (0.1, 30)


def test_it_never_gives_up() -> None:
    policy = RestartPolicy()
    assert [crash(policy) for _ in range(5000)][-1] == LAST


def test_stable_running_wipes_the_slate() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        crash(policy)
    assert policy.died(NOW, STABLE - 0.01, by_signal=False, chance=0) > 0
    assert policy.died(NOW, STABLE, by_signal=False, chance=0) == 0
    assert crash(policy) == FIRST


def test_a_person_s_start_wipes_the_slate() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        crash(policy)
    policy.forget()
    assert crash(policy) == 0


def test_a_kill_is_not_held_against_an_agent_that_served() -> None:
    policy = RestartPolicy()
    assert [policy.died(NOW + number, 0.5, by_signal=True, chance=1) for number in range(200)] == [0.0] * 200
    assert crash(policy, NOW + 200) == 0


def test_a_kill_before_it_was_ready_counts_as_its_own_death() -> None:
    policy = RestartPolicy()
    assert [policy.died(NOW, None, by_signal=True, chance=0) for _ in range(3)] == [0, FIRST, 2 * FIRST]


def test_an_exit_after_a_short_service_counts_as_its_own_death() -> None:
    policy = RestartPolicy()
    assert [policy.died(NOW, 1.0, by_signal=False, chance=0) for _ in range(3)] == [0, FIRST, 2 * FIRST]


def test_a_host_that_kills_every_agent_is_not_kept_busy_forking() -> None:
    """Kills as fast as the policy lets them come, for ten minutes."""
    policy, now, restarts = RestartPolicy(), NOW, 0
    while now < NOW + 600:
        now += policy.died(now, 0.0, by_signal=True, chance=0) + 0.01  # a start and a death take some time
        restarts += 1
    assert restarts <= 2 * BUDGET + 600 * REFILL


Death = tuple[float, float | None, bool, float, int]
deaths: st.SearchStrategy[Death] = st.tuples(
    st.floats(0, 100), st.one_of(st.none(), st.floats(0, 20)), st.booleans(), st.floats(0, 1), st.integers(0, 9)
)


@given(st.lists(deaths, max_size=60))
def test_a_delay_is_within_limits_and_jitter_shortens_it(
    history: list[Death],
) -> None:
    policy, exact, now = RestartPolicy(), RestartPolicy(), NOW
    for later, served, by_signal, chance, start in history:
        now += later
        delay = policy.died(now, served, by_signal=by_signal, chance=chance)
        longest = exact.died(now, served, by_signal=by_signal, chance=0)
        assert (1 - JITTER) * longest <= delay <= longest <= LAST
        assert longest == 0 or longest >= FIRST
        if start == 0:
            policy.forget()
            exact.forget()


@given(st.lists(deaths, max_size=60))
def test_delays_never_shrink_without_a_stable_run(
    history: list[Death],
) -> None:
    policy, last = RestartPolicy(), 0.0
    for number, (_, served, _, _, _) in enumerate(history):
        delay = policy.died(NOW + number, min(served, 9.9) if served else served, by_signal=False, chance=0)
        assert delay >= last
        last = delay
