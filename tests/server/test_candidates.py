"""Endpoints that a node says it has."""

from ipaddress import IPv4Network, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st

from overlay.server.candidates import usable_endpoints
from overlay.wire.endpoint import parse_endpoint

RANGES = (IPv4Network("10.77.0.0/16"), IPv6Network("fd01:203:405::/48"))


def test_what_cannot_be_another_machines_endpoint_is_left_out() -> None:
    bad = ["127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "224.0.0.1:1", "[fe80::1]:1", "10.77.3.4:1", "[fd01:203:405::9]:1"]
    good = ["192.0.2.1:41641", "[2001:db8::1]:41641", "10.78.0.1:5"]
    assert usable_endpoints([*bad, *good, "nonsense", "192.0.2.1:0"], RANGES, 16) == (tuple(good), len(bad) + 2)


def test_they_are_told_once_each_and_not_endlessly() -> None:
    assert usable_endpoints(["192.0.2.1:1"] * 5, RANGES, 16) == (("192.0.2.1:1",), 0)
    kept, left_out = usable_endpoints([f"192.0.2.1:{port}" for port in range(1, 101)], RANGES, 16)
    assert (len(kept), left_out) == (16, 84)


@given(st.lists(st.one_of(st.text(), st.from_regex(r"[0-9.:\[\]a-f]{1,40}:[0-9]{1,6}", fullmatch=True)), max_size=30))
def test_whatever_comes_what_is_kept_is_usable(texts: list[str]) -> None:
    kept, left_out = usable_endpoints(texts, RANGES, 16)
    assert len(kept) <= 16 and len(kept) + left_out <= len(texts)
    for text in kept:
        host, _ = parse_endpoint(text)
        assert not ip_address(host).is_loopback
