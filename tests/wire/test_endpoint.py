"""Endpoints have one canonical form, and what is not one is refused with a sentence."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.endpoint import canonical_endpoint, format_endpoint, parse_endpoint

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(ADDRESSES, st.integers(1, 65535))
def test_format_and_parse_are_inverse(address: IPv4Address | IPv6Address, port: int) -> None:
    endpoint = canonical_endpoint(str(address), port)
    assert parse_endpoint(format_endpoint(endpoint)) == endpoint


def test_mapped_addresses_and_zones_are_folded() -> None:
    assert canonical_endpoint("::ffff:192.0.2.1", 7) == ("192.0.2.1", 7)
    assert canonical_endpoint("fe80::1%eth0", 7) == ("fe80::1", 7)


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:٣", "::1:443", "a:1", ":5"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


@given(st.text(max_size=40))
def test_fuzz_any_text_parses_or_is_a_value_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return
    assert parse_endpoint(format_endpoint(endpoint)) == endpoint
