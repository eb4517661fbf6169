import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip
from tests.wire.packet.packets import ADDRESSES, UDP, Flow


@pytest.mark.parametrize("version", [4, 6])
def test_addresses_and_length(version: int) -> None:
    packet = Flow(version=version).packet(b"x" * 100)
    assert (ip.source(packet), ip.destination(packet)) == ADDRESSES[version]
    assert ip.total_length(packet) == len(packet)
    assert ip.parse(packet) == (version, 6, 20 if version == 4 else 40, len(packet))


@pytest.mark.parametrize("version", [4, 6])
def test_trim_cuts_the_padding_of_a_transport(version: int) -> None:
    packet = Flow(version=version, protocol=UDP).packet(b"x")
    padded = memoryview(packet + bytes(11))
    assert ip.trim(padded) == packet
    assert ip.parse(padded).length == len(packet)


def test_options_move_the_transport_header() -> None:
    packet = Flow(ip_extra=b"\x94\x04\0\0").packet(b"x")  # router alert, RFC 2113
    assert ip.parse(packet).transport == 24


@pytest.mark.parametrize("extension", [0, 43, 60])
def test_extension_headers_move_the_transport_header(extension: int) -> None:
    packet = Flow(version=6, protocol=UDP, ip_extra=bytes(8), extension=extension).packet(b"x")
    assert ip.parse(packet) == (6, UDP, 48, len(packet))


def test_an_authentication_header_counts_in_words_of_four_bytes() -> None:
    header = b"\0\x04" + bytes(22)  # RFC 4302 §2.2: 24 bytes are 6 words, less 2
    packet = Flow(version=6, protocol=UDP, ip_extra=header, extension=51).packet(b"x")
    assert ip.parse(packet).transport == 64


@pytest.mark.parametrize("field", [0x2000, 0x0001, 0x1FFF])
def test_a_fragment_has_no_transport_header(field: int) -> None:
    packet = bytearray(Flow().packet(b"x" * 40))
    packet[6:8] = field.to_bytes(2, "big")
    assert ip.parse(packet).transport == 0
    assert ip.flow_key(packet) is None


def test_an_ipv6_fragment_has_no_transport_header() -> None:
    packet = Flow(version=6, protocol=UDP, ip_extra=bytes(8), extension=44).packet(b"x")
    assert ip.parse(packet) == (6, 44, 0, len(packet))


def test_other_protocols_have_no_transport_header() -> None:
    icmp = Flow(protocol=1).packet(b"\x08\0\xf7\xff\0\0\0\0")
    assert ip.parse(icmp) == (4, 1, 0, 28)
    assert ip.flow_key(icmp) is None


def test_a_chain_of_too_many_extension_headers_has_no_transport_header() -> None:
    chain = b"".join(b"\x3c\0" + bytes(6) for _ in range(ip.MAX_EXTENSIONS))
    flow = Flow(version=6, protocol=60, ip_extra=chain)
    assert ip.parse(flow.packet(b"\x11\0" + bytes(30))).transport == 0


def test_flow_key_tells_flows_and_directions_apart() -> None:
    keys = {
        ip.flow_key(Flow(version=version, protocol=protocol, ports=ports).packet(b"x"))
        for version in (4, 6)
        for protocol in (6, 17)
        for ports in ((1, 2), (2, 1), (1, 3))
    }
    assert len(keys) == 12
    assert None not in keys
    assert ip.flow_key(Flow().packet(b"x")) == ip.flow_key(Flow(hop_limit=3).packet(b"yy", sequence=9))


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "short_packet"),
        (b"\x45" + bytes(18), "short_packet"),
        (b"\x60" + bytes(38), "short_packet"),
        (b"\x05" + bytes(40), "bad_ip_version"),
        (b"\xf5" + bytes(40), "bad_ip_version"),
        (b"\x45\0\0\x13" + bytes(16), "bad_ip_length"),  # shorter than its header
        (b"\x45\0\0\x15" + bytes(16), "bad_ip_length"),  # longer than what came
        (b"\x44\0\0\x14" + bytes(16), "bad_ip_length"),  # a header of 16 bytes
        (b"\x4f\0\0\x14" + bytes(16), "bad_ip_length"),  # options that are not there
        (b"\x60\0\0\0\0\x01" + bytes(34), "bad_ip_length"),
    ],
)
def test_refused(packet: bytes, reason: str) -> None:
    for function in (ip.parse, ip.total_length, ip.source, ip.destination, ip.flow_key):
        with pytest.raises(RemoteProtocolError) as caught:
            function(packet)
        assert caught.value.reason == reason


@pytest.mark.parametrize("header", [b"", b"\x11", b"\x11\x01" + bytes(6)])
def test_an_extension_header_that_runs_out_of_the_packet_is_refused(header: bytes) -> None:
    packet = b"\x60\0\0\0" + len(header).to_bytes(2, "big") + b"\x3c\x40" + b"".join(ADDRESSES[6]) + header
    with pytest.raises(RemoteProtocolError) as caught:
        ip.parse(packet)
    assert caught.value.reason == "bad_extension_header"
