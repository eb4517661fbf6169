"""The parts of an attempt, its probes and its bounds; chances are those of the birthday paradox."""

from itertools import product
from random import Random
from typing import get_args

import pytest

from overlay.path import punch
from overlay.path.budget import Budget
from overlay.path.nat import UNKNOWN_NAT, Dependence, NatBehaviour
from overlay.path.punch import Attempt, part, predicted
from overlay.wire.endpoint import Endpoint

PORT_RESTRICTED = NatBehaviour(translated=True, mapping="endpoint-independent", filtering="address-and-port-dependent")
ADDRESS_RESTRICTED = NatBehaviour(translated=True, mapping="endpoint-independent", filtering="address-dependent")
OPEN = NatBehaviour(translated=False, mapping="endpoint-independent", filtering="endpoint-independent")
GUARDED = NatBehaviour(translated=False, filtering="address-and-port-dependent")
SYMMETRIC = NatBehaviour(translated=True, mapping="address-and-port-dependent", filtering="address-and-port-dependent")
COUNTING = NatBehaviour(translated=True, mapping="address-and-port-dependent", port_delta=2)
TARGET: Endpoint = ("203.0.113.7", 41641)
T = 1000.0


@pytest.mark.parametrize(
    ("own", "peer", "expected"),
    [
        (SYMMETRIC, PORT_RESTRICTED, "many-sockets"),
        (PORT_RESTRICTED, SYMMETRIC, "many-ports"),
        (SYMMETRIC, GUARDED, "many-sockets"),
        (GUARDED, SYMMETRIC, "many-ports"),
        (SYMMETRIC, ADDRESS_RESTRICTED, None),
        (ADDRESS_RESTRICTED, SYMMETRIC, None),
        (SYMMETRIC, OPEN, None),
        (SYMMETRIC, SYMMETRIC, None),
        (PORT_RESTRICTED, PORT_RESTRICTED, None),
        (SYMMETRIC, UNKNOWN_NAT, None),
        (UNKNOWN_NAT, SYMMETRIC, None),
    ],
)
def test_parts(own: NatBehaviour, peer: NatBehaviour, expected: punch.Part | None) -> None:
    assert part(own, peer) == expected


def test_both_sides_come_to_parts_that_fit() -> None:
    dependences: tuple[Dependence | None, ...] = (*get_args(Dependence), None)
    all_nats = [
        NatBehaviour(translated, mapping, filtering)
        for translated, mapping, filtering in product((True, False, None), dependences, dependences)
    ]
    fitting = {None: None, "many-sockets": "many-ports", "many-ports": "many-sockets"}
    for own, peer in product(all_nats, all_nats):
        assert part(peer, own) == fitting[part(own, peer)]


def run(attempt: Attempt, until: float) -> list[tuple[float, Endpoint]]:
    """Asked as whoever drives it does."""
    now, found = T, []
    while now < until and not attempt.is_over(now):
        found += [(now, endpoint) for endpoint in attempt.probes(now)]
        later = attempt.next_timeout(now)
        assert later > now
        now = later
    return found


def attempt(side: punch.Part, *, seed: int = 1, node_budget: Budget | None = None) -> Attempt:
    return Attempt(side, TARGET, T, Random(seed).randbytes, node_budget or Budget(100.0, 100.0))


def test_many_sockets_are_256_and_all_ask_the_same_endpoint() -> None:
    probes = run(attempt("many-sockets"), T + 60)
    assert [endpoint for _, endpoint in probes] == [TARGET] * 256
    assert probes[-1][0] - T < 5.0


def test_many_ports_never_repeat_and_stop_after_20_s() -> None:
    probes = run(attempt("many-ports"), T + 60)
    endpoints = [endpoint for _, endpoint in probes]
    assert len(set(endpoints)) == len(endpoints) and 1150 <= len(endpoints) <= 1250
    assert {host for host, _ in endpoints} == {TARGET[0]} and all(1024 <= port <= 65535 for _, port in endpoints)
    assert probes[-1][0] < T + punch.GIVE_UP


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_visits_every_port(seed: int) -> None:
    walker = attempt("many-ports", seed=seed)
    assert len({walker._next(T)[1] for _ in range(64512)}) == 64512


def test_all_probes_stay_under_the_nodes_budget() -> None:
    shared = Budget(20.0, 5.0)
    probes = run(attempt("many-ports", node_budget=shared), T + 60)
    for start in range(20):
        assert sum(T + start <= when < T + start + 1 for when, _ in probes) <= 26


def test_nothing_is_asked_before_its_start() -> None:
    early = Attempt("many-ports", TARGET, T + 5, Random(1).randbytes, Budget(100.0, 100.0))
    assert early.probes(T) == [] and early.next_timeout(T) == T + 5


def test_ports_are_met_as_often_as_the_birthday_paradox_says() -> None:
    met = 0
    for seed in range(200):
        opened = set(Random(1000 + seed).sample(range(1024, 65536), 256))
        walker = attempt("many-ports", seed=seed)
        met += any(walker._next(T)[1] in opened for _ in range(1024))
    assert met >= 188  # 98.4 % of 200 are 197


def test_the_next_ports_of_a_nat_that_counts() -> None:
    assert predicted(COUNTING, ("203.0.113.7", 5000)) == [("203.0.113.7", 5000 + 2 * n) for n in range(1, 7)]
    assert predicted(SYMMETRIC, ("203.0.113.7", 5000)) == []
    assert predicted(PORT_RESTRICTED, ("203.0.113.7", 5000)) == []
    assert predicted(COUNTING, ("203.0.113.7", 65533)) == [("203.0.113.7", 65535)]
