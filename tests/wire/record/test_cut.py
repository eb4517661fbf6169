"""cut: what the pieces stand for is what the frame stood for; `split` and `join_frames` are the oracles."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet import virtio
from overlay.wire.packet.join import join_frames
from overlay.wire.packet.superpacket import split
from overlay.wire.record.cut import cut
from overlay.wire.record.frames import FRAME_HEADER_SIZE, LENGTH_SIZE, frames
from tests.wire.packet.packets import ACK, CWR, FIN, PSH, TCP, UDP, Flow

NUMBERS = {"identification": 0xFFFE, "sequence": 0xFFFFFF00}  # both go round

any_flow = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    traffic_class=st.sampled_from([0, 2]),
    dont_fragment=st.booleans(),
    tcp_options=st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(range(8))]),
    ip_extra=st.sampled_from([b"", bytes(8)]),
)
plain_flow = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    tcp_options=st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(range(8))]),
)


def record(*with_headers: bytes) -> memoryview:
    """Frames of a record, of virtio-net headers and packets."""
    return memoryview(bytearray(b"".join(struct.pack("<I", len(each) - 10) + each for each in with_headers)))


def pieces(plain: memoryview, room: int) -> list[bytes]:
    """As a sender takes them: each copied away before the next is asked for."""
    return [bytes(piece) for piece in cut(plain, room)]


def packets(plain: bytes) -> list[bytes]:
    view = memoryview(plain)
    return [packet for start, end in frames(view) for packet in split(view[start + LENGTH_SIZE : end])]


def payload(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@given(any_flow, st.integers(1, 6000), st.integers(50, 1400), st.integers(0, 8000), st.sampled_from([ACK, ACK | PSH]))
def test_the_pieces_stand_for_the_same_packets(flow: Flow, length: int, size: int, room: int, flags: int) -> None:
    superpacket = flow.superpacket(payload(length), size, flags=flags, **NUMBERS)
    wanted = split(memoryview(superpacket))
    found = pieces(record(superpacket), room)
    assert [packet for piece in found for packet in packets(piece)] == wanted
    head = FRAME_HEADER_SIZE + flow.transport() + (8 if flow.protocol == UDP else 20 + len(flow.tcp_options))
    for piece in found:
        assert len(piece) <= max(room, head + size)


@given(plain_flow, st.integers(1, 6000), st.integers(100, 1400), st.integers(0, 8000), st.booleans())
def test_joined_again_they_are_the_frame(flow: Flow, length: int, size: int, room: int, pushed: bool) -> None:
    superpacket = flow.superpacket(payload(length), size, flags=ACK | PSH if pushed else ACK, **NUMBERS)
    exact = memoryview(bytearray(superpacket))
    virtio.validate(exact[:10], exact[10:])
    views = [memoryview(piece)[LENGTH_SIZE:] for piece in pieces(record(bytes(exact)), room)]
    assert [bytes(frame) for frame in join_frames(views)] == [bytes(exact)]


@given(any_flow, st.integers(1, 6000), st.integers(50, 1400), st.integers(0, 8000))
def test_every_piece_is_exact_before_it_is_validated(flow: Flow, length: int, size: int, room: int) -> None:
    found = pieces(record(flow.superpacket(payload(length), size)), room)
    for piece in found if len(found) > 1 else []:
        header, packet = bytearray(piece[LENGTH_SIZE:FRAME_HEADER_SIZE]), piece[FRAME_HEADER_SIZE:]
        virtio.validate(memoryview(header), memoryview(packet))
        assert header == piece[LENGTH_SIZE:FRAME_HEADER_SIZE]


@given(
    st.lists(st.tuples(any_flow, st.integers(1, 3000), st.integers(50, 1400)), max_size=5),
    st.integers(0, 6000),
)
def test_records_of_several_frames_are_cut_between_them_first(contents: list[tuple[Flow, int, int]], room: int) -> None:
    made = [flow.superpacket(payload(length), size, **NUMBERS) for flow, length, size in contents]
    plain = record(*made)
    wanted = packets(bytes(plain))
    found = pieces(plain, room)
    assert [packet for piece in found for packet in packets(piece)] == wanted
    assert all(found)


def test_fin_and_push_are_the_last_pieces_and_cwr_and_its_ecn_bit_the_first_ones() -> None:
    superpacket = bytearray(Flow().superpacket(payload(400), 100, flags=ACK | PSH | FIN | CWR))
    superpacket[1] |= virtio.GSO_ECN
    wanted = split(memoryview(superpacket))
    found = pieces(record(bytes(superpacket)), FRAME_HEADER_SIZE + 40 + 200)
    assert [packet for piece in found for packet in packets(piece)] == wanted
    assert [piece[FRAME_HEADER_SIZE + 33] for piece in found] == [ACK | CWR, ACK | PSH | FIN]
    assert [piece[5] for piece in found] == [virtio.GSO_TCPV4 | virtio.GSO_ECN, virtio.GSO_TCPV4]


def test_a_single_segment_is_no_superpacket() -> None:
    found = pieces(record(Flow().superpacket(payload(250), 100)), 0)
    assert len(found) == 3
    for piece in found:
        assert piece[4:8] == bytes([virtio.NEEDS_CSUM, 0, 40, 0])
        assert piece[8:10] == b"\0\0"


def test_the_header_length_of_a_forwarding_kernel_is_not_believed() -> None:
    superpacket = bytearray(Flow().superpacket(payload(3000), 1000))
    struct.pack_into("<H", superpacket, 2, 1040)
    found = pieces(record(bytes(superpacket)), 1100)
    assert [packet for piece in found for packet in packets(piece)] == split(memoryview(superpacket))


@pytest.mark.parametrize(
    "frame",
    [
        virtio.NO_OFFLOAD + Flow().packet(payload(3000)),
        Flow().partial(Flow().packet(payload(3000))),
        virtio.NO_OFFLOAD + Flow(protocol=1).packet(payload(3000)),
        virtio.VIRTIO_HEADER.pack(1, virtio.GSO_UDP, 28, 1000, 20, 6) + Flow(protocol=UDP).packet(payload(3000)),
    ],
)
def test_what_is_no_superpacket_stays_whole(frame: bytes) -> None:
    assert pieces(record(frame), 1400) == [bytes(record(frame))]


def test_what_fits_comes_back_as_it_is() -> None:
    frame = Flow().superpacket(payload(3000), 1000)
    plain = record(frame, frame)
    assert pieces(plain, len(plain)) == [bytes(record(frame, frame))]
    assert pieces(record(), 100) == []


def test_a_superpacket_is_cut_as_evenly_as_the_room_asks() -> None:
    # 48 segments of 1328 bytes, 15 fragments of 1428: as many segments as fill them.
    frame = Flow(tcp_options=bytes(12)).superpacket(payload(48 * 1328), 1328)
    found = pieces(record(frame), 15 * 1428 - 16)
    assert [(len(piece) - FRAME_HEADER_SIZE - 52) // 1328 for piece in found] == [16, 16, 16]
