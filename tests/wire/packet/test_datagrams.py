import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet.checksum import complement, pseudo_header, sum16
from overlay.wire.packet.datagrams import merge
from overlay.wire.packet.superpacket import MAX_UDP_SEGMENTS, split
from overlay.wire.packet.virtio import NEEDS_CSUM, VIRTIO_HEADER, validate


def frame(payload: bytes, *, version: int = 4, number: int = 0, port: int = 1000, df: bool = True) -> bytes:
    """A frame as a TUN with checksum offload gives it."""
    length = 8 + len(payload)
    if version == 4:
        addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
        header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, number, df << 14, 64, 17, 0) + addresses)
        header[10:12] = complement(sum16(header)).to_bytes(2, "big")
    else:
        addresses = bytes(range(32))
        header = bytearray(struct.pack(">IHBB", 6 << 28, length, 17, 64) + addresses)
    udp = struct.pack(">HHHH", port, 2000, length, pseudo_header(addresses, 17, length))
    packet = bytes(header) + udp + payload
    return struct.pack("<I", len(packet)) + VIRTIO_HEADER.pack(NEEDS_CSUM, 0, 0, 0, len(header), 6) + packet


def merged(*frames: bytes) -> tuple[bytes, int] | None:
    record = memoryview(bytearray(b"".join(frames)))
    size = len(frames[0])
    validate(record[4:14], record[14:size])
    return merge(record, size)


@given(
    st.sampled_from([4, 6]),
    st.integers(1, 300).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=2)),
    st.integers(0, 0xFFFF),
)
def test_splitting_gives_the_datagrams_back(version: int, payloads: list[bytes], number: int) -> None:
    frames = [frame(payload, version=version, number=number + index & 0xFFFF) for index, payload in enumerate(payloads)]
    found = merged(*frames)
    assert found is not None
    superpacket, count = found
    assert count == min(len(frames), MAX_UDP_SEGMENTS)
    writable = memoryview(bytearray(superpacket))
    validate(writable[:10], writable[10:])
    assert split(memoryview(superpacket)) == [split(memoryview(each)[4:])[0] for each in frames[:count]]


@pytest.mark.parametrize("version", [4, 6])
def test_another_flow_or_size_ends_the_run(version: int) -> None:
    one, other = frame(b"abcd", version=version), frame(b"abcd", version=version, port=7)
    found = merged(one, one, other, one)
    assert found is not None and found[1] == 2
    assert merged(one, other) is None
    assert merged(one, frame(b"abcdef", version=version)) is None
    assert merged(one) is None


def test_a_wrong_header_checksum_is_not_mended() -> None:
    wrong = bytearray(frame(b"abcd", number=2))
    wrong[14 + 10] ^= 1
    assert merged(frame(b"abcd", number=1), bytes(wrong)) is None
    assert merged(bytes(wrong), bytes(wrong)) is None


def test_what_may_be_fragmented_keeps_its_identification() -> None:
    assert merged(frame(b"abcd", df=False), frame(b"abcd", df=False)) is None


def test_datagrams_without_payload_stay_alone() -> None:
    assert merged(frame(b""), frame(b"")) is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_hostile_frames_after_the_first_do_no_harm(junk: bytes, more: bytes) -> None:
    first = frame(b"abcd")
    found = merged(first, junk, more)
    assert found is None or found[1] >= 2
