"""Hostile bytes in: the frame parser raises nothing but `RemoteProtocolError`, the reader counts."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.superpacket import split
from overlay.wire.record.fragments import FRAGMENT_HEADER, runs
from overlay.wire.record.frames import FRAME_HEADER, frames
from tests.wire.packet.packets import Flow
from tests.wire.record.batches import RECEIVER, reader

almost_frames = st.builds(
    lambda length, fields, packet: FRAME_HEADER.pack(length, *fields) + packet,
    st.integers(0, 80) | st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(0, 255)] * 2, *[st.integers(0, 65535)] * 4),
    st.binary(max_size=80) | st.just(Flow().packet(b"x" * 20)),
)
almost_fragments = st.builds(
    lambda kind, index, count, reserved, counter, box: (
        FRAGMENT_HEADER.pack(kind, index, count, reserved, RECEIVER, counter) + box
    ),
    st.sampled_from([5, 5, 5, 4]),
    st.integers(0, 4) | st.integers(0, 255),
    st.integers(0, 4) | st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 3) | st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
)


@given(st.lists(almost_frames | st.binary(max_size=40), max_size=5).map(b"".join))
def test_frames(plain: bytes) -> None:
    writable = memoryview(bytearray(plain))
    with suppress(RemoteProtocolError):
        found = frames(writable)
        assert [0, *(end for _, end in found)] == [*(start for start, _ in found), len(plain)]
        for start, end in found:
            with suppress(RemoteProtocolError):
                virtio.validate(writable[start + 4 : start + 14], writable[start + 14 : end])
            with suppress(RemoteProtocolError):
                split(writable[start + 4 : end])


@given(
    st.lists(
        st.tuples(
            st.lists(almost_fragments | st.binary(max_size=60), max_size=8).map(b"".join),
            st.integers(0, 80),
            st.sampled_from([0, 16]),
            st.booleans(),
        ),
        max_size=10,
    )
)
def test_reader(arrivals: list[tuple[bytes, int, int, bool]]) -> None:
    theirs = reader()
    for now, (batch, segment, offset, multi) in enumerate(arrivals):
        assert theirs.receive(memoryview(batch), segment, offset, now / 4, multi=multi) == []
        assert theirs.drops or theirs.next_timeout() is not None
        list(runs(memoryview(batch), segment, offset))
    theirs.expire(1e9)
    assert theirs.next_timeout() is None
    assert theirs.completed == 0
