from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet import virtio
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.join import join, join_frames
from overlay.wire.packet.superpacket import MAX_SUPERPACKET, MAX_UDP_SEGMENTS, split
from tests.wire.packet.packets import ACK, FIN, PSH, TCP, UDP, Flow


def cut(frames: list[Octets]) -> list[bytes]:
    return [packet for frame in frames for packet in split(memoryview(frame))]


def without_identification(packets: list[bytes]) -> list[bytes]:
    """The packets, but for what means nothing where DF is set (RFC 6864 §4.1), and the checksum over it."""
    return [
        packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
        if packet[0] == 0x45 and packet[6] & 0x40
        else packet
        for packet in packets
    ]


def validate(frames: list[Octets]) -> None:
    """What `join` makes is what a kernel would make."""
    for frame in frames:
        writable = memoryview(bytearray(frame))
        virtio.validate(writable[:10], writable[10:])
        assert writable == frame


flows = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    ports=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    hop_limit=st.sampled_from([63, 64]),
    traffic_class=st.sampled_from([0, 1]),
    dont_fragment=st.booleans(),
    tcp_options=st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(8)]),
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """What one flow sends."""
    flow = draw(flows)
    data = draw(st.binary(min_size=1, max_size=4000))
    size = draw(st.integers(1, 20) | st.integers(8, 1380))
    return flow.stream(
        data,
        size,
        identification=draw(st.integers(0, 0xFFFF)),
        sequence=draw(st.integers(0, 0xFFFFFFFF)),
        last=draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN])),
    )


@given(streams())
def test_split_undoes_join(packets: list[bytes]) -> None:
    frames = join(packets)
    assert cut(frames) == packets
    validate(frames)


