"""Who is let in: counts and rates, in numbers alone."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.limits import BURST, Door, Limits, Visit, network_of

PLENTY = 1e9


def test_strangers_are_counted_together_and_by_address() -> None:
    door = Door(Limits(strangers=3, strangers_per_address=2))
    first = door.enter("192.0.2.1", 0.0)
    assert isinstance(first, Visit)
    assert isinstance(door.enter("192.0.2.1", 0.0), Visit)
    assert door.enter("192.0.2.1", 0.0) == "too_many_from_address"
    assert isinstance(door.enter("192.0.2.2", 0.0), Visit)
    assert door.enter("192.0.2.3", 0.0) == "too_many_strangers"
    first.leave()
    first.leave()
    assert door.strangers == 2
    assert isinstance(door.enter("192.0.2.3", 0.0), Visit)
    assert door.enter("192.0.2.4", 0.0) == "too_many_strangers"


def test_an_ipv6_host_counts_with_all_the_addresses_it_can_pick() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::") == "2001:db8:1:2::"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("192.0.2.1") == "192.0.2.1"


def test_the_rate_of_an_address_is_held() -> None:
    door = Door(
        Limits(strangers=10**6, strangers_per_address=10**6, handshakes_per_address=10, handshakes_per_second=PLENTY)
    )
    let_in = 0
    for step in range(1000):  # 100 a second for ten seconds
        let_in += isinstance(door.enter("192.0.2.1", step / 100), Visit)
    assert abs(let_in - 10 * (10 + BURST)) <= 2
    assert "handshake_rate_of_address" in [door.enter("192.0.2.1", 10.0) for _ in range(2)]
    assert isinstance(door.enter("192.0.2.2", 10.0), Visit)
    assert isinstance(door.enter("192.0.2.1", 20.0), Visit)


def test_the_rate_of_all_together_is_held() -> None:
    door = Door(Limits(strangers=10**6, handshakes_per_second=10))
    refusals = [door.enter(f"10.0.{number // 250}.{number % 250 + 1}", 0.0) for number in range(1000)]
    assert abs(sum(isinstance(outcome, Visit) for outcome in refusals) - 10 * BURST) <= 1
    assert refusals[-1] == "handshake_rate"


def test_the_table_of_addresses_does_not_grow_without_end() -> None:
    door = Door(Limits(strangers=10**6, handshakes_per_second=PLENTY))
    for number in range(10_000):
        visit = door.enter(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}", 0.0)
        assert isinstance(visit, Visit)
        visit.leave()
    assert door.strangers == 0
    assert len(door._full_at) <= 4096
    assert not door._strangers._inside


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=60))
def test_counts_always_come_back_to_zero(steps: list[tuple[int, bool]]) -> None:
    door = Door(Limits(strangers=5, strangers_per_address=3))
    inside: list[Visit] = []
    for host, leaves in steps:
        if leaves and inside:
            inside.pop(host % len(inside)).leave()
        else:
            outcome = door.enter(f"192.0.2.{host}", 0.0)
            if isinstance(outcome, Visit):
                inside.append(outcome)
        assert door.strangers == len(inside) <= 5
    for visit in inside:
        visit.leave()
    assert door.strangers == 0


def test_who_was_asked_to_come_is_let_in_beside_the_limits() -> None:
    door = Door(Limits(strangers_per_address=1, silent=8))
    door.expect("192.0.2.7", 3, 10.0)
    visits = [door.enter("192.0.2.7", 5.0) for _ in range(4)]
    assert all(isinstance(visit, Visit) for visit in visits), "three that were asked for, and a stranger"
    assert door.enter("192.0.2.7", 5.0) == "too_many_from_address"
    assert isinstance(door.enter("192.0.2.8", 5.0), Visit)
    door.expect("192.0.2.7", 100, 10.0)
    assert [isinstance(door.enter("192.0.2.7", 5.0), Visit) for _ in range(7)] == [True] * 5 + [False] * 2, "8 at once"
    for visit in visits:
        assert isinstance(visit, Visit)
        visit.leave()
    assert isinstance(door.enter("192.0.2.7", 5.0), Visit)
    assert isinstance(door.enter("192.0.2.7", 11.0), Visit), "a stranger: what was asked for has not come"
    assert door.enter("192.0.2.7", 11.0) == "too_many_from_address"
