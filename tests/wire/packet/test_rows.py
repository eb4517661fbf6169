"""Packets in a row: what `join_padded` and `join_frames` make of them, `split` cuts to the same packets again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet import virtio
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.join import join, join_frames, join_padded
from overlay.wire.packet.superpacket import MAX_SUPERPACKET, MAX_UDP_SEGMENTS, split
from tests.wire.packet.packets import ACK, FIN, PSH, TCP, UDP, Flow
from tests.wire.packet.test_join import cut, flows, streams, validate

TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(range(8))
FLOWS = [
    Flow(version=version, protocol=protocol, tcp_options=options)
    for version in (4, 6)
    for protocol in (TCP, UDP)
    for options in (b"", TIMESTAMPS)
]


def pad(packets: Sequence[bytes]) -> tuple[memoryview, int]:
    """Packets as a run of datagrams brings them, each padded to a multiple of 16, and all but the last as far as the
    longest."""
    stride = max(-(-len(packet) // 16) * 16 for packet in packets)
    padded = b"".join(packet + bytes(stride - len(packet)) for packet in packets[:-1])
    return memoryview(padded + packets[-1] + bytes(-len(packets[-1]) % 16)), stride


def joined(packets: Sequence[bytes], *, tcp: bool = True, udp: bool = True) -> list[Octets]:
    drops: Counter[str] = Counter()
    frames = join_padded(*pad(packets), drops, tcp=tcp, udp=udp)
    assert not drops
    return frames


def partial(flow: Flow, packets: Sequence[bytes]) -> list[memoryview]:
    return [memoryview(flow.partial(packet)) for packet in packets]


# --- one stream -------------------------------------------------------------------------------------------------------


@given(streams())
def test_split_undoes_join_of_padded_packets(packets: list[bytes]) -> None:
    frames = joined(packets)
    assert cut(frames) == packets
    validate(frames)
    assert frames == join(packets)


@given(st.lists(streams(), min_size=1, max_size=5))
def test_streams_one_after_another(sent: list[list[bytes]]) -> None:
    packets = [packet for stream in sent for packet in stream]
    frames = joined(packets)
    validate(frames)
    after = cut(frames)
    assert sorted(map(without_identification, after)) == sorted(map(without_identification, packets))


def without_identification(packet: bytes) -> bytes:
    """It means nothing where DF is set, and differs where another stream of the same flow was joined."""
    if packet[0] == 0x45 and packet[6] & 0x40:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [8, 999, 1000, 1001])
def test_neighbours_become_one_superpacket(flow: Flow, size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size * 9 + 5))
    # The sequence number and the identification go round.
    numbers = {"identification": 0xFFFC, "sequence": 0xFFFFFF00}
    superpacket = flow.superpacket(data, size, **numbers)
    packets = flow.stream(data, size, **numbers)
    assert joined(packets) == [superpacket]
    assert join_frames(partial(flow, packets)) == [superpacket]


@pytest.mark.parametrize("flow", FLOWS)
def test_all_but_the_last_are_padded_alike_whatever_the_padding_is(flow: Flow) -> None:
    data = bytes(range(250)) * 4
    packets = flow.stream(data, 100)
    for padding in (0, 1, 15, 500):
        stride = len(packets[0]) + padding
        noise = b"".join(packet + b"\xaa" * (stride - len(packet)) for packet in packets)
        assert join_padded(memoryview(noise), stride, Counter()) == [flow.superpacket(data, 100)]


def test_a_full_run_of_a_stock_sender() -> None:
    flow = Flow(tcp_options=TIMESTAMPS)
    data = bytes(range(256)) * 235
    packets = flow.stream(data, 1368, last=ACK | PSH)
    assert joined(packets) == [flow.superpacket(data, 1368, flags=ACK | PSH)]


# --- what ends a row --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "change",
    [
        {"window": 500},
        {"acknowledgement": 8},
        {"hop_limit": 63},
        {"traffic_class": 3},
        {"tcp_options": TIMESTAMPS[:-1] + b"\xff"},
    ],
)
def test_segments_that_differ_otherwise_are_joined_on_either_side(version: int, change: dict[str, object]) -> None:
    flow = Flow(version=version, tcp_options=TIMESTAMPS)
    other = replace(flow, **change)  # type: ignore[arg-type]
    data = bytes(range(200)) * 4
    first, second = data[:400], data[400:]
    wanted = [
        flow.superpacket(first, 100),
        other.superpacket(second, 100, sequence=400, identification=4),
    ]
    packets = flow.stream(first, 100) + other.stream(second, 100, sequence=400, identification=4)
    assert joined(packets) == wanted
    frames = partial(flow, packets[:4]) + partial(other, packets[4:])
    assert join_frames(frames) == wanted


@pytest.mark.parametrize("flow", [Flow(), Flow(version=6)])
def test_push_ends_a_superpacket(flow: Flow) -> None:
    data = bytes(range(200)) * 4
    packets = flow.stream(data[:400], 100, last=ACK | PSH)
    packets += flow.stream(data[400:], 100, sequence=400, identification=4)
    wanted = [
        flow.superpacket(data[:400], 100, flags=ACK | PSH),
        flow.superpacket(data[400:], 100, sequence=400, identification=4),
    ]
    assert joined(packets) == wanted
    assert join_frames(partial(flow, packets)) == wanted


@pytest.mark.parametrize("flags", [ACK | FIN, ACK | 0x02, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | 0x80, 0])
def test_other_flags_stay_alone(flags: int) -> None:
    flow = Flow()
    packets = flow.stream(bytes(300), 100)
    packets.append(flow.packet(bytes(100), sequence=300, identification=3, flags=flags))
    packets += flow.stream(bytes(300), 100, sequence=400, identification=4)
    wanted = [flow.superpacket(bytes(300), 100), flow.superpacket(bytes(300), 100, sequence=400, identification=4)]
    assert joined(packets) == [wanted[0], virtio.NO_OFFLOAD + packets[3], wanted[1]]
    frames = partial(flow, packets)
    assert join_frames(frames) == [wanted[0], frames[3], wanted[1]]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_gap_in_the_sequence_ends_a_row(flow: Flow) -> None:
    packets = flow.stream(bytes(range(250)) * 4, 100)
    del packets[4]
    frames = joined(packets)
    assert cut(frames) == packets or (flow.protocol == UDP and len(frames) == 1)
    assert len(frames) == (2 if flow.protocol == TCP else 1)
    assert len(join_frames(partial(flow, packets))) == len(frames)


def test_identification_counts_where_a_packet_may_be_fragmented() -> None:
    for protocol in (TCP, UDP):
        flow = Flow(protocol=protocol, dont_fragment=False)
        packets = flow.stream(bytes(500), 100, identification=0xFFFE)
        assert len(joined(packets)) == len(join_frames(partial(flow, packets))) == 1
        packets[2:] = flow.stream(bytes(300), 100, sequence=200, identification=7)
        frames = joined(packets)
        assert cut(frames) == packets
        assert len(frames) == len(join_frames(partial(flow, packets))) == 2


def places(flow: Flow) -> list[int]:
    """Offsets of bytes that a checksum covers: of the IPv4 header, the ports, the transport's header, the payload."""
    transport = flow.transport()
    checksum = transport + (6 if flow.protocol == UDP else 16)
    found = [transport, transport + 1, checksum, checksum + 1, -1, -2, -50, -99]
    if flow.protocol == TCP:
        found += [transport + 5, transport + 9, transport + 15, transport + 19]
    return found + [5, 8, 10, 11, 13] if flow.version == 4 else found + [10, 30]


