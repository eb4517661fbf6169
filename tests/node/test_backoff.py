"""When to try again, and when a silent connection is dead."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.node.backoff import CAP, FIRST, MISSED, STEADY, SUSPICION, Backoff, Liveness


def test_bounds_double_up_to_the_cap() -> None:
    backoff = Backoff(lambda _low, high: high)
    assert [backoff.next() for _ in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_jitter_is_full() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    assert Backoff(uniform).next() == 0.0
    assert asked == [(0.0, FIRST)]


def test_only_a_connection_that_lasted_starts_it_over() -> None:
    backoff = Backoff(lambda _low, high: high)
    for _ in range(5):
        backoff.next()
    backoff.lasted(STEADY - 0.1)
    assert backoff.next() == CAP
    backoff.lasted(STEADY)
    assert backoff.next() == FIRST


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_never_longer_than_the_cap(lasted: list[float]) -> None:
    backoff = Backoff(lambda _low, high: high)
    for seconds in lasted:
        assert 0 < backoff.next() <= CAP
        backoff.lasted(seconds)


def test_pings_at_once_and_then_at_each_heartbeat() -> None:
    liveness = Liveness(15.0, 100.0)
    assert liveness.ping_due(100.0)
    assert not liveness.ping_due(114.9)
    assert liveness.next_timeout() == 115.0
    assert liveness.ping_due(115.0)


def test_three_silent_heartbeats_are_death() -> None:
    liveness = Liveness(15.0, 0.0)
    assert not liveness.dead(MISSED * 15.0 - 0.1)
    assert liveness.dead(MISSED * 15.0)
    liveness.received(44.0)
    assert not liveness.dead(88.9)
    assert liveness.dead(89.0)


def test_after_a_link_change_it_asks_at_once_and_waits_less() -> None:
    liveness = Liveness(15.0, 0.0)
    liveness.ping_due(0.0)
    liveness.suspect(5.0)
    assert liveness.ping_due(5.0)
    assert liveness.next_timeout() == 5.0 + SUSPICION
    assert liveness.dead(5.0 + SUSPICION)
    liveness.received(6.0)
    assert not liveness.dead(45.0)


def test_suspicion_does_not_grant_more_time() -> None:
    liveness = Liveness(1.0, 0.0)
    liveness.suspect(2.9)
    assert liveness.dead(3.0)
