import struct

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.superpacket import split
from tests.wire.packet.packets import ACK, CWR, FIN, PSH, TCP, UDP, Flow, internet_checksum

FLOWS = [
    Flow(),
    Flow(tcp_options=b"\x01\x01\x08\x0a" + bytes(range(8))),
    Flow(ip_extra=b"\x94\x04\0\0", dont_fragment=False, traffic_class=2),
    Flow(version=6),
    Flow(version=6, ip_extra=bytes(8)),
    Flow(protocol=UDP),
    Flow(protocol=UDP, dont_fragment=False),
    Flow(version=6, protocol=UDP, hop_limit=1),
]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [8, 100, 999, 1000, 1001])
@pytest.mark.parametrize("length", [501, 1000, 1001])
def test_the_packets_are_those_that_a_stack_would_send_one_by_one(flow: Flow, size: int, length: int) -> None:
    data = bytes(index * 7 % 256 for index in range(length))
    # Identification and sequence number go round.
    numbers = {"identification": 0xFFFE, "sequence": 0xFFFFFF00}
    assert split(memoryview(flow.superpacket(data, size, **numbers))) == flow.stream(data, size, **numbers)


def test_fin_and_push_are_the_last_segments_and_cwr_the_first_ones() -> None:
    packets = split(memoryview(Flow().superpacket(b"x" * 300, 100, flags=ACK | PSH | FIN | CWR)))
    assert [packet[33] for packet in packets] == [ACK | CWR, ACK, ACK | PSH | FIN]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_checksum_still_to_be_made_is_made(flow: Flow) -> None:
    packet = flow.packet(b"hello")
    assert split(memoryview(flow.partial(packet))) == [packet]


def test_a_checksum_of_zero_is_all_ones_in_udp_and_zero_in_tcp() -> None:
    for flow, offset in ((Flow(protocol=UDP), 6), (Flow(), 16)):
        base = flow.packet(bytes(2))
        field = 20 + offset
        filler = base[field : field + 2]  # a payload equal to the checksum brings the sum to all ones
        packet = flow.packet(filler)
        assert packet[field : field + 2] == (b"\xff\xff" if flow.protocol == UDP else b"\0\0")
        assert split(memoryview(flow.partial(packet))) == [packet]


def test_the_checksum_of_any_protocol_is_made_where_the_kernel_says() -> None:
    # An encapsulated TCP segment: the offload reaches behind two IP headers.
    inner = Flow()
    packet = inner.packet(b"x" * 11)
    partial = inner.partial(packet)[10:]
    outer = Flow(protocol=4)
    frame = virtio.VIRTIO_HEADER.pack(1, 0, 60, 0, 40, 16) + outer.packet(partial)
    assert split(memoryview(frame)) == [outer.packet(packet)]


def test_packets_without_offload_stay_as_they_are() -> None:
    for packet in (Flow().packet(b"x"), Flow(protocol=1).packet(b"ping"), b"not a packet"):
        assert split(memoryview(virtio.NO_OFFLOAD + packet)) == [packet]


def test_all_checksums_of_a_full_superpacket_are_right() -> None:
    packets = split(memoryview(Flow().superpacket(bytes(range(256)) * 255, 1340)))
    assert len(packets) == 49
    for packet in packets:
        assert internet_checksum(packet[:20]) == 0
        pseudo = packet[12:20] + struct.pack(">HH", TCP, len(packet) - 20)
        assert internet_checksum(pseudo + packet[20:]) == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "short_frame"),
        (bytes(9), "short_frame"),
        (virtio.VIRTIO_HEADER.pack(1, 0, 0, 0, 20, 16) + Flow(protocol=UDP).packet(b"x" * 9), "bad_offload"),
        (virtio.VIRTIO_HEADER.pack(1, 0, 0, 0, 65535, 65535) + Flow().packet(b"x"), "bad_offload"),
        (virtio.VIRTIO_HEADER.pack(1, 1, 0, 0, 20, 16) + Flow().packet(b"x"), "bad_offload"),
        (virtio.VIRTIO_HEADER.pack(1, 1, 0, 100, 20, 16) + b"x", "short_packet"),
    ],
)
def test_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        split(memoryview(frame))
    assert caught.value.reason == reason


def test_scapy_agrees() -> None:
    from scapy.layers.inet import IP, TCP  # takes a second to import
    from scapy.packet import Raw

    for packet in split(memoryview(Flow().superpacket(b"ab" * 1000, 999, identification=5, sequence=6))):
        parsed = IP(packet)
        wanted = IP(packet)
        del wanted.chksum, wanted[TCP].chksum, wanted.len
        assert bytes(wanted) == packet
        assert len(parsed[Raw].load) in (999, 2)
