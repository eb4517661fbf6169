from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.path.budget import Budget


def test_burst_then_rate() -> None:
    budget = Budget(rate=2.0, burst=3.0)
    assert [budget.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(100.4)
    assert budget.take(100.5)
    assert [budget.take(1000.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0.0, 3.0), max_size=100), st.floats(0.0, 1e7))
def test_never_more_than_burst_and_rate_and_the_promise_is_kept(pauses: list[float], start: float) -> None:
    budget = Budget(rate=4.0, burst=5.0)
    now, taken = start, 0
    for pause in pauses:
        now += pause
        while budget.take(now):
            taken += 1
        assert taken <= 5 + 4.0 * (now - start) + 1e-6
        promised = budget.available_at(now)
        assert now < promised <= now + 0.26
        now = promised
        assert budget.take(now)
        taken += 1


def test_time_that_goes_back_gives_nothing() -> None:
    budget = Budget(rate=1.0, burst=1.0)
    assert budget.take(10.0)
    assert not budget.take(5.0)
    assert budget.available_at(5.0) > 5.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 1000)), max_size=100), st.floats(10.0, 1e8))
def test_costs_are_bounded_in_every_interval_and_the_promise_is_kept(
    steps: list[tuple[float, int]], rate: float
) -> None:
    budget, now = Budget(rate, burst=1000.0), 1e5
    taken: list[tuple[float, int]] = []
    for pause, cost in steps:
        now += pause
        if not budget.take(now, cost):
            promised = budget.available_at(now, cost)
            assert promised > now
            now = promised
            assert budget.take(now, cost)
        taken.append((now, cost))
    for first in range(len(taken)):
        spent = 0
        for when, cost in taken[first:]:
            spent += cost
            assert spent <= 1000 + rate * (when - taken[first][0] + 1e-9) + 1e-3
