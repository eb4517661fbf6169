"""ICMP errors: their bytes, held against scapy's own reading, and the packets that must get none."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6

from overlay.wire.packet import icmp
from tests.wire.packet.packets import ADDRESSES, TCP, UDP, Flow, internet_checksum

ICMP4, ICMP6 = 1, 58
FRAGMENT, DESTINATION_OPTIONS, AUTHENTICATION = 44, 60, 51


def with_addresses(packet: bytes, source: bytes | None = None, destination: bytes | None = None) -> bytes:
    version = packet[0] >> 4
    at, size = (12, 4) if version == 4 else (8, 16)
    source = packet[at : at + size] if source is None else source
    destination = packet[at + size : at + 2 * size] if destination is None else destination
    return packet[:at] + source + destination + packet[at + 2 * size :]


def address6(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 100, 1340])
def test_an_ipv4_error(protocol: int, size: int) -> None:
    packet = Flow(protocol=protocol).packet(bytes(size), identification=5)
    error = icmp.unreachable(packet)
    assert error is not None
    assert len(error) == min(576, 28 + len(packet))
    assert error[28:] == packet[:548]
    assert internet_checksum(error[:20]) == 0
    assert internet_checksum(error[20:]) == 0
    read = IP(error)
    assert (read.src, read.dst, read.proto, read.len, read.tos) == ("10.77.0.3", "10.77.0.2", 1, len(error), 0xC0)
    assert (read[ICMP].type, read[ICMP].code) == (3, 1)
    quoted = read[IPerror]
    assert (quoted.src, quoted.dst) == ("10.77.0.2", "10.77.0.3")
    transport = quoted[TCPerror if protocol == TCP else UDPerror]
    assert (transport.sport, transport.dport) == (40000, 443)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 100, 1340])
def test_an_ipv6_error(protocol: int, size: int) -> None:
    packet = Flow(version=6, protocol=protocol).packet(bytes(size))
    error = icmp.unreachable(packet)
    assert error is not None
    assert len(error) == min(1280, 48 + len(packet))
    assert error[48:] == packet[:1232]
    pseudo = error[8:40] + struct.pack(">II", len(error) - 40, ICMP6)
    assert internet_checksum(pseudo + error[40:]) == 0
    read = IPv6(error)
    assert (read.src, read.dst, read.nh, read.plen) == ("fd00::b", "fd00::a", 58, len(error) - 40)
    assert (read[ICMPv6DestUnreach].type, read[ICMPv6DestUnreach].code) == (1, 3)
    assert (read[IPerror6].src, read[IPerror6].dst) == ("fd00::a", "fd00::b")


def test_padding_behind_the_packet_is_not_quoted() -> None:
    packet = Flow(protocol=UDP).packet(b"short")
    assert icmp.unreachable(packet + bytes(50)) == icmp.unreachable(packet)


@pytest.mark.parametrize(
    "source",
    [bytes(4), bytes([127, 0, 0, 1]), bytes([224, 0, 0, 1]), bytes([240, 0, 0, 1]), b"\xff" * 4, bytes([0, 1, 2, 3])],
)
def test_no_error_to_a_source_that_is_no_single_ipv4_host(source: bytes) -> None:
    assert icmp.unreachable(with_addresses(Flow(protocol=UDP).packet(b""), source)) is None


@pytest.mark.parametrize("destination", [bytes([224, 0, 0, 251]), bytes([239, 255, 255, 250]), b"\xff" * 4])
def test_no_error_about_ipv4_to_many(destination: bytes) -> None:
    packet = with_addresses(Flow(protocol=UDP).packet(b""), destination=destination)
    assert not icmp.is_unicast(packet)
    assert icmp.unreachable(packet) is None


@pytest.mark.parametrize("source", [bytes(16), bytes(15) + b"\1", address6("ff02" + "0" * 27 + "1")])
def test_no_error_to_a_source_that_is_no_single_ipv6_host(source: bytes) -> None:
    assert icmp.unreachable(with_addresses(Flow(version=6, protocol=UDP).packet(b""), source)) is None


def test_no_error_about_ipv6_multicast() -> None:
    packet = with_addresses(Flow(version=6, protocol=UDP).packet(b""), destination=address6("ff02" + "0" * 26 + "fb"))
    assert not icmp.is_unicast(packet)
    assert icmp.unreachable(packet) is None


@pytest.mark.parametrize("version", [4, 6])
def test_single_hosts_are_not_many(version: int) -> None:
    assert icmp.is_unicast(Flow(version=version).packet(b""))


@pytest.mark.parametrize("kind", range(256))
def test_no_error_about_an_icmp_error(kind: int) -> None:
    """RFC 1122 §3.2.2: errors are the types 3, 4, 5, 11 and 12; what a type means that nobody defined is not known."""
    queries = {0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43}
    message = bytes([kind, 0]) + bytes(6)
    assert (icmp.unreachable(Flow(protocol=ICMP4).packet(message)) is not None) == (kind in queries)
    with_options = Flow(protocol=ICMP4, ip_extra=b"\1\1\1\0").packet(message)
    assert (icmp.unreachable(with_options) is not None) == (kind in queries)


@pytest.mark.parametrize("kind", range(256))
def test_no_error_about_an_icmpv6_error_or_redirect(kind: int) -> None:
    message = bytes([kind, 0]) + bytes(6)
    answered = kind >= 128 and kind != 137
    assert (icmp.unreachable(Flow(version=6, protocol=ICMP6).packet(message)) is not None) == answered
    behind_options = Flow(version=6, protocol=ICMP6, ip_extra=bytes(8), extension=DESTINATION_OPTIONS).packet(message)
    assert (icmp.unreachable(behind_options) is not None) == answered
    behind_authentication = Flow(
        version=6, protocol=ICMP6, ip_extra=b"\0\4" + bytes(22), extension=AUTHENTICATION
    ).packet(message)
    assert (icmp.unreachable(behind_authentication) is not None) == answered


def test_a_message_without_its_type_gets_none() -> None:
    assert icmp.unreachable(Flow(protocol=ICMP4).packet(b"")) is None
    assert icmp.unreachable(Flow(version=6, protocol=ICMP6).packet(b"")) is None


@pytest.mark.parametrize(("fields", "answered"), [(0x2000, True), (0x2001, False), (0x0001, False), (0x1F00, False)])
def test_an_error_about_the_first_ipv4_fragment_alone(fields: int, answered: bool) -> None:
    packet = bytearray(Flow(protocol=UDP).packet(bytes(100)))
    struct.pack_into(">H", packet, 6, fields)
    assert (icmp.unreachable(bytes(packet)) is not None) == answered


@pytest.mark.parametrize(("offset", "answered"), [(0, True), (1, False), (8, False), (0x1FFF, False)])
def test_an_error_about_the_first_ipv6_fragment_alone(offset: int, answered: bool) -> None:
    header = struct.pack(">BBHI", 0, 0, offset << 3 | 1, 9)
    packet = Flow(version=6, protocol=UDP, ip_extra=header, extension=FRAGMENT).packet(bytes(100))
    assert (icmp.unreachable(packet) is not None) == answered


def test_a_chain_of_headers_without_an_end_gets_none() -> None:
    chain = b"".join(bytes([DESTINATION_OPTIONS, 0]) + bytes(6) for _ in range(20))
    packet = struct.pack(">IHBB", 6 << 28, len(chain), DESTINATION_OPTIONS, 64) + b"".join(ADDRESSES[6]) + chain
    assert icmp.unreachable(packet) is None
    cut = struct.pack(">IHBB", 6 << 28, 4, DESTINATION_OPTIONS, 64) + b"".join(ADDRESSES[6]) + chain[:4]
    assert icmp.unreachable(cut) is None


@given(st.binary(max_size=100))
def test_no_error_about_an_error_of_ours(payload: bytes) -> None:
    for version in (4, 6):
        error = icmp.unreachable(Flow(version=version, protocol=UDP).packet(payload))
        assert error is not None
        assert icmp.unreachable(error) is None
