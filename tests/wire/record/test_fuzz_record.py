"""Hostile bytes in: the frame parser raises nothing but `RemoteProtocolError`, the reader counts."""

from contextlib import suppress

from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.superpacket import split
from overlay.wire.record.fragments import FRAGMENT_HEADER, runs
from overlay.wire.record.frames import FRAME_HEADER, MAX_PADDING, REPORT_GSO_TYPE, frames, single_frames
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
        ends = [0, *(end for _, end in found)]
        assert ends[:-1] == [start for start, _ in found]
        assert len(plain) - ends[-1] <= MAX_PADDING
        assert not any(plain[ends[-1] :])
        for start, end in found:
            with suppress(RemoteProtocolError):
                virtio.validate(writable[start + 4 : start + 14], writable[start + 14 : end])
            with suppress(RemoteProtocolError):
                split(writable[start + 4 : end])


@given(st.lists(almost_frames | st.binary(max_size=60), max_size=5))
def test_single_frames_are_those_that_a_closer_look_finds_alone(plains: list[bytes]) -> None:
    views = [memoryview(bytearray(plain)) for plain in plains]
    found = single_frames(views)
    looked: list[bytes] | None = []
    for view in views:
        try:
            ((start, end),) = frames(view)
        except (RemoteProtocolError, ValueError):
            looked = None
            break
        if view[5] == REPORT_GSO_TYPE:
            looked = None
            break
        assert looked is not None
        looked.append(bytes(view[start + 4 : end]))
    assert (None if found is None else [bytes(each) for each in found]) == looked


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


@given(
    st.lists(st.lists(almost_fragments.map(lambda made: made[:16]), min_size=1, max_size=8), max_size=8),
    st.integers(1, 60),
    st.binary(min_size=480, max_size=480),
    st.booleans(),
    st.integers(0, 59),
)
def test_reader_of_runs_taken_apart(
    runs_of_headers: list[list[bytes]], room: int, box: bytes, multi: bool, missing: int
) -> None:
    """The quick way takes what the close look takes, also of nonsense."""
    counters = {header[8:] for headers in runs_of_headers for header in headers}
    # The close look tells a record's fragments in a row by the counter's lowest byte; the AEAD bears out the rest.
    assume(len({counter[0] for counter in counters}) == len(counters))
    quick, close = reader(), reader()
    for number, headers in enumerate(runs_of_headers):
        boxes = box[: len(headers) * room - min(missing, room - 1)]
        joined = b"".join(header + boxes[at * room : (at + 1) * room] for at, header in enumerate(headers))
        now = number / 10
        found = quick.receive_apart(memoryview(b"".join(headers)), 0, memoryview(boxes), room, now, multi=multi)
        if found is None:
            assert len({header[:1] + header[4:8] for header in headers}) > 1
            found = quick.receive(memoryview(joined), 16 + room, 0, now, multi=multi)
        assert found == close.receive(memoryview(joined), 16 + room, 0, now, multi=multi)
        assert (quick.drops, quick.lost) == (close.drops, close.lost)
