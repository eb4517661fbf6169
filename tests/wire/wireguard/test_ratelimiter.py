from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.wireguard.constants import LOAD_HANDSHAKES, LOAD_WINDOW, RATE_BURST, RATE_PER_SOURCE
from overlay.wire.wireguard.ratelimiter import LoadMeter, RateLimiter


def ipv4(last: int, port: int = 1) -> bytes:
    return bytes([192, 0, 2, last]) + port.to_bytes(2, "big")


def ipv6(subnet: int, host: int, port: int = 1) -> bytes:
    return bytes.fromhex("20010db80000") + subnet.to_bytes(2, "big") + host.to_bytes(8, "big") + port.to_bytes(2, "big")


def test_a_burst_and_then_the_rate() -> None:
    limiter = RateLimiter()
    assert [limiter.allow(ipv4(1), 0.0) for _ in range(RATE_BURST + 2)] == [True] * RATE_BURST + [False] * 2
    assert limiter.allow(ipv4(1), 0.05)
    assert not limiter.allow(ipv4(1), 0.06)
    assert limiter.allow(ipv4(2), 0.06)


def test_a_second_port_buys_no_second_budget() -> None:
    limiter = RateLimiter()
    assert [limiter.allow(ipv4(1, port), 0.0) for port in range(7)] == [True] * 5 + [False] * 2


def test_a_second_address_of_an_ipv6_subnet_buys_none_either() -> None:
    limiter = RateLimiter()
    assert [limiter.allow(ipv6(1, host), 0.0) for host in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow(ipv6(2, 0), 0.0)


def test_a_source_of_another_kind_is_taken_whole() -> None:
    limiter = RateLimiter()
    assert [limiter.allow(b"node 7", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allow(b"another kind", 0.0)


@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=200))
def test_no_source_gets_more_than_burst_and_rate(gaps: list[float]) -> None:
    limiter, now, allowed = RateLimiter(), 0.0, 0
    for gap in gaps:
        now += gap
        allowed += limiter.allow(ipv4(1), now)
        assert allowed <= RATE_BURST + RATE_PER_SOURCE * now + 1e-6


def test_memory_is_bounded_and_those_inside_stay() -> None:
    limiter = RateLimiter(table_size=10)
    assert all(limiter.allow(ipv4(host), 0.0) for host in range(10))
    assert not any(limiter.allow(ipv4(host), 0.0) for host in range(10, 200))
    assert limiter.allow(ipv4(3), 0.0)
    assert len(limiter) == 10
    assert limiter.allow(ipv4(100), 1.0)  # the others fell silent, and full buckets need not be kept
    assert len(limiter) == 1


def test_load_begins_with_many_handshakes_in_a_second() -> None:
    meter = LoadMeter()
    verdicts = [meter.observe(index * LOAD_WINDOW / LOAD_HANDSHAKES) for index in range(LOAD_HANDSHAKES)]
    assert verdicts == [False] * (LOAD_HANDSHAKES - 1) + [True]


def test_load_lasts_a_second_longer() -> None:
    meter = LoadMeter()
    for _ in range(LOAD_HANDSHAKES):
        meter.observe(10.0)
    assert meter.observe(10.0 + LOAD_WINDOW - 0.01)
    assert not meter.observe(10.0 + 2 * LOAD_WINDOW)


def test_a_steady_trickle_is_no_load() -> None:
    meter = LoadMeter()
    assert not any(meter.observe(index / (LOAD_HANDSHAKES - 2)) for index in range(10 * LOAD_HANDSHAKES))
