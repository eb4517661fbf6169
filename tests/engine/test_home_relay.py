"""The way to the home relay, in virtual time."""

from collections.abc import Callable

import pytest

from overlay.engine.home_relay import KEEPALIVE, SILENCE, HomeRelay
from overlay.wire.endpoint import Endpoint

ONE: Endpoint = ("192.0.2.1", 443)
TWO: Endpoint = ("2001:db8::1", 443)
SELF: Endpoint = ("203.0.113.9", 5000)


def counting() -> Callable[[int], bytes]:
    serial = iter(range(1, 1 << 20))
    return lambda size: next(serial).to_bytes(size, "big")


@pytest.fixture
def home() -> HomeRelay:
    return HomeRelay((ONE, TWO), counting(), 0.0)


def connect(home: HomeRelay, now: float = 0.0) -> None:
    home.handle_timeout(now)
    for endpoint, txid in home.pings_to_send():
        if endpoint == ONE:
            assert home.pong(ONE, txid, SELF, now + 0.02)


def pings_until(home: HomeRelay, start: float, end: float) -> list[tuple[float, Endpoint]]:
    """What goes out in that time if nothing is answered."""
    sent: list[tuple[float, Endpoint]] = []
    now = start
    while now <= end:
        home.handle_timeout(now)
        sent += [(now, endpoint) for endpoint, _ in home.pings_to_send()]
        now = max(home.next_timeout(), now + 1e-9)
    return sent


def used(home: HomeRelay) -> tuple[Endpoint | None, Endpoint | None]:
    return home.active, home.observed


def test_all_endpoints_are_asked_at_once_and_the_first_that_answers_is_used(home: HomeRelay) -> None:
    home.handle_timeout(0.0)
    pings = dict(home.pings_to_send())
    assert pings.keys() == {ONE, TWO}
    assert used(home) == (None, None)
    assert home.pong(TWO, pings[TWO], SELF, 0.03)
    assert used(home) == (TWO, SELF)
    assert home.rtt == pytest.approx(0.03)
    assert home.pong(ONE, pings[ONE], ("198.51.100.1", 1), 0.04)  # slower: known, not used
    assert used(home) == (TWO, SELF)


def test_an_answer_that_nobody_asked_for_changes_nothing(home: HomeRelay) -> None:
    home.handle_timeout(0.0)
    pings = dict(home.pings_to_send())
    assert not home.pong(ONE, bytes(12), SELF, 0.1)
    assert not home.pong(TWO, pings[ONE], SELF, 0.1)  # from elsewhere
    assert not home.pong(ONE, pings[ONE], SELF, 0.1)  # that question is gone
    assert home.active is None


def test_an_answer_too_late_is_none(home: HomeRelay) -> None:
    home.handle_timeout(0.0)
    pings = dict(home.pings_to_send())
    assert not home.pong(ONE, pings[ONE], SELF, 5.1)


def test_while_it_answers_a_ping_each_25_seconds_is_all(home: HomeRelay) -> None:
    connect(home)
    assert pings_until(home, 0.1, 26.0)[:1] == [(0.02 + KEEPALIVE, ONE)]


def test_without_an_answer_pings_go_out_ever_more_seldom_but_never_stop(home: HomeRelay) -> None:
    times = [when for when, endpoint in pings_until(home, 0.0, 60.0) if endpoint == ONE]
    assert times[:5] == [0.0, 0.25, 0.75, 1.75, 2.75]
    pauses = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0


def test_a_relay_that_falls_silent_under_traffic_is_asked_at_once_and_given_up_soon(home: HomeRelay) -> None:
    connect(home)
    home.sent(10.0)
    home.sent(10.4)
    assert home.next_timeout() == 10.0 + SILENCE
    sent = pings_until(home, 10.0 + SILENCE, 15.0)
    assert sent[0] == (10.0 + SILENCE, ONE)
    assert TWO in {endpoint for _, endpoint in sent}
    assert home.active is None
    assert home.rtt is None


def test_traffic_that_is_answered_asks_nothing(home: HomeRelay) -> None:
    connect(home)
    home.sent(10.0)
    home.heard()
    assert home.next_timeout() == 0.02 + KEEPALIVE


def test_it_comes_back_where_it_was_or_elsewhere(home: HomeRelay) -> None:
    connect(home)
    pings_until(home, 25.02, 40.0)
    assert home.active is None
    home.handle_timeout(home.next_timeout())
    pings = dict(home.pings_to_send())
    assert home.pong(TWO, pings[TWO], SELF, home.next_timeout() - 4.9)
    assert home.active == TWO


def test_a_change_of_our_addresses_is_told_at_once(home: HomeRelay) -> None:
    connect(home)
    home.ask(3.0)
    assert home.next_timeout() == 3.0
    home.handle_timeout(3.0)
    ((endpoint, txid),) = home.pings_to_send()
    assert home.pong(endpoint, txid, ("203.0.113.10", 7), 3.02)
    assert home.observed == ("203.0.113.10", 7)
