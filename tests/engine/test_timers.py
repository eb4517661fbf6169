from hypothesis import given
from hypothesis import strategies as st

from overlay.engine.timers import Timers


class Waiting:
    def __init__(self) -> None:
        self.armed: float | None = None


def test_the_earliest_comes_first_and_moving_later_costs_nothing() -> None:
    timers, one, other = Timers(), Waiting(), Waiting()
    timers.arm(one, 5.0)
    timers.arm(other, 3.0)
    timers.arm(other, 9.0)
    assert len(timers) == 2
    assert timers.next() == 3.0
    assert timers.due(2.9) == []
    assert timers.due(5.0) == [other, one]
    assert timers.next() is None


def test_moving_earlier_counts_and_the_old_entry_is_nothing() -> None:
    timers, one = Timers(), Waiting()
    timers.arm(one, 5.0)
    timers.arm(one, 1.0)
    assert timers.due(1.0) == [one]
    assert timers.due(9.0) == []


def test_who_has_no_deadline_does_not_come_up() -> None:
    timers, one = Timers(), Waiting()
    timers.arm(one, None)
    assert timers.next() is None
    assert timers.due(10.0) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 100)), max_size=60))
def test_nobody_is_woken_after_his_earliest_deadline(armings: list[tuple[int, float]]) -> None:
    timers = Timers()
    waiters = [Waiting() for _ in range(5)]
    earliest: dict[int, float] = {}
    for index, deadline in armings:
        timers.arm(waiters[index], deadline)
        earliest[index] = min(deadline, earliest.get(index, deadline))
    woken: dict[int, float] = {}
    while (now := timers.next()) is not None:
        for waiter in timers.due(now):
            index = next(position for position, known in enumerate(waiters) if known is waiter)
            assert index not in woken
            woken[index] = now
    assert woken == earliest