@given(flows, st.binary(min_size=1, max_size=20000), st.integers(8, 1380), st.integers(0, 0xFFFFFFFF), st.booleans())
def test_join_undoes_split(flow: Flow, data: bytes, size: int, sequence: int, push: bool) -> None:
    if flow.protocol == UDP:
        size = max(size, -(-len(data) // MAX_UDP_SEGMENTS))
    elif push:
        data += b"x"
    if len(data) <= size:
        data += bytes(size)
    frame = flow.superpacket(data, size, sequence=sequence, flags=ACK | PSH * push)
    assert join(split(memoryview(frame))) == [frame]


@given(st.lists(streams(), max_size=4), st.randoms(use_true_random=False))
def test_flows_may_be_mixed_and_none_is_reordered(sent: list[list[bytes]], random: object) -> None:
    assert hasattr(random, "random")
    queues = [list(packets) for packets in sent if packets]
    mixed: list[bytes] = []
    while queues:
        queue = queues[int(random.random() * len(queues))]
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    frames = join(mixed)
    validate(frames)
    after = without_identification(cut(frames))
    mixed = without_identification(mixed)
    assert sorted(after) == sorted(mixed)
    # Streams that drew the same ports are one flow, in which TCP segments may have been put right.
    if len({packets[0][:1] + packets[0][6:7] + packets[0][9:10] + packets[0][12:48] for packets in sent}) == len(sent):
        for packets in map(without_identification, sent):
            here = [packet for packet in after if packet in packets]
            assert here == [packet for packet in mixed if packet in packets]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_neighbours_become_one_superpacket(version: int, protocol: int) -> None:
    flow = Flow(version=version, protocol=protocol)
    data = bytes(range(250)) * 40
    assert join(flow.stream(data, 1000, last=ACK | PSH)) == [flow.superpacket(data, 1000, flags=ACK | PSH)]


def test_a_smaller_segment_is_the_last_one() -> None:
    flow = Flow()
    first, second = flow.stream(b"x" * 250, 100), flow.stream(b"y" * 200, 100, sequence=250, identification=3)
    assert join(first + second) == [
        flow.superpacket(b"x" * 250, 100),
        flow.superpacket(b"y" * 200, 100, sequence=250, identification=3),
    ]


def test_a_larger_segment_starts_anew() -> None:
    flow = Flow()
    packets = [flow.packet(b"x" * 100), flow.packet(b"y" * 101, sequence=100, identification=1)]
    assert join(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]


def test_segments_smaller_than_a_kernel_cuts_stay_alone() -> None:
    packets = Flow().stream(b"x" * 21, 7)
    assert join(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]
    assert len(join(Flow().stream(b"x" * 17, 8))) == 1


def test_push_ends_a_superpacket() -> None:
    flow = Flow()
    first = flow.stream(b"x" * 200, 100, last=ACK | PSH)
    second = flow.stream(b"y" * 200, 100, sequence=200, identification=2)
    assert len(join(first + second)) == 2


def test_segments_that_overtook_one_another_are_put_right() -> None:
    flow = Flow()
    one, two, three = flow.stream(b"x" * 300, 100)
    assert join([two, one, three]) == [flow.superpacket(b"x" * 300, 100)]
    assert cut(join([three, two, one])) == [one, two, three]


def test_datagrams_keep_their_order() -> None:
    one, two, three = Flow(protocol=UDP).stream(b"a" * 100 + b"b" * 100 + b"c" * 50, 100)
    assert cut(join([three, one, two])) == [three, one, two]


@pytest.mark.parametrize(
    "other",
    [
        Flow(hop_limit=63),
        Flow(traffic_class=3),
        Flow(dont_fragment=False),
        Flow(window=500),
        Flow(acknowledgement=8),
        Flow(ports=(40000, 444)),
        Flow(tcp_options=b"\x01\x01\x01\x01"),
    ],
)
def test_what_split_would_not_restore_is_not_joined(other: Flow) -> None:
    packets = [Flow().packet(b"x" * 100), other.packet(b"x" * 100, sequence=100, identification=1)]
    assert join(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]


def test_identification_counts_where_a_packet_may_be_fragmented() -> None:
    flow = Flow(dont_fragment=False)
    packets = [flow.packet(b"x" * 100), flow.packet(b"x" * 100, sequence=100, identification=2)]
    assert len(join(packets)) == 2
    # With DF set it means nothing (RFC 6864 §4.1).
    flow = replace(flow, dont_fragment=True)
    packets = [flow.packet(b"x" * 100), flow.packet(b"x" * 100, sequence=100)]
    assert len(join(packets)) == 1


@pytest.mark.parametrize("flags", [0, ACK | FIN, ACK | 0x02, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | 0x80])
def test_only_plain_data_is_joined(flags: int) -> None:
    flow = Flow()
    one, two = flow.stream(b"x" * 200, 100)
    other = flow.packet(b"x" * 100, sequence=200, identification=2, flags=flags)
    three = flow.packet(b"x" * 100, sequence=300, identification=3)
    frames = join([one, two, other, three])
    assert frames == [flow.superpacket(b"x" * 200, 100), virtio.NO_OFFLOAD + other, virtio.NO_OFFLOAD + three]


def test_nothing_of_a_flow_overtakes_what_was_not_joined() -> None:
    flow = Flow()
    one, two = flow.stream(b"x" * 200, 100)
    acknowledgement = flow.packet(b"")
    assert cut(join([one, acknowledgement, two])) == [one, acknowledgement, two]


@pytest.mark.parametrize("damaged", [10, 24, 60])
def test_a_damaged_packet_is_not_given_a_new_checksum(damaged: int) -> None:
    for protocol in (TCP, UDP):
        packets = Flow(protocol=protocol).stream(b"x" * 200, 100)
        broken = bytearray(packets[1])
        broken[damaged] ^= 0x40
        assert bytes(join([packets[0], broken])[-1]) == virtio.NO_OFFLOAD + broken


def test_a_datagram_without_a_checksum_stays_so() -> None:
    packets = []
    for packet in Flow(protocol=UDP).stream(b"x" * 200, 100):
        bare = bytearray(packet)
        bare[26:28] = bytes(2)
        packets.append(bytes(bare))
    assert join(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]


def test_a_superpacket_is_no_larger_than_ip_can_say() -> None:
    packets = Flow().stream(bytes(70000), 1340)
    frames = join(packets)
    assert [len(frame) - 10 <= MAX_SUPERPACKET for frame in frames] == [True, True]
    assert cut(frames) == packets


def test_a_udp_superpacket_has_no_more_segments_than_kernels_take() -> None:
    packets = Flow(protocol=UDP).stream(bytes(100 * 9), 9)
    frames = join(packets)
    assert len(split(memoryview(frames[0]))) == MAX_UDP_SEGMENTS
    assert cut(frames) == packets


@pytest.mark.parametrize(
    ("tcp", "udp", "count"), [(True, True, 2), (True, False, 3), (False, True, 3), (False, False, 4)]
)
def test_only_what_the_device_takes_is_joined(tcp: bool, udp: bool, count: int) -> None:
    packets = [packet for protocol in (TCP, UDP) for packet in Flow(protocol=protocol).stream(b"x" * 200, 100)]
    assert len(join(packets, tcp=tcp, udp=udp)) == count


@pytest.mark.parametrize(
    "other",
    [
        Flow(ip_extra=b"\x94\x04\0\0"),
        Flow(version=6, ip_extra=bytes(8)),
        Flow(protocol=1),
        Flow(version=6, protocol=UDP, ip_extra=bytes(8), extension=44),
    ],
)
def test_unusual_packets_pass_as_they_are(other: Flow) -> None:
    packets = [other.packet(b"x" * 100, sequence=100 * index, identification=index) for index in range(3)]
    assert join(packets) == [virtio.NO_OFFLOAD + packet for packet in packets]


def test_fragments_pass_as_they_are_and_are_not_overtaken() -> None:
    flow = Flow(protocol=UDP, dont_fragment=False)
    fragment = bytearray(flow.packet(b"x" * 100, identification=1))
    fragment[6:8] = b"\x20\0"
    one, two = flow.packet(b"a" * 100), flow.packet(b"b" * 100, identification=1)
    assert cut(join([one, bytes(fragment), two])) == [one, bytes(fragment), two]


def test_frames_with_checksums_to_be_made_are_joined_unseen() -> None:
    for flow in (Flow(), Flow(protocol=UDP), Flow(version=6), Flow(version=6, protocol=UDP)):
        data = bytes(range(250))
        partial = [memoryview(flow.partial(packet)) for packet in flow.stream(data, 100)]
        assert join_frames(partial) == [flow.superpacket(data, 100)]


def test_frames_and_packets_with_checksums_mix() -> None:
    flow = Flow()
    one, two = flow.stream(bytes(200), 100)
    assert join_frames([memoryview(flow.partial(one)), memoryview(virtio.NO_OFFLOAD + two)]) == [
        flow.superpacket(bytes(200), 100)
    ]


@pytest.mark.parametrize("flow", [Flow(), Flow(version=6, protocol=UDP)])
def test_superpackets_grow(flow: Flow) -> None:
    data = bytes(range(250)) * 4
    first = memoryview(flow.superpacket(data[:300], 100))
    second = memoryview(flow.superpacket(data[300:700], 100, sequence=300, identification=3))
    third = memoryview(flow.partial(flow.packet(data[700:750], sequence=700, identification=7)))
    assert join_frames([first, second, third]) == [flow.superpacket(data[:750], 100)]


def test_superpackets_of_other_segment_sizes_do_not() -> None:
    flow = Flow()
    first = memoryview(flow.superpacket(bytes(300), 100))
    second = memoryview(flow.superpacket(bytes(300), 99, sequence=300, identification=3))
    assert join_frames([first, second]) == [first, second]


def test_what_stays_alone_is_the_object_that_came() -> None:
    frames = [memoryview(virtio.NO_OFFLOAD + Flow(ports=(index, 1)).packet(b"x")) for index in range(3)]
    assert all(after is before for after, before in zip(join_frames(frames), frames, strict=True))
