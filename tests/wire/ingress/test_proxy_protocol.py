"""PROXY headers as the protocol's paper shows them, there and back, cut anywhere, and mangled."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.ingress.proxy_protocol import (
    MAX_HEADER,
    SIGNATURE,
    ProxyHeader,
    UserTls,
    crc32c,
    encode_v1,
    encode_v2,
    parse_proxy_header,
)

V4 = ProxyHeader(("192.168.0.1", 56324), ("192.168.0.11", 443))
V6 = ProxyHeader(("2001:db8::7", 40000), ("2001:db8::1", 53), "udp")


@st.composite
def addresses(draw: st.DrawFn, version: int) -> IPv4Address | IPv6Address:
    found = draw(st.ip_addresses(v=4 if version == 4 else 6))
    assume(not isinstance(found, IPv6Address) or found.ipv4_mapped is None)  # its canonical form is another
    return found


@st.composite
def headers(draw: st.DrawFn) -> ProxyHeader:
    version = draw(st.sampled_from([4, 6]))
    ends = [(str(draw(addresses(version))), draw(st.integers(0, 65535))) for _ in range(2)]
    return ProxyHeader(
        ends[0],
        ends[1],
        draw(st.sampled_from(["tcp", "udp"])),
        draw(st.sampled_from([b"", b"h2", b"http/1.1"])),
        draw(st.sampled_from(["", "docs.example.com"])),
        draw(st.none() | st.builds(UserTls, st.sampled_from(["", "TLSv1.3"]), st.sampled_from(["", "AES128-SHA"]))),
    )


def test_v1_as_the_paper_writes_it() -> None:
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert encode_v1(V4) == line
    assert parse_proxy_header(line + b"GET / HTTP/1.1\r\n") == (V4, len(line))
    longest = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
    assert parse_proxy_header(longest) == (ProxyHeader(), len(longest))
    assert encode_v1(ProxyHeader(("192.0.2.1", 1), ("2001:db8::1", 2))) == b"PROXY UNKNOWN\r\n"
    with pytest.raises(LocalProtocolError):
        encode_v1(V6)


def test_v2_byte_by_byte() -> None:
    assert encode_v2(V4) == (
        SIGNATURE + b"\x21\x11\x00\x0c" + bytes((192, 168, 0, 1, 192, 168, 0, 11)) + struct.pack("!HH", 56324, 443)
    )
    assert encode_v2(V6)[12:16] == b"\x21\x22\x00\x24"
    named = ProxyHeader(V4.source, V4.destination, alpn=b"h2", authority="a.test")
    assert encode_v2(named)[28:] == b"\x01\x00\x02h2" + b"\x02\x00\x06a.test"
    secret = ProxyHeader(V4.source, V4.destination, tls=UserTls("TLSv1.2", "AES"))
    said = b"\x20\x00\x15" + b"\x01\x00\x00\x00\x01" + b"\x21\x00\x07TLSv1.2" + b"\x23\x00\x03AES"
    assert encode_v2(secret)[28:] == said
    plain = encode_v2(secret).replace(said, said[:3] + b"\x00" + said[4:])
    assert parse_proxy_header(plain) == (V4, len(plain)), "its flags say that there was no TLS"
    assert parse_proxy_header(SIGNATURE + b"\x20\x00\x00\x00") == (ProxyHeader(), 16), "a health check's own"
    unix = SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216)
    assert parse_proxy_header(unix) == (ProxyHeader(), len(unix))


def test_crc32c_by_its_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 9260's polynomial, as catalogues of CRCs have it
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 appendix B.4


@given(headers(), st.booleans(), st.binary(max_size=20))
def test_there_and_back(header: ProxyHeader, checksum: bool, behind: bytes) -> None:
    whole = encode_v2(header, checksum=checksum)
    assert parse_proxy_header(whole + behind) == (header, len(whole))
    if header.transport == "tcp":
        line = encode_v1(header)
        assert len(line) <= 107
        assert parse_proxy_header(line + behind) == (ProxyHeader(header.source, header.destination), len(line))


@given(headers(), st.data())
def test_a_part_says_how_much_is_needed(header: ProxyHeader, data: st.DataObject) -> None:
    for whole in (encode_v2(header), *([encode_v1(header)] if header.transport == "tcp" else [])):
        size = data.draw(st.integers(0, len(whole) - 1))
        needed = parse_proxy_header(whole[:size])
        assert isinstance(needed, int) and size < needed <= len(whole)


@given(headers(), st.data())
def test_a_checksum_sees_each_wrong_bit(header: ProxyHeader, data: st.DataObject) -> None:
    whole = encode_v2(header, checksum=True)
    at, bit = data.draw(st.integers(16, len(whole) - 8)), data.draw(st.integers(0, 7))
    wrong = bytearray(whole)
    wrong[at] ^= 1 << bit
    try:
        found = parse_proxy_header(bytes(wrong))
    except RemoteProtocolError:
        return
    pytest.fail(f"taken for {found}")


@given(headers(), st.booleans(), st.data(), st.binary(min_size=1, max_size=4))
def test_fuzz_proxy_header(header: ProxyHeader, first: bool, data: st.DataObject, piece: bytes) -> None:
    whole = encode_v1(header) if first and header.transport == "tcp" else encode_v2(header)
    at = data.draw(st.integers(0, len(whole) - 1))
    mangled = data.draw(st.just(whole[:at] + piece + whole[at + len(piece) :]) | st.binary(max_size=300))
    try:
        found = parse_proxy_header(mangled)
    except RemoteProtocolError as error:
        assert error.reason == "bad_proxy_header"
        return
    if isinstance(found, int):
        assert len(mangled) < found <= MAX_HEADER
    else:
        assert found[1] <= len(mangled)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY " + b"x" * 120,
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x41\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x13\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x11\x10\x00",
        SIGNATURE + b"\x21\x11\x00\x0e" + bytes(14),
        SIGNATURE + b"\x21\x11\x00\x0f" + bytes(12) + b"\x01\x00\x01",
        SIGNATURE + b"\x21\x11\x00\x13" + bytes(12) + b"\x20\x00\x04" + bytes(4),
        SIGNATURE + b"\x21\x11\x00\x16" + bytes(12) + b"\x20\x00\x07\x01" + bytes(4) + b"\x21\x00",
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="bad_proxy_header"):
        parse_proxy_header(data)
