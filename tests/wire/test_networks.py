"""Who may come by lists of networks: as written, in both families, mapped addresses, and against a plain reading."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.endpoint import canonical_endpoint
from overlay.wire.networks import NetworkLists, parse_network


@pytest.mark.parametrize(
    ("allow", "deny", "host", "admitted"),
    [
        ((), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.2.1", True),
        (("192.0.2.77/24",), (), "192.0.2.1", True),  # bits behind the prefix do not count
        (("192.0.2.0/24",), (), "192.0.3.1", False),
        (("192.0.2.0/24",), (), "2001:db8::1", False),
        (("192.0.2.0/24",), ("192.0.2.1",), "192.0.2.1", False),
        (("192.0.2.1",), ("192.0.2.0/24",), "192.0.2.1", False),  # deny wins, however wide it is
        ((), ("0.0.0.0/0",), "2001:db8::1", True),
        ((), ("::/0",), "192.0.2.1", True),
        (("2001:db8::/32",), (), "2001:db8:1::1", True),
        (("::ffff:192.0.2.0/120",), (), "192.0.2.9", True),
        (("::ffff:192.0.2.9",), (), "192.0.2.9", True),
    ],
)
def test_who_may_come(allow: tuple[str, ...], deny: tuple[str, ...], host: str, *, admitted: bool) -> None:
    lists = NetworkLists(allow, deny)
    assert lists.admits(host) is admitted and lists.empty is not bool(allow or deny)


def test_a_mapped_address_is_the_one_in_it() -> None:
    lists = NetworkLists(deny=("192.0.2.0/24",))
    assert not lists.admits(canonical_endpoint("::ffff:192.0.2.7", 1)[0])
    assert str(parse_network("::ffff:0:0/96")) == "0.0.0.0/0" and str(parse_network("::/0")) == "::/0"


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=5),
    st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=5),
    st.integers(0, 255),
)
def test_as_a_plain_reading_has_it(allow: list[tuple[int, int]], deny: list[tuple[int, int]], last: int) -> None:
    def networks(wanted: list[tuple[int, int]]) -> list[IPv4Network]:
        return [IPv4Network((f"198.51.100.{byte}", length), strict=False) for byte, length in wanted]

    address = IPv4Address(f"198.51.100.{last}")
    expected = (not allow or any(address in each for each in networks(allow))) and not any(
        address in each for each in networks(deny)
    )
    lists = NetworkLists(map(str, networks(allow)), map(str, networks(deny)))
    assert lists.admits(str(address)) == expected


@given(st.one_of(st.text(max_size=30), st.ip_addresses().map(str)))
def test_whatever_is_written_as_a_network(text: str) -> None:
    try:
        network = parse_network(text)
    except ValueError:
        return
    assert parse_network(str(network)) == network
    assert NetworkLists((text,)).admits(str(canonical_endpoint(str(network.network_address), 1)[0]))
