"""Hostile bytes in, nothing but `RemoteProtocolError` out."""

from collections import Counter
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip, virtio
from overlay.wire.packet.join import join, join_frames, join_padded
from overlay.wire.packet.superpacket import split
from tests.wire.packet.packets import TCP, UDP, Flow

seeds = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP, 1, 44, 51, 60]),
    ip_extra=st.sampled_from([b"", bytes(8)]),
    tcp_options=st.sampled_from([b"", bytes(12)]),
)


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """A frame that a kernel could have made, with bytes changed, cut or added."""
    flow = draw(seeds)
    data = draw(st.binary(max_size=200))
    if flow.protocol in (TCP, UDP):
        frame = bytearray(flow.superpacket(data, draw(st.integers(0, 300))))
    else:
        frame = bytearray(virtio.NO_OFFLOAD + flow.packet(data))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(0, min(len(frame), 80) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))]) if draw(st.booleans()) else bytes(frame)


hostile = st.binary(max_size=120) | damaged_frames()


@given(hostile)
def test_ip(packet: bytes) -> None:
    for function in (ip.parse, ip.source, ip.destination, ip.total_length, ip.flow_key):
        with suppress(RemoteProtocolError):
            function(packet)
    with suppress(RemoteProtocolError):
        assert len(ip.trim(memoryview(packet))) <= len(packet)


@given(hostile)
@example(virtio.VIRTIO_HEADER.pack(1, 5, 0, 1, 20, 6) + Flow(protocol=UDP).packet(bytes(60000)))
def test_validated_offload_fields_bear_every_check_that_a_kernel_makes(frame: bytes) -> None:
    if len(frame) < virtio.VIRTIO_HEADER_SIZE:
        return
    writable = memoryview(bytearray(frame))
    with suppress(RemoteProtocolError):
        virtio.validate(writable[:10], writable[10:])
        flags, gso_type, header_length, gso_size, start, offset = virtio.VIRTIO_HEADER.unpack_from(writable)
        size = len(frame) - 10
        if not flags:
            assert (gso_type, header_length, gso_size, start, offset) == (0, 0, 0, 0, 0)
            return
        assert flags == virtio.NEEDS_CSUM
        assert start + offset + 2 <= header_length <= size
        assert (gso_type == 0) == (gso_size == 0)
        if gso_type:
            assert gso_size < size - header_length <= gso_size * 65535
        # Validated once, it is valid and exact.
        again = memoryview(bytearray(writable))
        virtio.validate(again[:10], again[10:])
        assert again == writable
        split(writable)


@given(hostile)
def test_split(frame: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert sum(map(len, split(memoryview(frame)))) < 100_000


@given(st.lists(hostile, max_size=6))
def test_join_takes_anything_and_loses_nothing(packets: list[bytes]) -> None:
    packets = [packet[10:] for packet in packets]
    frames = join(packets)
    assert sum(len(frame) - 10 for frame in frames) <= sum(map(len, packets))
    after = [packet for frame in frames for packet in split(memoryview(frame))]
    assert sorted(map(len, after)) == sorted(map(len, packets))


@given(st.lists(hostile, max_size=6), st.integers(1, 200))
def test_join_takes_any_padded_bytes(packets: list[bytes], stride: int) -> None:
    drops: Counter[str] = Counter()
    run = b"".join(packet[10:] for packet in packets)
    frames = join_padded(memoryview(run), stride, drops)
    after = [packet for frame in frames for packet in split(memoryview(frame))]
    assert len(after) + drops.total() == -(-len(run) // stride)
    assert sum(map(len, after)) <= len(run)


@given(st.lists(damaged_frames(), max_size=6))
def test_join_takes_any_validated_frames(frames: list[bytes]) -> None:
    valid: list[memoryview] = []
    for frame in frames:
        writable = memoryview(bytearray(frame))
        with suppress(RemoteProtocolError):
            if len(frame) >= 10:
                virtio.validate(writable[:10], writable[10:])
                valid.append(writable)
    for joined in join_frames(valid):
        after = memoryview(bytearray(joined))
        virtio.validate(after[:10], after[10:])
        assert after == joined
