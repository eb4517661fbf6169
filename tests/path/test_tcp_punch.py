"""When TCP is tried, whom with, and how often: an attempt's plan in virtual time, and the selector's part."""

from ipaddress import ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.path import timing
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.path.tcp_punch import (
    BURST,
    CUE_BURST,
    CUE_RATE,
    GIVE_UP,
    LOWEST_PORT,
    MAX_TARGETS,
    TRIES,
    Limits,
    TcpAttempt,
    Turns,
    decides,
    is_worth,
    targets,
)
from overlay.path.types import Origin, Path
from overlay.wire.endpoint import Endpoint
from tests.path.network import A_UDP, B_UDP, Network

LAN: Endpoint = ("192.168.1.10", 40000)
OUTSIDE: Endpoint = ("203.0.113.7", 40000)
NEXT: Endpoint = ("203.0.113.7", 40001)
LINK: Endpoint = ("192.0.0.8", 7)  # whatever stands for a link
EASY = NatBehaviour(translated=True, mapping="endpoint-independent")
HARD = NatBehaviour(translated=True, mapping="address-and-port-dependent")
COUNTING = NatBehaviour(translated=True, mapping="address-and-port-dependent", port_delta=1)
T = 1000.0


def run(attempt: TcpAttempt, now: float, *, refused: bool) -> list[tuple[float, Endpoint]]:
    """Asked whenever it wants to be; → when whom was connected to."""
    found: list[tuple[float, Endpoint]] = []
    while not attempt.is_over(now):
        for endpoint in attempt.due(now):
            found.append((now, endpoint))
            if refused:
                attempt.failed(endpoint)
        later = attempt.next_timeout()
        assert later > now
        now = later
    assert attempt.due(now) == []
    assert attempt.connects == len(found)
    return found


def test_who_is_refused_is_tried_again_at_the_agreed_moments() -> None:
    found = run(TcpAttempt([LAN, OUTSIDE], T + 0.5, Limits()), T, refused=True)
    assert found == [(T + 0.5 + each, endpoint) for each in TRIES for endpoint in (LAN, OUTSIDE)]


def test_what_is_under_way_is_left_alone() -> None:
    attempt = TcpAttempt([LAN, OUTSIDE], T, Limits())
    assert run(attempt, T, refused=False) == [(T, LAN), (T, OUTSIDE)]
    assert attempt.next_timeout() == T + GIVE_UP


def test_who_is_late_tries_once() -> None:
    attempt = TcpAttempt([OUTSIDE], T, Limits())
    assert attempt.due(T + TRIES[3]) == [OUTSIDE]
    attempt.failed(OUTSIDE)
    assert attempt.due(T + TRIES[3]) == []
    assert attempt.next_timeout() == T + TRIES[4]


def test_both_sides_try_at_the_same_moments_whatever_the_round_trip() -> None:
    """Who is called begins half a round trip after its answer, who calls with the answer."""
    for half_rtt in (0.001, 0.04, 0.4):
        answered = T + half_rtt
        called = run(TcpAttempt([OUTSIDE], answered + half_rtt, Limits()), answered, refused=True)
        calling = run(TcpAttempt([OUTSIDE], T + 2 * half_rtt, Limits()), T + 2 * half_rtt, refused=True)
        assert [when for when, _ in called] == pytest.approx([when for when, _ in calling])


def test_a_third_party_gets_few_packets_however_often_it_is_named() -> None:
    limits, now, count = Limits(), T, 0
    while now < T + timing.UNPROVEN_SPAN - 10:
        count += len(run(TcpAttempt([OUTSIDE], now, limits), now, refused=True))
        now += GIVE_UP
    assert count <= timing.UNPROVEN_PINGS + timing.UNPROVEN_SPAN / timing.UNPROVEN_PAUSE


def test_all_attempts_together_have_a_rate() -> None:
    limits = Limits()
    crowd = [TcpAttempt([(f"203.0.113.{peer}", 2000 + each) for each in range(12)], T, limits) for peer in range(50)]
    assert sum(len(attempt.due(T)) for attempt in crowd) == BURST


@given(
    st.lists(
        st.tuples(
            st.tuples(
                st.sampled_from(
                    ["10.0.0.3", "192.168.1.10", "203.0.113.7", "127.0.0.1", "0.0.0.0", "224.0.0.1", "::1"]
                ),
                st.integers(1, 65535),
            ),
            st.sampled_from(["interface", "observed", "mapped", "manual", "predicted"]),
        ),
        max_size=60,
    )
)
def test_targets_are_few_and_no_services(offers: list[tuple[Endpoint, Origin]]) -> None:
    found = targets(offers, [LAN], [ip_network("10.0.0.0/24")])
    assert len(found) <= MAX_TARGETS and len(set(found)) == len(found)
    for host, port in found:
        assert host in ("192.168.1.10", "203.0.113.7") and port >= LOWEST_PORT and (host, port) != LAN


