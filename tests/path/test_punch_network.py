"""Two nodes behind every pair of NATs, in virtual time: which path they find, how soon, and with how many probes."""

import itertools
from collections import Counter
from functools import partial
from random import Random
from statistics import median
from typing import Any

import pytest

from overlay.path import timing
from overlay.path.budget import Budget
from overlay.path.nat import Dependence
from overlay.path.selector import Selector
from overlay.testing import Nat, VirtualClock
from tests.path.nat_network import NatNetwork

DEPENDENCES: tuple[Dependence, ...] = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
EASY: Dependence = "endpoint-independent"
PORT: Dependence = "address-and-port-dependent"
TRIES = 20

FULL_CONE = {"mapping": EASY, "filtering": EASY}
ADDRESS_RESTRICTED = {"mapping": EASY, "filtering": "address-dependent"}
PORT_RESTRICTED = {"mapping": EASY, "filtering": PORT}
SYMMETRIC = {"mapping": PORT, "filtering": PORT, "port_preserved": False}
COUNTING = {**SYMMETRIC, "port_delta": 1}
NAT_OF = {
    "public": None,
    "full-cone": FULL_CONE,
    "address-restricted": ADDRESS_RESTRICTED,
    "port-restricted": PORT_RESTRICTED,
    "symmetric": SYMMETRIC,
}
EASY_ONES = ("public", "full-cone", "address-restricted", "port-restricted")


def network(a: dict[str, Any] | None, b: dict[str, Any] | None, seed: int = 0, **fate: float) -> NatNetwork:
    return NatNetwork(a, b, seed=seed, **fate)


@pytest.mark.parametrize(("a", "b"), [*itertools.product(EASY_ONES, EASY_ONES)])
def test_where_neither_side_is_symmetric_every_try_is_direct_within_two_seconds(a: str, b: str) -> None:
    times = [network(NAT_OF[a], NAT_OF[b], seed).direct_after(5.0) for seed in range(TRIES)]
    assert None not in times
    assert median(time for time in times if time is not None) <= 2.0


@pytest.mark.parametrize(("a", "b"), [("symmetric", easy) for easy in EASY_ONES[:3]])
def test_symmetric_and_one_that_does_not_mind_the_port(a: str, b: str) -> None:
    pairs = [(NAT_OF[a], NAT_OF[b]), (NAT_OF[b], NAT_OF[a])]
    times = [network(*pairs[seed % 2], seed).direct_after(5.0) for seed in range(TRIES)]
    assert times.count(None) <= 1


def test_symmetric_and_one_that_minds_the_port_meet_by_chance_within_the_budget() -> None:
    met = 0
    for seed in range(TRIES):
        net = network(PORT_RESTRICTED, SYMMETRIC, seed)
        met += net.direct_after(24.0) is not None
        for side in (net.a, net.b):
            assert net.most_probes_per_second(side) <= 100
        assert len({endpoint[1] for _, endpoint in net.b.probes}) <= 16
        assert isinstance(net.b.home, Nat) and net.b.home.mappings <= 256 + 32
    assert met >= 12


def test_the_socket_that_was_met_carries_the_data() -> None:
    net = network(PORT_RESTRICTED, SYMMETRIC, 3)
    assert net.direct_after(24.0) is not None
    net.a.received.clear()
    for _ in net.talk(60.0):
        pass
    direct = [is_direct for _, is_direct in net.a.received]
    assert len(direct) >= 1190 and direct.count(False) <= 2
    assert net.a.kind == net.b.kind == "udp"


def test_two_symmetric_ones_stay_on_the_relay_and_ask_ever_less() -> None:
    net = network(SYMMETRIC, SYMMETRIC)
    assert net.direct_after(120.0) is None
    for side in (net.a, net.b):
        late = [when for when, _ in side.probes if when > net.clock.now - 60.0]
        assert len(late) <= 60
        assert side.wants_tcp, "TCP is worth a try"


def test_two_symmetric_ones_that_count_meet_by_prediction() -> None:
    times = [network(COUNTING, COUNTING, seed).direct_after(10.0) for seed in range(TRIES)]
    assert times.count(None) <= 4


BEHAVIOURS = [*itertools.product(DEPENDENCES, DEPENDENCES)]
"""Mapping and filtering."""


def behaving(mapping: Dependence, filtering: Dependence) -> dict[str, Any]:
    return {"mapping": mapping, "filtering": filtering, "port_preserved": mapping == EASY}


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(BEHAVIOURS, 2)])
def test_every_pair_of_behaviours_with_loss_and_delay(
    a: tuple[Dependence, Dependence], b: tuple[Dependence, Dependence]
) -> None:
    """A path is found wherever one of the two maps alike for all. Where neither does, one must let anybody in at the
    port that the server has seen, and the other must take its answer, which comes from another port; if both map anew
    for each port, no two datagrams have the same ends. Everywhere else the relay carries on. Probes have their bounds.
    """
    net = network(behaving(*a), behaving(*b), 7, latency=0.080, loss=0.05)
    direct = net.direct_after(24.0) is not None
    (mapping_a, filtering_a), (mapping_b, filtering_b) = a, b
    open_enough = EASY in (filtering_a, filtering_b) and PORT not in (filtering_a, filtering_b)
    assert direct == (EASY in (mapping_a, mapping_b) or (open_enough and (mapping_a, mapping_b) != (PORT, PORT)))
    for side in (net.a, net.b):
        assert net.most_probes_per_second(side) <= 100


