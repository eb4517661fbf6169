"""NAT-PMP: the messages of RFC 6886 §3, byte for byte."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.portmap import LIFETIME
from overlay.wire.portmap.nat_pmp import (
    ExternalAddress,
    Mapped,
    Refused,
    Result,
    Transport,
    external_address_request,
    mapping_request,
    parse_response,
    removal_request,
)


def test_requests() -> None:
    assert external_address_request() == bytes.fromhex("0000")
    assert mapping_request("udp", 41641, 0, LIFETIME) == bytes.fromhex("00010000 a2a9 0000 00001c20")
    assert mapping_request("tcp", 1, 65535, 1) == bytes.fromhex("00020000 0001 ffff 00000001")
    assert removal_request("udp", 41641) == bytes.fromhex("00010000 a2a9 0000 00000000")


@pytest.mark.parametrize(
    ("internal", "external", "lifetime"),
    [(0, 0, 1), (65536, 0, 1), (1, -1, 1), (1, 65536, 1), (1, 1, 0), (1, 1, 2**32)],
)
def test_what_is_never_asked(internal: int, external: int, lifetime: int) -> None:
    with pytest.raises(LocalProtocolError):
        mapping_request("udp", internal, external, lifetime)


def test_all_mappings_of_the_host_are_never_removed_at_once() -> None:
    with pytest.raises(LocalProtocolError):
        removal_request("udp", 0)


def test_responses() -> None:
    address = parse_response(bytes.fromhex("00800000 00000e10 cb007107"))
    assert address == ExternalAddress(3600, IPv4Address("203.0.113.7"))
    mapped = parse_response(bytes.fromhex("00810000 00000e10 a2a9 c001 00001c20"))
    assert mapped == Mapped(3600, "udp", 41641, 49153, 7200)
    removed = parse_response(bytes.fromhex("00820000 00000001 a2a9 0000 00000000"))
    assert removed == Mapped(1, "tcp", 41641, 0, 0)


@pytest.mark.parametrize("tail", ["", "00000000", "a2a9000000000000"])
def test_refusals_of_any_length(tail: str) -> None:
    refused = parse_response(bytes.fromhex("00810002 00000e10" + tail))
    assert refused == Refused(3600, Result.NOT_AUTHORIZED, "udp")


def test_the_answer_of_a_gateway_of_another_version() -> None:
    assert parse_response(bytes.fromhex("00800001 00000000")) == Refused(0, Result.UNSUPPORTED_VERSION, None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "nat_pmp_bad_size"),
        ("0080000000000e", "nat_pmp_bad_size"),
        ("0080000000000e10", "nat_pmp_bad_size"),
        ("0080000000000e10cb00710700", "nat_pmp_bad_size"),
        ("0081000000000e10a2a9c00100001c2000", "nat_pmp_bad_size"),
        ("0081000000000e10a2a9c001", "nat_pmp_bad_size"),
        ("0280000000000e10cb007107", "nat_pmp_bad_version"),
        ("0000000000000e10cb007107", "nat_pmp_bad_opcode"),
        ("0083000000000e10a2a9c00100001c20", "nat_pmp_bad_opcode"),
        ("0081000000000e10a2a9000000001c20", "nat_pmp_bad_port"),
        ("0081000000000e100000c00100001c20", "nat_pmp_bad_port"),
    ],
)
def test_what_is_no_response(message: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_response(bytes.fromhex(message))
    assert caught.value.reason == reason


@given(st.sampled_from(["udp", "tcp"]), st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 2**32 - 1))
def test_a_gateway_that_gives_what_was_asked(transport: Transport, internal: int, external: int, lifetime: int) -> None:
    request = mapping_request(transport, internal, external, lifetime)
    response = bytes((request[0], request[1] | 128)) + bytes(2) + (7).to_bytes(4, "big") + request[4:]
    assert parse_response(response) == Mapped(7, transport, internal, external, lifetime)
