"""The network's ranges: never one that the host uses already."""

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.node.interface import Machine, Route
from overlay.server.ranges import check_range, choose_ipv4, choose_ula

TEN = IPv4Network("10.0.0.0/8")
routes_in_ten = st.lists(
    st.builds(
        lambda value, length: str(IPv4Network((int(TEN[0]) | value, length), strict=False)),
        st.integers(0, 2**24 - 1),
        st.integers(9, 32),
    ),
    max_size=20,
)


def machine(*destinations: str) -> Machine:
    return Machine(routes=tuple(Route(destination, "eth0") for destination in destinations))


@given(routes_in_ten, st.integers(0, 2**16))
def test_a_chosen_range_overlaps_nothing(routes: list[str], choice: int) -> None:
    chosen = choose_ipv4(machine("0.0.0.0/0", *routes), lambda below: choice % below)
    assert chosen.prefixlen == 16
    assert not any(chosen.overlaps(IPv4Network(route)) for route in routes)
    assert chosen.subnet_of(TEN) or all(
        any(net.overlaps(IPv4Network(route)) for route in routes) for net in TEN.subnets(new_prefix=16)
    )


def test_other_private_ranges_are_used_when_the_first_is_full() -> None:
    assert choose_ipv4(machine("10.0.0.0/8"), lambda _: 0) == IPv4Network("172.16.0.0/16")
    with pytest.raises(UserError) as caught:
        choose_ipv4(machine("10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10"), lambda _: 0)
    assert caught.value.code == "range-overlaps"


def test_a_wished_range() -> None:
    assert check_range("10.77.0.0/16", machine("10.78.0.0/16", "0.0.0.0/0")) == IPv4Network("10.77.0.0/16")
    with pytest.raises(UserError) as caught:
        check_range("10.77.0.0/16", machine("10.77.3.0/24"))
    assert caught.value.code == "range-overlaps"
    assert "10.77.3.0/24" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10.77.0.1/16",
        "10.77.0.0/30",
        "10.0.0.0/7",
        "127.0.0.0/16",
        "169.254.0.0/16",
        "224.0.0.0/8",
        "fd00::/64",
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UserError) as caught:
        check_range(text, Machine())
    assert (caught.value.code, caught.value.exit_code) == ("range-invalid", Exit.USAGE)


@given(st.binary(min_size=5, max_size=5))
def test_the_ula_prefix_is_rfc_4193s(random: bytes) -> None:
    network = choose_ula(lambda size: random[:size])
    assert network.prefixlen == 48
    assert network.subnet_of(IPv6Network("fd00::/8"))
    assert network.network_address.packed[1:6] == random