@pytest.mark.parametrize("flow", FLOWS)
def test_damage_is_not_given_a_right_checksum(flow: Flow) -> None:
    packets = flow.stream(bytes(range(250)) * 4, 100)
    for number in (0, 1, 5, 9):
        for at in places(flow):
            broken = bytearray(packets[number])
            broken[at] ^= 0x41
            mixed = [*packets[:number], bytes(broken), *packets[number + 1 :]]
            frames = joined(mixed)
            assert virtio.NO_OFFLOAD + broken in frames, (number, at)
            whole = [without_identification(packet) for packet in cut(frames) if packet != broken]
            assert whole == [*map(without_identification, packets[:number] + packets[number + 1 :])]


def test_a_payload_that_changed_places_with_another_is_found() -> None:
    """Their sums are right together: each must be verified for itself."""
    packets = Flow().stream(bytes(range(250)) * 4, 100)
    mixed = [*packets[:3], packets[3][:40] + packets[4][40:], packets[4][:40] + packets[3][40:], *packets[5:]]
    frames = joined(mixed)
    assert virtio.NO_OFFLOAD + mixed[3] in frames
    assert virtio.NO_OFFLOAD + mixed[4] in frames


def test_datagrams_without_a_checksum_stay_so() -> None:
    right = Flow(protocol=UDP).stream(bytes(500), 100)
    packets = [packet[:26] + bytes(2) + packet[28:] for packet in right]
    assert joined(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]
    frames = joined(right[:2] + packets[2:3] + right[3:])
    assert virtio.NO_OFFLOAD + packets[2] in frames
    assert len(frames) == 3


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_no_superpacket_is_larger_than_kernels_take(protocol: int) -> None:
    flow = Flow(protocol=protocol)
    for size in (100, 1300):
        packets = flow.stream(bytes(size * 100), size)
        for frames in (joined(packets), join_frames(partial(flow, packets))):
            assert cut(frames) == packets
            assert max(map(len, frames)) <= MAX_SUPERPACKET + 10
            if protocol == UDP:
                assert max(len(split(memoryview(frame))) for frame in frames) <= MAX_UDP_SEGMENTS


