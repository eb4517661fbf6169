import pytest

from overlay.testing import VirtualClock


class Ticker:
    """Wants to be called every `period` s; `times` when it was."""

    def __init__(self, clock: VirtualClock, period: float) -> None:
        self.period = period
        self.due: float | None = clock.now + period
        self.times: list[float] = []

    def next_timeout(self) -> float | None:
        return self.due

    def handle_timeout(self, now: float) -> None:
        self.times.append(now)
        self.due = now + self.period


def test_actions_run_in_order_of_time_then_of_asking() -> None:
    clock = VirtualClock(100.0)
    seen: list[tuple[str, float]] = []
    for name, when in (("late", 103.0), ("first", 101.0), ("second", 101.0), ("past", 5.0)):
        clock.at(when, lambda name=name: seen.append((name, clock.now)))  # type: ignore[misc]
    clock.advance(2.0)
    assert seen == [("past", 100.0), ("first", 101.0), ("second", 101.0)]
    assert clock.now == 102.0
    assert clock.next_due() == 103.0


def test_an_action_may_ask_for_another_at_once() -> None:
    clock = VirtualClock()
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            clock.at(clock.now, again)

    clock.at(clock.now, again)
    clock.advance(0.0)
    assert seen == [0, 1, 2]


def test_a_machine_is_called_when_it_asks_and_drained_after() -> None:
    clock = VirtualClock(0.0)
    ticker = Ticker(clock, 2.0)
    drained: list[float] = []
    clock.watch(ticker, lambda: drained.append(clock.now))
    clock.advance(7.0)
    assert ticker.times == drained == [2.0, 4.0, 6.0]
    ticker.due = None
    assert clock.next_due() is None


def test_run_until_stops_at_the_change() -> None:
    clock = VirtualClock(0.0)
    ticker = Ticker(clock, 1.0)
    clock.watch(ticker, lambda: None)
    assert clock.run_until(lambda: len(ticker.times) == 3, within=10.0)
    assert clock.now == 3.0
    assert not clock.run_until(lambda: False, within=1.5)
    assert clock.now == 4.5
    ticker.due = None
    assert not clock.run_until(lambda: False, within=1.0)
    assert clock.now == 5.5


def test_a_machine_that_holds_time_up_is_found() -> None:
    clock = VirtualClock()
    stuck = Ticker(clock, 0.0)
    clock.watch(stuck, lambda: None)
    with pytest.raises(AssertionError, match="time does not move"):
        clock.advance(1.0)
