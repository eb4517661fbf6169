"""What observations say of a NAT, and a NAT's behaviour as bytes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.path.nat import PACKED_SIZE, Dependence, NatBehaviour, Observations, classify
from overlay.wire.endpoint import Endpoint

A, A2, B = ("198.51.100.1", 443), ("198.51.100.1", 3478), ("198.51.100.2", 3478)
DEPENDENCES: tuple[Dependence, ...] = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
SEEN = Observations(own=("192.168.1.10",), port=4000)


def at(port: int) -> Endpoint:
    return ("203.0.113.7", port)


@pytest.mark.parametrize(
    ("mapped", "mapping"),
    [
        ([(A, at(1))], None),
        ([(A, at(1)), (A2, at(1))], "endpoint-independent"),
        ([(A, at(1)), (B, at(1))], "endpoint-independent"),
        ([(A, at(1)), (A2, at(1)), (B, at(2))], "address-dependent"),
        ([(A, at(1)), (B, at(2))], "address-dependent"),
        ([(A, at(1)), (A2, at(2))], "address-and-port-dependent"),
        ([(A, at(1)), (A2, at(2)), (B, at(1))], "address-and-port-dependent"),
        ([(A, at(1)), (A2, ("203.0.113.8", 1))], "address-and-port-dependent"),
    ],
)
def test_mapping(mapped: list[tuple[Endpoint, Endpoint]], mapping: Dependence | None) -> None:
    assert classify(replace(SEEN, mapped=tuple(mapped))).mapping == mapping


@pytest.mark.parametrize(
    ("other_port", "other_address", "filtering"),
    [
        (None, None, None),
        (None, False, None),
        (False, None, "address-and-port-dependent"),
        (False, False, "address-and-port-dependent"),
        (True, None, "address-dependent"),
        (True, False, "address-dependent"),
        (True, True, "endpoint-independent"),
        (False, True, "endpoint-independent"),  # the answer from the other port was lost
        (None, True, "endpoint-independent"),
    ],
)
def test_filtering(other_port: bool | None, other_address: bool | None, filtering: Dependence | None) -> None:
    seen = replace(SEEN, mapped=((A, at(1)),), other_port=other_port, other_address=other_address)
    assert classify(seen).filtering == filtering


@pytest.mark.parametrize(
    ("own", "port", "translated"),
    [("203.0.113.7", 4000, False), ("203.0.113.7", 4001, True), ("192.168.1.10", 4000, True)],
)
def test_translated(own: str, port: int, translated: bool) -> None:
    seen = replace(SEEN, own=("10.0.0.1", own), port=port, mapped=((A, at(4000)),))
    assert classify(seen).translated is translated


@pytest.mark.parametrize(
    ("ports", "delta"),
    [
        ([], None),
        ([5000], None),
        ([5000, 5001], None),
        ([5000, 5001, 5002], 1),
        ([5000, 4998, 4996, 4994], -2),
        ([5000, 5001, 5003, 5004], 1),  # somebody else got one
        ([5000, 5002, 5003, 5005], None),
        ([65535, 65537 - 65536, 3], 2),  # around the end
        ([5000, 5000, 5000], None),
        ([5000, 6000, 7000], None),
        ([5000, 17, 40000, 12345], None),
    ],
)
def test_delta(ports: list[int], delta: int | None) -> None:
    fresh = tuple((10_000 + 7 * number, port) for number, port in enumerate(ports))
    assert classify(replace(SEEN, mapped=((A, at(1)),), fresh=fresh)).port_delta == delta


def test_a_preserved_port_has_no_delta() -> None:
    seen = replace(SEEN, mapped=((A, at(4000)),), fresh=((1, 1), (2, 2), (3, 3)))
    assert classify(seen) == NatBehaviour(translated=True, port_preserved=True)


def test_one_port_that_was_taken_is_no_habit() -> None:
    seen = replace(SEEN, mapped=((A, at(4000)),), fresh=((1, 1), (2, 9), (3, 3)))
    assert classify(seen).port_preserved


def test_nothing_seen_is_nothing_known() -> None:
    assert classify(Observations()) == NatBehaviour()
    assert classify(replace(SEEN, lifetime=40.0)) == NatBehaviour(lifetime=40.0)


flags = st.none() | st.booleans()
dependences = st.none() | st.sampled_from(DEPENDENCES)
behaviours = st.builds(
    NatBehaviour,
    flags,
    dependences,
    dependences,
    flags,
    flags,
    st.none() | st.integers(-(2**15) + 1, 2**15 - 1).filter(bool),
    st.none() | st.integers(1, 65535).map(float),
)


@given(behaviours, st.binary(max_size=4))
def test_a_behaviour_is_a_few_bytes(behaviour: NatBehaviour, more: bytes) -> None:
    data = behaviour.pack()
    assert len(data) == PACKED_SIZE == 10
    assert NatBehaviour.unpack(data + more) == behaviour


@given(st.binary(max_size=16))
def test_fuzz_behaviours(data: bytes) -> None:
    try:
        behaviour = NatBehaviour.unpack(data)
    except ValueError:
        assert len(data) < PACKED_SIZE
        return
    assert NatBehaviour.unpack(behaviour.pack()) == behaviour


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (NatBehaviour(port_delta=40_000), NatBehaviour()),
        (NatBehaviour(port_delta=0), NatBehaviour()),
        (NatBehaviour(lifetime=0.0), NatBehaviour(lifetime=1.0)),
        (NatBehaviour(lifetime=1e9), NatBehaviour(lifetime=65535.0)),
    ],
)
def test_what_does_not_fit_is_the_nearest_that_does(behaviour: NatBehaviour, told: NatBehaviour) -> None:
    assert NatBehaviour.unpack(behaviour.pack()) == told


endpoints = st.sampled_from([A, A2, B])
mapped_endpoints = st.tuples(st.sampled_from(["203.0.113.7", "203.0.113.8", "192.168.1.10"]), st.integers(1, 65535))
observations = st.builds(
    Observations,
    st.lists(st.sampled_from(["192.168.1.10", "203.0.113.7"]), max_size=2).map(tuple),
    st.integers(1, 65535),
    st.lists(st.tuples(endpoints, mapped_endpoints), max_size=4).map(tuple),
    st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), max_size=6).map(tuple),
    flags,
    flags,
    flags,
    st.none() | st.floats(0, 1000),
)


@given(observations)
def test_whatever_is_seen_has_a_name_that_can_be_told(seen: Observations) -> None:
    found = classify(seen)
    assert (found.translated is None) == (not seen.mapped)
    assert found.hairpinning is None or found.hairpinning == seen.hairpin
    told = NatBehaviour.unpack(found.pack())
    assert replace(told, lifetime=None) == replace(found, lifetime=None)


@given(observations, st.randoms())
def test_the_order_of_answers_says_nothing_of_mapping(seen: Observations, random: object) -> None:
    shuffled = tuple(sorted(seen.mapped))
    assert classify(replace(seen, mapped=shuffled)).mapping == classify(seen).mapping
