import struct

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from tests.wire.packet.packets import TCP, UDP, Flow

FLOWS = [Flow(version=version, protocol=protocol) for version in (4, 6) for protocol in (TCP, UDP)]
UNUSUAL = [
    Flow(ip_extra=b"\x94\x04\0\0"),
    Flow(tcp_options=b"\x01\x01\x08\x0a" + bytes(8)),
    Flow(version=6, ip_extra=bytes(8)),
    Flow(version=6, protocol=UDP, ip_extra=bytes(16)[:1] + b"\x01" + bytes(14)),
]


def check(frame: bytes) -> tuple[int, ...]:
    """Validate a frame; its virtio-net header as the kernel will see it."""
    writable = memoryview(bytearray(frame))
    virtio.validate(writable[:10], writable[10:])
    assert writable[10:] == frame[10:]
    fields: tuple[int, ...] = virtio.VIRTIO_HEADER.unpack_from(writable)
    return fields


def refused(frame: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        check(frame)
    return caught.value.reason


def changed(frame: bytes, **fields: int) -> bytes:
    names = ("flags", "gso_type", "header_length", "gso_size", "checksum_start", "checksum_offset")
    values = dict(zip(names, virtio.VIRTIO_HEADER.unpack_from(frame), strict=True)) | fields
    return virtio.VIRTIO_HEADER.pack(*values.values()) + frame[10:]


@pytest.mark.parametrize("flow", FLOWS + UNUSUAL)
def test_what_a_kernel_makes_passes_unchanged(flow: Flow) -> None:
    superpacket = flow.superpacket(b"x" * 5000, 1000)
    assert check(superpacket) == virtio.VIRTIO_HEADER.unpack_from(superpacket)
    single = flow.partial(flow.packet(b"x" * 100))
    assert check(single) == virtio.VIRTIO_HEADER.unpack_from(single)
    plain = virtio.NO_OFFLOAD + flow.packet(b"x" * 100)
    assert check(plain) == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_header_length_is_made_true(flow: Flow) -> None:
    frame = flow.superpacket(b"x" * 5000, 1000)
    assert check(changed(frame, header_length=65535)) == virtio.VIRTIO_HEADER.unpack_from(frame)


def test_fields_without_a_meaning_are_cleared() -> None:
    frame = virtio.VIRTIO_HEADER.pack(virtio.DATA_VALID, 0, 9, 9, 9, 9) + Flow().packet(b"x")
    assert check(frame) == (0, 0, 0, 0, 0, 0)


def test_a_superpacket_of_one_segment_is_none() -> None:
    frame = Flow().superpacket(b"x" * 1000, 1000)
    assert check(frame) == (1, 0, 40, 0, 20, 16)


def test_congestion_signal_only_with_tcp() -> None:
    frame = Flow().superpacket(b"x" * 5000, 1000)
    assert check(changed(frame, gso_type=virtio.GSO_TCPV4 | virtio.GSO_ECN))[1] == 0x81
    frame = Flow(protocol=UDP).superpacket(b"x" * 5000, 1000)
    assert refused(changed(frame, gso_type=virtio.GSO_UDP_L4 | virtio.GSO_ECN)) == "bad_offload"


@pytest.mark.parametrize("flow", FLOWS + UNUSUAL)
def test_a_lie_is_refused(flow: Flow) -> None:
    frame = flow.superpacket(b"x" * 5000, 1000)
    true_type = frame[1]
    for gso_type in range(256):
        if gso_type not in (0, true_type, true_type | (0x80 if flow.protocol == TCP else 0)):
            assert refused(changed(frame, gso_type=gso_type)) == "bad_offload"
    for flags in range(4, 256):
        assert refused(changed(frame, flags=flags)) == "bad_offload"
    assert refused(changed(frame, flags=0)) == "bad_offload"  # segmentation needs the checksum made
    assert refused(changed(frame, flags=virtio.DATA_VALID)) == "bad_offload"
    for start in (0, flow.transport() - 1, flow.transport() + 1, len(frame) - 12, 65535):
        assert refused(changed(frame, checksum_start=start)) == "bad_offload"
    for offset in (0, 22 - frame[8], 65535):
        assert refused(changed(frame, checksum_offset=offset)) == "bad_offload"
    assert refused(changed(frame, gso_size=0)) == "bad_offload"
    assert refused(changed(frame, gso_size=7)) == "bad_offload"  # TCP: under the least; UDP: 715 datagrams


@pytest.mark.parametrize("flow", [Flow(), Flow(protocol=UDP)])
def test_fragments_take_no_offload(flow: Flow) -> None:
    frame = bytearray(flow.superpacket(b"x" * 5000, 1000))
    struct.pack_into(">H", frame, 16, 0x2000)
    assert refused(bytes(frame)) == "bad_offload"
    assert check(virtio.NO_OFFLOAD + frame[10:]) == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_other_protocols_pass_without_offload_only(version: int) -> None:
    packet = Flow(version=version, protocol=132).packet(b"x" * 100)
    assert check(virtio.NO_OFFLOAD + packet) == (0, 0, 0, 0, 0, 0)
    start = 20 if version == 4 else 40
    assert refused(virtio.VIRTIO_HEADER.pack(1, 0, 0, 0, start, 8) + packet) == "bad_offload"


def test_ipv6_fragment_passes_without_offload() -> None:
    packet = Flow(version=6, protocol=UDP, ip_extra=bytes(8), extension=44).packet(b"x" * 100)
    assert check(virtio.NO_OFFLOAD + packet) == (0, 0, 0, 0, 0, 0)
    assert refused(virtio.VIRTIO_HEADER.pack(1, 0, 56, 0, 48, 6) + packet) == "bad_offload"


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_is_exactly_as_long_as_it_says(version: int) -> None:
    packet = Flow(version=version).packet(b"x" * 100)
    assert refused(virtio.NO_OFFLOAD + packet + b"\0") == "bad_ip_length"
    assert refused(virtio.NO_OFFLOAD + packet[:-1]) == "bad_ip_length"


@pytest.mark.parametrize("words", [0, 4, 15])
def test_a_tcp_header_lies_inside_the_packet(words: int) -> None:
    frame = bytearray(Flow().partial(Flow().packet(b"x" * 39)))
    frame[10 + 32] = words << 4
    assert refused(bytes(frame)) == "bad_offload"


def test_a_truncated_transport_header_is_refused() -> None:
    for flow, length in ((Flow(), 19), (Flow(protocol=UDP), 7)):
        raw = Flow(protocol=flow.protocol).ip_header(length) + bytes(length)
        offset = 16 if flow.protocol == TCP else 6
        assert refused(virtio.VIRTIO_HEADER.pack(1, 0, 40, 0, 20, offset) + raw) == "bad_offload"


def test_a_udp_length_is_that_of_the_packet() -> None:
    frame = bytearray(Flow(protocol=UDP).superpacket(b"x" * 500, 100))
    frame[10 + 25] ^= 1
    assert refused(bytes(frame)) == "bad_offload"
