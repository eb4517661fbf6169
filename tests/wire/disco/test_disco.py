"""Disco datagrams: layout byte for byte, round trips, and what is refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt, crypto_scalarmult, crypto_scalarmult_base

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.disco import (
    MAX_OFFERS,
    MAX_PING_SIZE,
    MIN_DATAGRAM_SIZE,
    CallMe,
    DiscoKey,
    Message,
    Offer,
    Origin,
    Ping,
    Pong,
    sender,
)
from overlay.wire.endpoint import Endpoint, canonical_endpoint

A_PRIVATE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4cda3a6f5e2f5a2e3ec5d2f33c2a40")
B_PRIVATE = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e040")
A_PUBLIC = crypto_scalarmult_base(A_PRIVATE)
B_PUBLIC = crypto_scalarmult_base(B_PRIVATE)
A_TO_B = DiscoKey(A_PRIVATE, B_PUBLIC)
B_TO_A = DiscoKey(B_PRIVATE, A_PUBLIC)
TXID = bytes(range(12))
NONCE = bytes(range(100, 124))
HEADER_OF_7 = bytes([7, 1, 0, 0, 7, 0, 0, 0])

txids = st.binary(min_size=12, max_size=12)
nonces = st.binary(min_size=24, max_size=24)
numbers = st.integers(1, 2**32 - 1)
observed: st.SearchStrategy[Endpoint] = st.builds(
    lambda address, port: canonical_endpoint(str(address), port),
    st.ip_addresses().filter(lambda address: int(address) != 0),
    st.integers(1, 65535),
)
origins: st.SearchStrategy[Origin] = st.sampled_from(("interface", "observed", "mapped", "manual", "predicted"))
calls = st.builds(
    CallMe,
    st.binary(min_size=8, max_size=8),
    st.booleans(),
    st.sampled_from(("udp", "tcp")),
    st.integers(0, 60_000_000).map(lambda number: number / 1e6),
    st.binary(max_size=32),
    st.lists(st.builds(Offer, observed, origins), max_size=16).map(tuple),
)
messages: st.SearchStrategy[Message] = (
    st.builds(Ping, txids, st.integers(MIN_DATAGRAM_SIZE, 3000)) | st.builds(Pong, txids, observed) | calls
)


def boxed(payload: bytes, header: bytes = HEADER_OF_7) -> bytes:
    """A datagram from A to B made by hand, from the page alone."""
    key = hashlib.blake2s(b"overlay disco v1" + crypto_scalarmult(A_PRIVATE, B_PUBLIC)).digest()
    return header + NONCE + crypto_aead_xchacha20poly1305_ietf_encrypt(payload, header, NONCE, key)


def reason(datagram: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        B_TO_A.open(datagram)
    return caught.value.reason


def test_layout_of_a_ping() -> None:
    assert A_TO_B.seal(Ping(TXID), 7, NONCE) == boxed(b"\x01" + TXID + bytes(18))


@pytest.mark.parametrize(
    ("endpoint", "packed"),
    [
        (("192.0.2.1", 41641), "00000000000000000000ffffc0000201" + "a9a2"),
        (("2001:db8::1", 443), "20010db8000000000000000000000001" + "bb01"),
    ],
)
def test_layout_of_a_pong(endpoint: Endpoint, packed: str) -> None:
    assert A_TO_B.seal(Pong(TXID, endpoint), 7, NONCE) == boxed(b"\x02" + TXID + bytes.fromhex(packed))


def test_layout_of_a_call() -> None:
    call = CallMe(
        bytes(range(8)),
        True,
        "tcp",
        0.0105,
        b"nat",
        (Offer(("192.0.2.1", 41641), "mapped"), Offer(("::2", 1), "interface")),
    )
    offers = "02" + "00000000000000000000ffffc0000201" + "a9a2" + "00" + "00000000000000000000000000000002" + "0100"
    payload = b"\x03\x03" + bytes(range(8)) + bytes.fromhex("04290000") + b"\x03nat" + b"\x02" + bytes.fromhex(offers)
    assert A_TO_B.seal(call, 7, NONCE) == boxed(payload)


def test_a_call_has_so_many_endpoints_and_knows_so_many_origins() -> None:
    many = tuple(Offer(("192.0.2.1", port), "observed") for port in range(1, 40))
    opened = B_TO_A.open(A_TO_B.seal(CallMe(bytes(8), False, "udp", offers=many), 7, NONCE))
    assert isinstance(opened, CallMe) and opened.offers == many[:MAX_OFFERS]
    strange = b"\x03" + bytes(14) + b"\x01" + b"\x09" + bytes(15) + b"\x01\x01\x00"
    assert B_TO_A.open(boxed(strange)) == CallMe(bytes(8), False, "udp")


@given(messages, numbers, nonces)
def test_what_is_sealed_is_opened_by_the_peer(message: Message, number: int, nonce: bytes) -> None:
    datagram = A_TO_B.seal(message, number, nonce)
    assert sender(datagram) == number
    assert B_TO_A.open(datagram) == message
    assert B_TO_A.open(memoryview(bytearray(datagram))) == message
    assert len(datagram) >= MIN_DATAGRAM_SIZE


def test_a_ping_has_the_size_wished_for_and_never_less_than_its_pong() -> None:
    assert len(A_TO_B.seal(Ping(TXID), 7, NONCE)) == len(A_TO_B.seal(Pong(TXID, ("::1", 1)), 7, NONCE))
    for size in (MIN_DATAGRAM_SIZE, 1280, 1444, MAX_PING_SIZE):
        datagram = A_TO_B.seal(Ping(TXID, size), 7, NONCE)
        assert len(datagram) == size
        assert B_TO_A.open(datagram) == Ping(TXID, size)


@pytest.mark.parametrize("payload", [b"\x01" + TXID, b"\x01" + TXID + b"more"])
def test_a_ping_may_be_short_or_say_more(payload: bytes) -> None:
    message = B_TO_A.open(boxed(payload))
    assert isinstance(message, Ping)
    assert message.txid == TXID


def test_a_pong_may_say_more() -> None:
    payload = b"\x02" + TXID + bytes(10) + b"\xff\xff\x01\x02\x03\x04\x05\x00"
    assert B_TO_A.open(boxed(payload + b"and more")) == Pong(TXID, ("1.2.3.4", 5))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x00", "disco_unknown_message"),
        (b"\x04" + TXID, "disco_unknown_message"),
        (b"\x03" + bytes(13), "disco_short_message"),
        (b"\x03" + bytes(13) + b"\x02n", "disco_short_message"),
        (b"\x03" + bytes(14) + b"\x01" + bytes(18), "disco_short_message"),
        (b"\x03" + bytes(14) + b"\x01" + bytes(19), "disco_bad_endpoint"),
        (b"\x03" + bytes(14) + b"\x11" + bytes(19 * 17), "disco_too_many"),
        (b"\x03" + bytes(13) + b"\x21" + bytes(40), "disco_too_many"),
        (b"\x01" + TXID[:-1], "disco_short_message"),
        (b"\x02" + TXID + bytes(10) + b"\xff\xff\x01\x02\x03\x04\x05", "disco_short_message"),
        (b"\x02" + TXID + bytes(10) + b"\xff\xff\x01\x02\x03\x04\x00\x00", "disco_bad_endpoint"),
        (b"\x02" + TXID + bytes(16) + b"\x01\x00", "disco_bad_endpoint"),
    ],
)
def test_payloads_that_are_refused(payload: bytes, expected: str) -> None:
    assert reason(boxed(payload)) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (bytes([6, 1, 0, 0, 7, 0, 0, 0]), "disco_bad_type"),
        (bytes([7, 1, 1, 0, 7, 0, 0, 0]), "disco_bad_type"),
        (bytes([7, 2, 0, 0, 7, 0, 0, 0]), "disco_bad_version"),
        (bytes([7, 1, 0, 0, 0, 0, 0, 0]), "disco_bad_sender"),
    ],
)
def test_headers_that_are_refused_before_the_box_is_opened(header: bytes, expected: str) -> None:
    datagram = boxed(b"\x01" + TXID, header)
    assert reason(datagram) == expected
    with pytest.raises(RemoteProtocolError, match=expected):
        sender(datagram)


def test_truncated_datagrams() -> None:
    datagram = boxed(b"\x01" + TXID)
    for size in range(len(datagram)):
        assert reason(datagram[:size]) in ("disco_short_header", "bad_tag")


def test_an_empty_box() -> None:
    assert reason(boxed(b"")) == "disco_short_header"


@given(st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    datagram = bytearray(A_TO_B.seal(Ping(TXID), 7, NONCE))
    at = data.draw(st.integers(4, len(datagram) - 1))
    datagram[at] ^= data.draw(st.integers(1, 255))
    assert reason(bytes(datagram)) in ("bad_tag", "disco_bad_sender")


def test_the_number_under_the_box_stops_a_reflection() -> None:
    """B's datagram sent back to B names B, and cannot be made to name A."""
    datagram = B_TO_A.seal(Ping(TXID), 8, NONCE)
    assert sender(datagram) == 8
    assert reason(datagram[:4] + HEADER_OF_7[4:] + datagram[8:]) == "bad_tag"


def test_a_strangers_datagram() -> None:
    stranger = DiscoKey(bytes([8]) * 31 + b"\x40", B_PUBLIC)
    assert reason(stranger.seal(Ping(TXID), 7, NONCE)) == "bad_tag"


def test_a_peer_whose_key_is_a_point_of_low_order_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="low_order_point"):
        DiscoKey(A_PRIVATE, bytes(32))


def test_the_key_shows_no_secret() -> None:
    assert repr(A_TO_B) == "<DiscoKey>"


@pytest.mark.parametrize(
    ("message", "nonce"),
    [
        (CallMe(b"short", False, "udp"), NONCE),
        (CallMe(bytes(8), False, "udp", nat=bytes(33)), NONCE),
        (Ping(b"short"), NONCE),
        (Ping(TXID, MAX_PING_SIZE + 1), NONCE),
        (Ping(TXID), NONCE[1:]),
    ],
)
def test_misuse(message: Message, nonce: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        A_TO_B.seal(message, 7, nonce)


@pytest.mark.parametrize("number", [-1, 0, 2**32])
def test_a_sender_has_a_number(number: int) -> None:
    with pytest.raises(LocalProtocolError):
        A_TO_B.seal(Ping(TXID), number, NONCE)
