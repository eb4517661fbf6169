"""Two selectors over a bad network, in virtual time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.path import timing
from overlay.path.types import RELAY_PATH, Path, PathChanged
from tests.path.network import A_LAN, A_UDP, B_LAN, B_UDP, Network

UDP = (A_UDP, B_UDP)
LAN = (A_LAN, B_LAN)


def settled(*ways: tuple[tuple[str, int], tuple[str, int]], relay: bool = True) -> Network:
    """A network whose two sides already use their best path."""
    network = Network(*ways, relay=relay)
    network.introduce()
    network.talk(3.0)
    return network


def test_the_relay_carries_the_first_packet_and_direct_takes_over() -> None:
    network = Network(UDP)
    network.introduce()
    network.a.send_data()
    assert network.a.path == RELAY_PATH
    network.clock.advance(0.021)
    assert network.a.path == Path("udp", B_UDP)
    network.clock.advance(0.1)
    assert [source for _, source in network.b.received] == [None]
    assert network.b.path == Path("udp", A_UDP), "what came by the relay woke the other side as well"
    assert network.a.selector.rtt == pytest.approx(0.020)
    assert network.b.selector.observed == B_UDP


def test_without_a_direct_way_the_relay_carries_on() -> None:
    network = Network(UDP)
    for link in network.direct():
        link.cut()
    network.introduce()
    network.talk(30.0)
    assert network.a.path == network.b.path == RELAY_PATH
    assert network.a.history == []
    assert len(network.b.received) == pytest.approx(1500, abs=5)


def test_without_a_relay_the_first_answer_makes_the_path() -> None:
    network = Network(UDP, relay=False)
    network.introduce()
    assert network.a.path is None
    network.a.send_data()
    network.clock.advance(0.05)
    assert network.a.path == Path("udp", B_UDP)


def test_lan_beats_udp_even_if_slower() -> None:
    network = Network(UDP, LAN)
    network.links[1, B_UDP].latency = network.links[2, A_UDP].latency = 0.001
    network.introduce()
    network.talk(1.0)
    assert network.a.path == Path("lan", B_LAN)
    assert network.b.path == Path("lan", A_LAN)


@settings(deadline=None, max_examples=25)
@given(
    after=st.floats(0.0, 1.0),
    latency=st.floats(0.0005, 0.150),
    every=st.floats(0.001, 0.1),
    cut=st.sampled_from(["both", "a to b", "b to a"]),
    talks=st.sampled_from(["both", "a"]),
)
def test_a_cut_path_is_left_within_a_second(after: float, latency: float, every: float, cut: str, talks: str) -> None:
    network = Network(UDP)
    for link in network.direct():
        link.latency = latency
    network.introduce()
    both = talks == "both"
    network.talk(2.0 + after, every=every, b=both)
    assert network.a.path == Path("udp", B_UDP)
    if cut != "b to a":
        network.links[1, B_UDP].cut()
    if cut != "a to b":
        network.links[2, A_UDP].cut()
    cut_at = network.clock.now
    network.talk(1.0, every=every, b=both)
    assert network.a.path == RELAY_PATH
    assert network.a.history[-1].at - cut_at <= 1.0
    if both:
        assert network.b.path == RELAY_PATH
    network.talk(1.0, every=every, b=both)
    assert network.a.path == RELAY_PATH, "and it is not taken again while it is cut"


def test_a_single_unanswered_request_is_enough_to_leave() -> None:
    network = settled(UDP)
    network.clock.advance(1.0)
    for link in network.direct():
        link.cut()
    network.a.send_data()
    network.clock.advance(1.0)
    assert network.a.path == RELAY_PATH


def test_a_packet_right_after_an_answered_ping_is_covered_by_the_next_ping() -> None:
    network = settled(UDP)
    for link in network.direct():
        link.cut()
    network.clock.advance(0.01)
    network.a.send_data()
    network.clock.advance(1.0)
    assert network.a.path == RELAY_PATH


def test_the_next_best_direct_path_takes_over_from_a_dead_one() -> None:
    network = settled(UDP, LAN)
    assert network.a.path == Path("lan", B_LAN)
    network.links[1, B_LAN].cut()
    network.links[2, A_LAN].cut()
    network.talk(1.5)
    assert network.a.path == Path("udp", B_UDP)
    assert network.b.path == Path("udp", A_UDP)


def test_a_mended_path_is_taken_again_after_its_rest() -> None:
    network = settled(UDP)
    for link in network.direct():
        link.cut()
    assert network.talk_until("relay", within=1.0) <= 1.0
    for link in network.direct():
        link.mend()
    took = network.talk_until("udp", within=timing.REST[0] + 0.5)
    assert took >= 1.0


def test_falls_are_forgotten_after_long_service() -> None:
    network = settled(UDP)
    rests = []
    for service in (1.0, 1.0, timing.STABLE + 1):
        network.talk(service, every=0.1)
        for link in network.direct():
            link.cut()
        network.talk_until("relay", within=1.0)
        for link in network.direct():
            link.mend()
        rests.append(network.talk_until("udp", within=20.0))
    assert rests == pytest.approx([timing.REST[0], timing.REST[1], timing.REST[0]], abs=0.2)


@pytest.mark.parametrize("period", [1.5, 3.0, 7.0, 30.0])
def test_a_link_that_comes_and_goes_does_not_take_the_traffic_with_it(period: float) -> None:
    network = settled(UDP)
    for _ in range(int(600 / period / 2)):
        for link in network.direct():
            link.cut()
        network.talk(period, every=0.05)
        for link in network.direct():
            link.mend()
        network.talk(period, every=0.05)
    changes = len(network.a.history) - 1
    # One fall per rest: 2, 4, … 32 s take the first minute, after that at most one a minute; each is two changes.
    assert changes <= 2 * (6 + 600 / 60)
    assert len(network.b.received) / network.a.sent > 0.97


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), loss=st.floats(0.0, 0.05), jitter=st.floats(0.0, 0.030))
def test_loss_and_jitter_are_no_cut(seed: int, loss: float, jitter: float) -> None:
    network = Network(UDP, seed=seed)
    for link in network.direct():
        link.loss, link.jitter, link.reorder, link.duplicate = loss, jitter, 0.02, 0.02
    network.introduce()
    network.talk(60.0, every=0.05)
    assert network.a.path == Path("udp", B_UDP)
    assert len(network.a.history) == 1
    assert len(network.b.history) == 1


def test_heavy_loss_does_not_make_the_choice_oscillate() -> None:
    network = Network(UDP)
    for link in network.direct():
        link.loss = 0.4
    network.introduce()
    network.talk(300.0, every=0.05)
    assert len(network.a.history) <= 2 * 12


@pytest.mark.parametrize(("slower", "faster"), [(0.0015, 0.0009), (0.020, 0.0175)])
def test_two_paths_of_one_kind_that_trade_places_do_not_oscillate(slower: float, faster: float) -> None:
    second = (("192.0.2.11", 41641), ("192.0.2.12", 41641))
    network = settled(UDP, second)
    first: list[PathChanged] = []
    for turn in range(8):
        slow, fast = (UDP, second) if turn % 2 else (second, UDP)
        for at_a, at_b in (slow, fast):
            latency = slower if (at_a, at_b) == slow else faster
            network.links[1, at_b].latency = network.links[2, at_a].latency = latency
        network.talk(65.0, every=0.25)
        first = first or network.a.history[:]
    assert network.a.history == first, "a millisecond, or a tenth, is no reason to change"


def test_a_path_that_is_much_faster_is_found_and_kept() -> None:
    second = (("192.0.2.11", 41641), ("192.0.2.12", 41641))
    network = settled(UDP, second)
    slow = network.a.path
    assert slow is not None
    fast = second if slow.endpoint == B_UDP else UDP
    network.links[1, fast[1]].latency = network.links[2, fast[0]].latency = 0.002
    network.talk(2 * timing.LOOK_AGAIN + 1, every=0.2)
    assert network.a.path == Path("udp", fast[1])
    assert len(network.a.history) == 2


def test_probes_stay_in_their_budget() -> None:
    network = Network(UDP)
    silent = [(f"198.51.100.{host}", 41641) for host in range(1, 100)]
    network.a.selector.set_candidates([B_UDP, *silent], [], network.clock.now)
    start = network.clock.now
    network.talk(120.0, every=0.05)
    burst, rate = timing.PROBE_BURST, timing.PROBE_RATE
    liveness = 1 / timing.LIVENESS
    for second in range(120):
        for width in (1, 10):
            pings = network.a.pings_between(start + second, start + second + width)
            assert pings <= burst + (rate + liveness + 1) * width
    last_minute = [end for when, end in network.a.pings if when >= start + 60 and end != B_UDP]
    assert len(last_minute) <= 2 * timing.MAX_ADVERTISED
    assert network.a.path == Path("udp", B_UDP)


def test_an_idle_pair_is_silent_and_wakes_over_the_relay() -> None:
    network = settled(UDP)
    network.clock.advance(timing.ACTIVE + timing.TRUST)
    pings = len(network.a.pings) + len(network.b.pings)
    heartbeats = len(network.a.pings)
    assert network.clock.next_due() is None, "no timer at all"
    network.clock.advance(3600.0)
    assert len(network.a.pings) + len(network.b.pings) == pings
    assert heartbeats <= 3.0 / timing.LIVENESS + timing.ACTIVE / timing.HEARTBEAT + 3
    assert network.a.path == RELAY_PATH, "what was proven an hour ago must not swallow the first packet"
    network.b.received.clear()
    network.a.send_data()
    network.clock.advance(0.03)
    assert network.a.path == Path("udp", B_UDP)
    assert [source for _, source in network.b.received] == [None]


def test_an_active_pair_that_sends_nothing_keeps_its_path_by_heartbeats() -> None:
    network = settled(UDP)
    start = network.clock.now
    network.clock.advance(timing.ACTIVE - 1.0)
    assert network.a.path == Path("udp", B_UDP)
    assert network.a.pings_between(start + 1, network.clock.now) <= timing.ACTIVE / timing.HEARTBEAT + 1


def test_a_changed_link_proves_paths_anew() -> None:
    network = settled(UDP)
    pinged = len(network.a.pings)
    network.a.selector.link_changed(network.clock.now)
    network.a.drain()
    assert network.a.path == RELAY_PATH
    assert len(network.a.pings) == pinged + 1
    assert network.a.selector.proven(B_UDP), "who is behind that endpoint has not changed"
    network.clock.advance(0.021)
    assert network.a.path == Path("udp", B_UDP)


def test_a_changed_link_of_an_idle_pair_costs_nothing() -> None:
    network = settled(UDP)
    network.clock.advance(timing.ACTIVE + timing.TRUST)
    pinged = len(network.a.pings)
    network.a.selector.link_changed(network.clock.now)
    network.a.drain()
    assert len(network.a.pings) == pinged
    assert network.clock.next_due() is None


def test_the_peer_is_found_by_the_pings_that_it_sends() -> None:
    """A knows no endpoint of B; B knows A's, so A learns B's from B's pings."""
    network = Network(UDP)
    network.b.selector.set_candidates([A_UDP], [], network.clock.now)
    network.talk(1.0, b=False)
    assert network.b.path == Path("udp", A_UDP)
    assert network.a.path == Path("udp", B_UDP)
    assert network.a.selector.proven(B_UDP)