def test_a_nat_that_starts_anew_costs_a_moment() -> None:
    net = network(PORT_RESTRICTED, PORT_RESTRICTED)
    assert net.direct_after(5.0) is not None
    assert isinstance(net.b.home, Nat)
    net.b.home.reboot()
    net.b.home.port_preserved = False  # and gives another port: a's endpoint for b is wrong now
    reboot = net.clock.now
    net.a.received.clear()
    for _ in net.talk(25.0):
        pass
    assert net.a.kind == net.b.kind == "udp"
    times = [reboot, *(when for when, _ in net.a.received)]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 1.1


def test_a_node_whose_provider_gives_it_another_address_is_met_again() -> None:
    net = network(PORT_RESTRICTED, PORT_RESTRICTED)
    assert net.direct_after(5.0) is not None
    assert isinstance(net.b.home, Nat)
    net.b.home.move("198.51.100.2")
    net.b.keep_alive()  # the relay's, or the machine's link event: b is seen elsewhere
    assert net.direct_after(0.1) is not None, "nobody has noticed yet"
    for _ in net.talk(12.0):
        pass
    assert net.a.kind == net.b.kind == "udp"
    assert net.a.selector.path is not None and net.a.selector.path.endpoint is not None
    assert net.a.selector.path.endpoint[0] == "198.51.100.2"


def test_a_path_that_is_cut_and_mended_is_taken_again_within_ten_seconds() -> None:
    net = network(PORT_RESTRICTED, PORT_RESTRICTED)
    assert net.direct_after(5.0) is not None
    net.internet.link.loss = 1.0
    for _ in net.talk(45.0):
        pass
    assert net.a.kind == net.b.kind == "relay"
    net.internet.link.loss = 0.0
    after = net.direct_after(20.0)
    assert after is not None and after <= 10.0


def test_pairs_that_are_silent_send_nothing() -> None:
    net = network(PORT_RESTRICTED, PORT_RESTRICTED)
    assert net.direct_after(5.0) is not None
    net.clock.advance(60.0)
    counts = [len(side.probes) for side in (net.a, net.b)]
    net.clock.advance(3600.0)
    assert [len(side.probes) for side in (net.a, net.b)] == counts


def test_a_settled_pair_costs_less_than_20_kilobytes_an_hour() -> None:
    """Of disco between the two, by whichever way. What the relay needs to find a node is one ping per 25 s and node."""
    for a, b in ((None, PORT_RESTRICTED), (PORT_RESTRICTED, PORT_RESTRICTED)):
        net = network(a, b)
        assert net.direct_after(5.0) is not None
        net.clock.advance(60.0)
        before = net.a.peer_bytes + net.b.peer_bytes
        net.clock.advance(3600.0)
        assert net.a.peer_bytes + net.b.peer_bytes == before
        net.a.send_data()  # one packet an hour: a call, its answer, and heartbeats for 45 s
        net.clock.advance(30.0)
        assert net.a.kind == "udp", "proven anew by that one packet"
        net.clock.advance(3570.0)
        assert 0 < net.a.peer_bytes + net.b.peer_bytes - before < 20_000


def test_behind_one_nat_the_peer_itself_tells_of_the_lan() -> None:
    """The map has what the relay sees, and the NAT hairpins: a path that works, and not the best one."""
    net = network(None, None)
    observed = ("203.0.113.2", 4000)
    net.a.selector.set_candidates([observed], [], net.clock.now)
    assert net.direct_after(5.0) is not None
    for _ in net.talk(5.0):
        pass
    assert net.a.kind == net.b.kind == "lan"


def test_three_hundred_peers_at_once_stay_under_the_nodes_budget() -> None:
    clock, budget, random = VirtualClock(), Budget(timing.NODE_RATE, timing.NODE_BURST), Random(1)
    pings: list[float] = []

    def drain(selector: Selector) -> None:
        pings.extend(clock.now for _ in selector.pings_to_send())

    selectors = [Selector(relay=True, random_bytes=random.randbytes, node_budget=budget) for _ in range(300)]
    for number, selector in enumerate(selectors):
        selector.set_candidates([(f"192.0.2.{number % 250}", 1000 + 16 * number + n) for n in range(16)], [], clock.now)
        clock.watch(selector, partial(drain, selector))
    for _ in range(16):
        for selector in selectors:
            selector.data_sent(clock.now)
            drain(selector)
        clock.advance(0.5)
    seconds = Counter(int(when - pings[0]) for when in pings)
    assert seconds[0] <= timing.NODE_RATE + timing.NODE_BURST
    assert all(count <= timing.NODE_RATE + 1 for second, count in seconds.items() if second)
    assert len(pings) >= 0.8 * 8 * timing.NODE_RATE, "and it is made use of"
