"""Binding requests and answers: published vectors, round trips, and bounds on what an answer weighs."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.demux import kind_of
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import MAX_GAIN, ErrorResponse, Message, Request, Response, decode, encode, message_size
from overlay.wire.stun import attributes as wire

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

# RFC 5769: 2.1 sample request, 2.2 IPv4 response, 2.3 IPv6 response
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
IPV4_RESPONSE = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
IPV6_RESPONSE = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)


def test_vectors_of_rfc_5769() -> None:
    request = decode(REQUEST)
    # PRIORITY, USERNAME and MESSAGE-INTEGRITY must be understood by who answers, and are not.
    assert request == Request(ID, unknown=(0x0024, 0x0006, 0x0008), size=len(REQUEST))
    assert decode(IPV4_RESPONSE) == Response(ID, ("192.0.2.1", 32853))
    assert decode(IPV6_RESPONSE) == Response(ID, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))


@pytest.mark.parametrize("vector", [REQUEST, IPV4_RESPONSE, IPV6_RESPONSE])
def test_a_changed_vector_fails_its_fingerprint(vector: bytes) -> None:
    changed = vector[:40] + bytes([vector[40] ^ 1]) + vector[41:]
    with pytest.raises(RemoteProtocolError) as caught:
        decode(changed)
    assert caught.value.reason in ("stun_bad_fingerprint", "stun_bad_attribute")


ports = st.integers(1, 65535)
endpoints: st.SearchStrategy[Endpoint] = st.one_of(
    st.tuples(st.integers(1, 2**32 - 1).map(lambda number: str(IPv4Address(number))), ports),
    st.tuples(st.integers(2**100, 2**128 - 1).map(lambda number: str(IPv6Address(number))), ports),
)
ids = st.binary(min_size=12, max_size=12)
requests = st.builds(
    Request,
    ids,
    change_address=st.booleans(),
    change_port=st.booleans(),
    response_port=st.none() | ports,
)
responses = st.builds(Response, ids, endpoints, origin=st.none() | endpoints, other=st.none() | endpoints)
errors = st.builds(ErrorResponse, ids, st.integers(300, 699), st.lists(st.integers(0, 65535), max_size=20).map(tuple))


@given(st.one_of(requests, responses, errors))
def test_what_is_encoded_is_decoded(message: Message) -> None:
    data = encode(message)
    decoded = decode(data)
    if isinstance(decoded, Request):
        assert decoded.size == len(data)
        decoded = Request(decoded.transaction_id, decoded.change_address, decoded.change_port, decoded.response_port)
    assert decoded == message
    assert message_size(data[: wire.HEADER_SIZE]) == len(data)
    assert kind_of(data) == "stun"
    assert decode(memoryview(data)) is not None


@given(st.one_of(responses, errors), st.integers(20, 60))
def test_an_answer_stays_within_its_limit(message: Response | ErrorResponse, size: int) -> None:
    data = encode(message, MAX_GAIN * size)
    assert len(data) <= MAX_GAIN * size
    decoded = decode(data)
    if isinstance(message, Response):
        assert isinstance(decoded, Response)
        assert decoded.mapped == message.mapped
        assert decoded.other in (None, message.other)
        assert decoded.other is not None or message.other is None or decoded.origin is None
    else:
        assert isinstance(decoded, ErrorResponse)
        assert decoded.code == message.code


def test_the_shortest_request_gets_all_by_ipv4() -> None:
    response = Response(ID, ("203.0.113.1", 1), origin=("192.0.2.1", 2), other=("192.0.2.2", 3))
    data = encode(response, MAX_GAIN * wire.HEADER_SIZE)
    assert decode(data) == response
    assert data[-wire.FINGERPRINT_SIZE :][:2] == b"\x80\x28"


def test_our_requests_are_as_short_as_can_be() -> None:
    assert len(encode(Request(ID))) == 28
    assert len(encode(Request(ID, change_address=True, change_port=True))) == 36


def test_mapped_address_is_understood() -> None:
    body = wire.attribute(wire.MAPPED_ADDRESS, wire.pack_address(("192.0.2.7", 4711)))
    assert decode(header(0x0101, body)) == Response(ID, ("192.0.2.7", 4711))


def test_the_first_of_two_attributes_counts_and_those_behind_it_are_ignored() -> None:
    one, two = (wire.pack_address((host, 1)) for host in ("192.0.2.1", "192.0.2.2"))
    body = wire.attribute(wire.MAPPED_ADDRESS, one) + wire.attribute(wire.MAPPED_ADDRESS, two)
    assert decode(header(0x0101, body)) == Response(ID, ("192.0.2.1", 1))


def header(kind: int, body: bytes) -> bytes:
    return wire.HEADER.pack(kind, len(body), wire.MAGIC_COOKIE, ID) + body


ERROR_420 = wire.attribute(wire.ERROR_CODE, b"\0\0\x04\x14")


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "stun_short_header"),
        (REQUEST[:19], "stun_short_header"),
        (b"\x00\x03" + REQUEST[2:], "stun_bad_type"),
        (REQUEST[:4] + b"\0\0\0\0" + REQUEST[8:], "stun_bad_cookie"),
        (REQUEST[:-1], "stun_bad_length"),
        (REQUEST + b"\0", "stun_bad_length"),
        (REQUEST[:3] + b"\x57" + REQUEST[4:], "stun_bad_length"),
        (header(1, bytes(600)), "stun_bad_length"),
        (header(1, b"\x80\x01\x00\x05\x00\x00\x00\x00"), "stun_bad_attribute"),
        (header(1, wire.attribute(0x8001, b"") * 40), "stun_bad_attribute"),
        (header(1, wire.attribute(wire.CHANGE_REQUEST, b"\x06")), "stun_bad_attribute"),
        (header(1, wire.attribute(wire.RESPONSE_PORT, b"\0\0\0\0")), "stun_bad_attribute"),
        (header(1, wire.attribute(wire.FINGERPRINT, bytes(4))), "stun_bad_fingerprint"),
        (header(0x0101, b""), "stun_no_address"),
        (header(0x0101, wire.attribute(wire.MAPPED_ADDRESS, b"\0\x03\0\x01" + bytes(4))), "stun_bad_address"),
        (header(0x0101, wire.attribute(wire.MAPPED_ADDRESS, b"\0\x01\0\0\x01\x01\x01\x01")), "stun_bad_address"),
        (header(0x0101, wire.attribute(wire.MAPPED_ADDRESS, b"\0\x01\0\x01" + bytes(4))), "stun_bad_address"),
        (header(0x0101, wire.attribute(wire.XOR_MAPPED_ADDRESS, b"\0\x02" + bytes(30))), "stun_bad_address"),
        (header(0x0111, b""), "stun_no_error"),
        (header(0x0111, wire.attribute(wire.ERROR_CODE, b"\0\0\x02\0")), "stun_bad_error"),
        (header(0x0111, ERROR_420 + wire.attribute(wire.UNKNOWN_ATTRIBUTES, b"1")), "stun_bad_error"),
    ],
)
def test_hostile_messages_have_a_name(datagram: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(datagram)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "message", [Request(bytes(11)), Response(ID, ("nowhere", 1)), Response(ID, ("192.0.2.1", 65536))]
)
def test_what_cannot_be_said_is_our_own_mistake(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)
    with pytest.raises(LocalProtocolError):
        encode(Response(ID, ("192.0.2.1", 1)), 24)
