import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet.virtio import VIRTIO_HEADER
from overlay.wire.record.frames import FRAME_HEADER, MAX_PACKET, MAX_RECORD, MIN_PACKET, frames


def frame(packet: bytes) -> bytes:
    return FRAME_HEADER.pack(len(packet), 1, 2, 3, 4, 5, 6) + packet


def test_layout() -> None:
    data = frame(b"p" * 20)
    assert data[:14].hex() == "14000000" + "01" + "02" + "0300" + "0400" + "0500" + "0600"
    # From the flags on, it is what a TUN device reads and writes.
    assert VIRTIO_HEADER.unpack_from(data, 4) == (1, 2, 3, 4, 5, 6)


def test_an_empty_record_is_a_keepalive() -> None:
    assert frames(memoryview(b"")) == []


@given(st.lists(st.binary(min_size=MIN_PACKET, max_size=200), max_size=40))
def test_all_packets_are_found_in_order(packets: list[bytes]) -> None:
    plain = memoryview(b"".join(map(frame, packets)))
    assert [bytes(plain[start + 14 : end]) for start, end in frames(plain)] == packets


def test_the_largest_packet_fits() -> None:
    plain = memoryview(frame(bytes(MAX_PACKET)))
    assert frames(plain) == [(0, MAX_RECORD)]


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (b"\1", "short_frame"),
        (frame(bytes(20))[:13], "short_frame"),
        (frame(bytes(20)) + bytes(12) + b"\1", "short_frame"),
        (frame(bytes(20))[:-1], "bad_frame_length"),
        (frame(bytes(19)), "bad_frame_length"),
        (frame(b""), "bad_frame_length"),
        (frame(bytes(MAX_PACKET + 1)), "bad_frame_length"),
        (b"\xff\xff\xff\xff" + bytes(30), "bad_frame_length"),
        (frame(bytes(20)) + bytes(14), "bad_frame_length"),
    ],
)
def test_refused(plain: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        frames(memoryview(plain))
    assert caught.value.reason == reason
