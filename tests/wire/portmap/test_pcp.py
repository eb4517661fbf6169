"""PCP: the messages of RFC 6887 §7, §11 and §14, byte for byte, and §8.5's rule for the epoch."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.portmap.pcp import (
    Address,
    Announced,
    Mapped,
    Refused,
    Result,
    Transport,
    announce_request,
    epoch_lost,
    map_request,
    parse_response,
)

CLIENT = IPv4Address("192.168.1.2")
EXTERNAL = IPv4Address("203.0.113.7")
NONCE = bytes(range(12))
_CLIENT = "00000000 00000000 0000ffff c0a80102"
_EXTERNAL = "00000000 00000000 0000ffff cb007107"
_HEADER = "0281 00 00 00001c20 00000e10 000000000000000000000000"
_BODY = f"{NONCE.hex()} 11000000 a2a9 c001 {_EXTERNAL}"


def test_announce() -> None:
    assert announce_request(CLIENT) == bytes.fromhex(f"02000000 00000000 {_CLIENT}")
    response = bytes.fromhex("02800000 00000000 00000e10 000000000000000000000000")
    assert parse_response(response) == Announced(3600)


def test_map_requests() -> None:
    asked = map_request(CLIENT, NONCE, "udp", 41641, lifetime=7200)
    any_address = "00000000 00000000 0000ffff 00000000"
    assert asked == bytes.fromhex(f"02010000 00001c20 {_CLIENT} {NONCE.hex()} 11000000 a2a9 0000 {any_address}")
    renewed = map_request(CLIENT, NONCE, "tcp", 41641, external_port=49153, external_address=EXTERNAL, lifetime=7200)
    assert renewed == bytes.fromhex(f"02010000 00001c20 {_CLIENT} {NONCE.hex()} 06000000 a2a9 c001 {_EXTERNAL}")
    assert len(asked) == len(renewed) == 60


@pytest.mark.parametrize(
    ("nonce", "internal", "external", "lifetime"),
    [
        (b"", 1, 1, 1),
        (NONCE, 0, 1, 1),
        (NONCE, 65536, 1, 1),
        (NONCE, 1, 65536, 1),
        (NONCE, 1, 1, -1),
        (NONCE, 1, 1, 2**32),
    ],
)
def test_what_is_never_asked(nonce: bytes, internal: int, external: int, lifetime: int) -> None:
    with pytest.raises(LocalProtocolError):
        map_request(CLIENT, nonce, "udp", internal, external_port=external, lifetime=lifetime)


def test_mapped() -> None:
    expected = Mapped(3600, NONCE, "udp", 41641, 49153, EXTERNAL, 7200)
    assert parse_response(bytes.fromhex(_HEADER + _BODY)) == expected
    option = "02000004 00000000"
    assert parse_response(bytes.fromhex(_HEADER + _BODY + option)) == expected


def test_refused() -> None:
    header = "0281 00 0c 0000001e 00000e10 000000000000000000000000"
    assert parse_response(bytes.fromhex(header + _BODY)) == Refused(3600, Result.ADDRESS_MISMATCH, 30, NONCE)
    assert parse_response(bytes.fromhex(header)) == Refused(3600, Result.ADDRESS_MISMATCH, 30, None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "pcp_bad_size"),
        (_HEADER, "pcp_bad_size"),
        (_HEADER + _BODY + "00", "pcp_bad_size"),
        (_HEADER + _BODY + "00" * 1100, "pcp_bad_size"),
        ("00" + _HEADER[2:] + _BODY, "pcp_bad_version"),
        ("0201" + _HEADER[4:] + _BODY, "pcp_bad_opcode"),
        ("0282" + _HEADER[4:] + _BODY, "pcp_bad_opcode"),
        (_HEADER + _BODY.replace("11000000", "21000000"), "pcp_bad_protocol"),
        (_HEADER + _BODY.replace("c001", "0000"), "pcp_bad_port"),
        (_HEADER + _BODY.replace("a2a9", "0000"), "pcp_bad_port"),
    ],
)
def test_what_is_no_response(message: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_response(bytes.fromhex(message))
    assert caught.value.reason == reason


_ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6).filter(lambda each: IPv6Address(each).ipv4_mapped is None)


@given(
    st.binary(min_size=12, max_size=12),
    st.sampled_from(["udp", "tcp"]),
    st.integers(1, 65535),
    st.integers(1, 65535),
    _ADDRESSES,
    st.integers(1, 2**32 - 1),
)
def test_a_server_that_gives_what_was_asked(
    nonce: bytes, transport: Transport, internal: int, external: int, address: Address, lifetime: int
) -> None:
    request = map_request(
        CLIENT, nonce, transport, internal, external_port=external, external_address=address, lifetime=lifetime
    )
    response = b"\x02\x81\x00\x00" + request[4:8] + (7).to_bytes(4, "big") + bytes(12) + request[24:]
    assert parse_response(response) == Mapped(7, nonce, transport, internal, external, address, lifetime)


@pytest.mark.parametrize(
    ("server", "client", "lost"),
    [
        (0, 0.0, False),
        (-1, 0.1, False),  # overtaken on the way
        (-2, 0.1, True),
        (3600, 3600.0, False),
        (3400, 3600.0, False),  # a clock that is 1/16 slow
        (3300, 3600.0, True),
        (3900, 3600.0, True),
        (2, 0.0, False),
        (5, 0.0, True),
        (10, 3600.0, True),  # started anew, and has run for longer than before already
    ],
)
def test_epoch(server: int, client: float, lost: bool) -> None:
    assert epoch_lost(5000, 100.0, 5000 + server, 100.0 + client) is lost


@given(st.integers(0, 2**31), st.floats(0, 1e6), st.integers(0, 10**6))
def test_an_epoch_in_step_with_our_clock_is_never_lost(epoch: int, at: float, elapsed: int) -> None:
    assert not epoch_lost(epoch, at, epoch + elapsed, at + elapsed)
