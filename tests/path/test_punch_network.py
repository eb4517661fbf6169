"""Two nodes behind every pair of NATs, in virtual time: which path they find, how soon, and with how many probes."""

import itertools
from statistics import median
from typing import Any

import pytest

from overlay.path.nat import Dependence
from overlay.testing import Nat
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
            assert net.most_probes_per_second(side) <= 200, "100 at once, and 100 a second"
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


@pytest.mark.parametrize(("mapping", "filtering"), [*itertools.product(DEPENDENCES, DEPENDENCES)])
def test_every_behaviour_against_a_port_restricted_one_with_loss_and_delay(
    mapping: Dependence, filtering: Dependence
) -> None:
    met = 0
    for seed in range(4):
        other = {"mapping": mapping, "filtering": filtering, "port_preserved": mapping == EASY}
        net = network(PORT_RESTRICTED, other, seed, latency=0.080, loss=0.05)
        met += net.direct_after(24.0) is not None
    assert met == 4


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
