"""Addresses: in the range, each to one node only, and a released one comes back last."""

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import UserError
from overlay.server.allocation import addresses, next_host

NETWORK = IPv4Network("10.77.0.0/28")
ULA = IPv6Network("fd01:203:405::/48")
hosts = st.sets(st.integers(1, 14))


@given(hosts, st.integers(0, 14))
def test_a_free_place_is_found_as_long_as_there_is_one(taken: set[int], last: int) -> None:
    if len(taken) == 14:
        with pytest.raises(UserError) as caught:
            next_host(NETWORK, taken, last)
        assert caught.value.code == "network-full"
        return
    host = next_host(NETWORK, taken, last)
    assert host not in taken
    assert NETWORK[host] in NETWORK.hosts()


@given(st.integers(0, 14))
def test_a_released_place_rests_until_all_others_were_used(last: int) -> None:
    seen: list[int] = []
    for _ in range(14):
        last = next_host(NETWORK, set(), last)  # everybody leaves at once
        seen.append(last)
    assert sorted(seen) == list(range(1, 15))


@given(st.lists(st.sampled_from(["join", "leave"]), max_size=40))
def test_no_two_nodes_share_a_place(steps: list[str]) -> None:
    taken: list[int] = []
    last = 0
    for step in steps:
        if step == "leave" and taken:
            taken.pop(0)
        elif len(taken) < 14:
            last = next_host(NETWORK, set(taken), last)
            taken.append(last)
        assert len(set(taken)) == len(taken)


def test_both_addresses_come_from_one_place() -> None:
    assert addresses(NETWORK, ULA, 2) == ("10.77.0.2", "fd01:203:405::2")
    assert ip_address(addresses(NETWORK, ULA, 14)[1]) in ULA
