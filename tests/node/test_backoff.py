"""When to try again, and when a silent connection is dead."""

import heapq
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.limits import DEFAULT_LIMITS, Door, Visit
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


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_nodes_that_come_back_at_once_are_served_in_order(seed: int) -> None:
    """In virtual time, against the server's real door: it is never asked for more than it takes, and nobody is left."""
    draw = random.Random(seed)
    door = Door(replace(DEFAULT_LIMITS, handshakes_per_second=200.0))  # a fifth of the nodes: they have to wait
    nodes = [Backoff(draw.uniform) for _ in range(1000)]
    events = [(node.next(), number, "dial") for number, node in enumerate(nodes)]
    heapq.heapify(events)
    served: dict[int, float] = {}
    visits: dict[int, Visit] = {}
    tries = 0
    while events:
        now, number, what = heapq.heappop(events)
        if what == "welcome":
            visits.pop(number).leave()
            served[number] = now
            continue
        tries += 1
        visit = door.enter(f"10.1.{number // 250}.{number % 250}", now)
        if isinstance(visit, str):
            heapq.heappush(events, (now + nodes[number].next(), number, "dial"))
        else:
            visits[number] = visit
            heapq.heappush(events, (now + 0.05, number, "welcome"))  # its handshake, and the registry's answer
    assert len(served) == 1000
    assert max(served.values()) < 20.0  # at 200 handshakes a second the fastest would be 3
    assert tries < 10_000
    assert max(sum(int(each) == second for each in served.values()) for second in range(20)) <= 700