def test_the_nearest_is_tried_first_and_a_guess_last() -> None:
    offers: list[tuple[Endpoint, Origin]] = [
        (NEXT, "predicted"),
        (OUTSIDE, "observed"),
        (LAN, "interface"),
        (OUTSIDE, "predicted"),
    ]
    assert targets(offers, [], []) == (LAN, OUTSIDE, NEXT)


def test_what_is_worth_a_try() -> None:
    assert is_worth(EASY, EASY) and is_worth(HARD, EASY) and is_worth(UNKNOWN_NAT, HARD) and is_worth(COUNTING, HARD)
    assert not is_worth(HARD, HARD)
    assert decides(2, 3) and not decides(3, 2)


def test_one_attempt_at_a_time_and_not_for_every_cue() -> None:
    turns, begun = Turns(), 0
    for step in range(1000):
        begun += turns.cued(T + step / 10)
    assert begun <= CUE_BURST + 100 * CUE_RATE + 1
    turns.running = True
    assert not turns.cued(T + 10_000)


# the selector ---------------------------------------------------------------------------------------------------------


def with_link(network: Network, latency: float = 0.02) -> None:
    """Both sides are given a connection, as the engine would."""
    network._add(1, LINK, LINK, 1)
    network._add(2, LINK, LINK, 1)
    for number in (1, 2):
        network.links[number, LINK].latency = latency
    for side in (network.a, network.b):
        side.selector.add_link(LINK, OUTSIDE, network.clock.now)
        side.drain()


def test_tcp_is_wanted_after_udp_had_its_time_and_not_while_it_carries() -> None:
    network = Network(relay=True)
    network.introduce()
    network.talk(30.0)
    wants = network.a.wants_tcp
    assert wants and wants[0] - network.a.calls[0] == pytest.approx(timing.UDP_PATIENCE, abs=0.1)
    pauses = [after - before for before, after in pairwise(wants)]
    assert min(pauses) > GIVE_UP
    with_link(network)
    network.talk_until("tcp", 0.2)
    assert network.a.path == Path("tcp", LINK, OUTSIDE)
    count = len(wants)
    network.talk(100.0)
    assert len(wants) == count


def test_udp_is_better_and_the_link_stands_by() -> None:
    network = Network((A_UDP, B_UDP))
    with_link(network)
    network.talk_until("tcp", 0.5)
    network.introduce()
    network.talk_until("udp", 1.0)
    for link in network.direct():
        link.loss = 1.0 if link is not network.links[1, LINK] and link is not network.links[2, LINK] else 0.0
    network.talk_until("tcp", 1.5)


def test_a_link_that_goes_silent_is_left_within_a_second() -> None:
    network = Network(relay=True)
    with_link(network)
    network.talk_until("tcp", 0.5)
    network.talk(2.0)
    network.links[1, LINK].loss = network.links[2, LINK].loss = 1.0
    assert network.talk_until("relay", 1.1) <= 1.1


def test_a_link_that_is_gone_is_left_at_once_and_tcp_wanted_again() -> None:
    network = Network(relay=True)
    with_link(network)
    network.talk_until("tcp", 0.5)
    network.talk(20.0)
    gone = network.clock.now
    for side in (network.a, network.b):
        side.selector.remove_link(LINK, gone)
        side.drain()
        assert side.path == Path("relay", None)
        assert not side.selector.has_link(LINK)
    network.talk(30.0)
    wants = [when for when in network.a.wants_tcp if when > gone]
    assert wants[0] - gone <= timing.UDP_PATIENCE + 0.1
    assert max(after - before for before, after in pairwise([gone, *wants])) <= timing.CUE_AGAIN + 2.1


def test_without_a_relay_a_lost_link_leaves_nothing() -> None:
    network = Network(relay=False)
    with_link(network)
    network.talk(1.0)
    assert network.a.path == Path("tcp", LINK, OUTSIDE)
    network.a.selector.remove_link(LINK, network.clock.now)
    network.a.drain()
    assert network.a.path is None


def test_a_map_or_a_call_does_not_take_a_link_away() -> None:
    network = Network(relay=True)
    with_link(network, latency=10.0)  # not proven yet
    network.a.selector.set_candidates([B_UDP], [], network.clock.now)
    network.a.selector.called([(B_UDP, "observed")], network.clock.now, network.clock.now)
    shown = {state.endpoint: state for state in network.a.selector.candidates(network.clock.now)}
    assert shown[OUTSIDE].kind == "tcp" and shown[OUTSIDE].origin == "punched"