def test_the_source_is_proven_before_data_comes_from_it() -> None:
    """With a slow relay, A's first direct data reaches B long before its first relayed packet."""
    network = Network(UDP)
    network.links[1, None].latency = 0.5
    network.introduce()
    network.a.send_data()
    network.clock.advance(0.021)
    assert network.a.path == Path("udp", B_UDP)
    network.a.send_data()
    network.clock.advance(0.015)
    assert [source for _, source in network.b.received] == [A_UDP]
    network.clock.advance(0.02)
    assert network.b.selector.proven(A_UDP)


def test_without_a_relay_a_cut_path_is_kept_and_works_again_when_mended() -> None:
    network = settled(UDP, relay=False)
    for link in network.direct():
        link.cut()
    network.talk(20.0)
    assert network.a.path == Path("udp", B_UDP)
    cut_pings = network.a.pings_between(network.clock.now - 10, network.clock.now)
    assert cut_pings <= 10
    for link in network.direct():
        link.mend()
    network.b.received.clear()
    network.talk(0.5)
    assert network.b.received, "data goes on blindly, so it works at once"
    network.talk(timing.PROBE_PAUSES[-1] + 1, every=0.1)
    assert network.a.history[1:] == []


def test_a_relay_that_goes_away_leaves_the_direct_path_alone() -> None:
    network = settled(UDP)
    network.a.selector.set_relay(False, network.clock.now)
    assert network.a.path == Path("udp", B_UDP)
    network.clock.advance(3600.0)
    assert network.a.path == Path("udp", B_UDP), "better an old path than none"
    network.a.selector.set_relay(True, network.clock.now)
    assert network.a.path == RELAY_PATH


def test_a_relay_that_goes_away_under_an_idle_pair_falls_back_to_what_last_worked() -> None:
    network = settled(UDP)
    network.clock.advance(600.0)
    assert network.a.path == RELAY_PATH
    network.a.selector.set_relay(False, network.clock.now)
    assert network.a.path == Path("udp", B_UDP)