@pytest.mark.parametrize(
    ("tcp", "udp", "count"), [(True, True, 2), (True, False, 6), (False, True, 6), (False, False, 10)]
)
def test_only_what_the_device_takes_is_joined(tcp: bool, udp: bool, count: int) -> None:
    sent = [Flow(), Flow(protocol=UDP)]
    packets = [packet for flow in sent for packet in flow.stream(bytes(500), 100)]
    assert len(joined(packets, tcp=tcp, udp=udp)) == count
    frames = [frame for flow in sent for frame in partial(flow, flow.stream(bytes(500), 100))]
    assert len(join_frames(frames, tcp=tcp, udp=udp)) == count


# --- padded packets ---------------------------------------------------------------------------------------------------


def test_what_is_no_packet_is_counted_and_the_rest_joined() -> None:
    flow = Flow()
    packets = flow.stream(bytes(400), 100)
    stride = len(packets[0])
    mixed = [packets[0], packets[1], bytes(stride), b"\x45\0\xff" + bytes(stride - 3), packets[2], packets[3], b"\x60"]
    drops: Counter[str] = Counter()
    frames = join_padded(memoryview(b"".join(mixed)), stride, drops)
    assert cut(frames) == packets
    assert drops == {"bad_ip_version": 1, "bad_ip_length": 1, "short_packet": 1}


def test_flows_that_take_turns() -> None:
    one, two = Flow(), Flow(ports=(40001, 443))
    pairs = zip(one.stream(bytes(500), 100), two.stream(bytes(500), 100), strict=True)
    packets = [packet for pair in pairs for packet in pair]
    assert joined(packets) == [one.superpacket(bytes(500), 100), two.superpacket(bytes(500), 100)]


# --- frames -----------------------------------------------------------------------------------------------------------


def test_one_frame_and_frames_of_strangers_come_back_as_they_are() -> None:
    several = [memoryview(Flow(ports=(port, 1)).superpacket(bytes(300), 100)) for port in range(5)]
    several += [memoryview(Flow(version=6, ports=(port, 1)).superpacket(bytes(300), 100)) for port in range(5)]
    several.append(memoryview(virtio.NO_OFFLOAD + Flow(protocol=1).packet(b"ping")))
    for frames in (several[:0], several[:1], several):
        after = join_frames(frames)
        assert len(after) == len(frames)
        assert all(one is other for one, other in zip(after, frames, strict=True))


@given(flows, st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(8, 1380), st.booleans())
def test_superpackets_of_any_sizes_grow(flow: Flow, counts: list[int], size: int, push: bool) -> None:
    """As a sender makes them that cuts by loss: of one segment or more, the last one short."""
    data = bytes(range(256)) * (sum(counts) * size // 256 + 1)
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count * size)
    frames = []
    for number, (start, end) in enumerate(pairwise(ends)):
        last = number == len(counts) - 1
        numbers = {"identification": start // size, "sequence": start}
        part = data[start : end - last]
        flags = ACK | PSH * (push and last)
        if len(part) <= size:
            frames.append(flow.partial(flow.packet(part, **numbers, flags=flags)))
        else:
            frames.append(flow.superpacket(part, size, **numbers, flags=flags))
    packets = [packet for frame in frames for packet in split(memoryview(frame))]
    after = join_frames([memoryview(frame) for frame in frames])
    assert cut(after) == packets
    validate(after)
    if ends[-1] < 60000 and (flow.protocol == TCP or sum(counts) <= MAX_UDP_SEGMENTS):
        assert len(after) <= (1 if flow.protocol == TCP else len(counts))


def test_a_frame_with_a_checksum_is_joined_only_if_it_is_right() -> None:
    flow = Flow()
    packets = flow.stream(bytes(range(250)) * 2, 100)
    frames = partial(flow, packets)
    frames[2] = memoryview(virtio.NO_OFFLOAD + packets[2])
    assert join_frames(frames) == [flow.superpacket(bytes(range(250)) * 2, 100)]
    frames[2] = memoryview(virtio.NO_OFFLOAD + packets[2][:-1] + b"\xff")
    after = join_frames(frames)
    assert len(after) == 3
    assert after[1] is frames[2]


def test_a_damaged_ip_header_stays_damaged() -> None:
    flow = Flow()
    frames = partial(flow, flow.stream(bytes(500), 100))
    for number in (0, 2):
        broken = bytearray(frames[number])
        broken[10 + 8] -= 1  # time to live
        mixed = [*frames[:number], memoryview(broken), *frames[number + 1 :]]
        assert any(frame is mixed[number] for frame in join_frames(mixed))
